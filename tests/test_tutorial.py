"""The tutorial's code runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import REPOSITORY
from tests.synthetic_recovery import cell_rows, default_models, frame, swept_rows
from tokinfo.tables.recovery import collect
from tokinfo.tables.summary import summarise

TUTORIAL = REPOSITORY / "docs" / "tutorial.md"


def test_the_tutorial_reads_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = tmp_path / "results" / "tables"
    cells = []
    for model in default_models()[:2]:
        for name, rows in (("adam", cell_rows(model)), ("sweep", swept_rows(model))):
            cells.append(tmp_path / f"{model.name}-{name}.parquet")
            frame(rows).write_parquet(cells[-1], metadata={"tokinfo": "{}"})
    collect(cells, tables / "recovery.parquet")
    summarise(tables / "recovery.parquet", tables / "summary.parquet", tables / "summary.csv")
    blocks = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})  # a file of this repository, run as a reader would run it
    printed = capsys.readouterr().out
    assert "flat-untrained" in printed
    assert "sweep" not in printed, "a sweep's share is no evidence of a search"
