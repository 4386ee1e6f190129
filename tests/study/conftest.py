"""What tests of a study have in common."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which no earlier run has left its tokenizer."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
