"""Evidence: the replication table of a finished study, with the machine and the commit.

    python benchmarks/replication.py RESULTS OUT COMMAND

RESULTS is the results directory of a study with `claims` that has run, OUT the CSV to write, and
COMMAND what ran it: a column, so that a row can be made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl
from common import write

from tokinfo.tables.replication import counts

DROPPED = ("model_digests", "note", "prompt", "device")
"""Columns that the file of statements has, or that are no figures."""


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("made_by")
    options = parser.parse_args()
    table = pl.read_parquet(options.results / "tables" / "replication.parquet")
    facts = {"made_by": options.made_by}
    rounded = table.drop(DROPPED).with_columns(pl.col(pl.Float64).round_sig_figs(4))
    write(options.out, [row | facts for row in rounded.rename({"command": "would_run"}).to_dicts()])
    print(counts(table))


if __name__ == "__main__":
    main()
