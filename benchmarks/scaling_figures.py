"""Figures of docs/findings.md, from the tables `scaling_*.csv` of docs/evidence.

    python benchmarks/scaling_figures.py        # writes docs/images/scaling_*.png

They are drawn as the workflow draws those of a study.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import polars as pl

from tokinfo.report.figures.scaling import draw_scaling
from tokinfo.tables.scaling import AXES

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Draw every axis."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for axis in AXES:
            table = DOCS / "evidence" / f"scaling_{axis}.csv"
            rows = pl.read_csv(table, null_values="", infer_schema_length=None).to_dicts()
            png = DOCS / "images" / f"scaling_{axis}.png"
            draw_scaling(rows, axis, Path(directory, f"{axis}.svg"), png)


if __name__ == "__main__":
    main()
