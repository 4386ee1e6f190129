"""The page on the chapter's rows shows every text of its table as text."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tests.report.pages.test_strips import HOSTILE, Page
from tokinfo.report.pages.replication import write_replication_page
from tokinfo.tables.replication import REPLICATION_SCHEMA
from tokinfo.tables.verdicts import VERDICTS


def test_no_text_of_the_table_can_add_markup(tmp_path: Path) -> None:
    values = {pl.String: HOSTILE, pl.Float64: 0.5, pl.Int64: 2, pl.Boolean: True}
    row = {name: values[type(kind)] for name, kind in REPLICATION_SCHEMA.items()}
    rows = [
        row | {"verdict": verdict, "stand_in": stand_in}
        for verdict in VERDICTS
        for stand_in in ("", HOSTILE)
    ]
    pl.DataFrame(rows, schema=REPLICATION_SCHEMA).write_parquet(tmp_path / "r.parquet")
    write_replication_page(
        tmp_path / "r.parquet", tmp_path / "page.html", name="<script>x", description="</main><p>"
    )
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not {tag for tag, _ in page.elements} & {"script", "img", "details"}
    assert sum(tag == "style" for tag, _ in page.elements) == 1
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    for _, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on") or name == "src"}
    assert page.text.count("<script>alert(1)") > 3 * len(rows), "shown as text"
