"""The tests, laid out as the package is; `workflow` also runs the workflow itself."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
