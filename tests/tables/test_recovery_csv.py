"""The long table as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.synthetic_recovery import FakeModel, cell_rows, frame
from tokinfo.tables import recovery
from tokinfo.tables.recovery import TableError, collect, write_csv
from tokinfo.tables.schema import RECOVERY_SCHEMA

FLAT = FakeModel("flat", "flat", "mixer-flat", 8, hidden=0.6)


def gather(rows: list[dict[str, Any]], directory: Path) -> pl.DataFrame:
    frame(rows).write_parquet(directory / "cell.parquet", metadata={"tokinfo": "{}"})
    collect([directory / "cell.parquet"], directory / "recovery.parquet")
    return pl.read_parquet(directory / "recovery.parquet")


def test_csv_joins_lists_and_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = cell_rows(FLAT, texts=('say "hi",\nplease',))
    rows[0]["top5_ids"] = [1, 2, 3, 4, 5]
    whole = gather(rows, tmp_path)
    # A few rows at a time.
    monkeypatch.setattr(recovery, "ROW_GROUP", 2)
    write_csv(tmp_path / "recovery.parquet", tmp_path / "recovery.csv")
    table = pl.read_csv(tmp_path / "recovery.csv")
    assert table["position"].to_list() == whole["position"].to_list()
    assert table.columns == list(RECOVERY_SCHEMA)
    assert table["top5_ids"][0] == "1 | 2 | 3 | 4 | 5"
    assert table["prompt"][0] == 'say "hi",\nplease'


def test_a_new_table_takes_the_csv_of_the_one_before_away(tmp_path: Path) -> None:
    (tmp_path / "recovery.csv").write_text("what was found before")
    gather(cell_rows(FLAT), tmp_path)
    assert not (tmp_path / "recovery.csv").exists()
    (tmp_path / "recovery.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TableError, match=r"recovery\.parquet"):
        write_csv(tmp_path / "recovery.parquet", tmp_path / "recovery.csv")
    assert not (tmp_path / "recovery.csv").exists()
