"""The page on the chapter's rows: what it counts, and every text of its table as text."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tests.compared_rows import FOUND, HIDDEN, Row, certified, comparison, runs, sweeps, table
from tests.report.pages.test_strips import HOSTILE, Page
from tests.synthetic_recovery import frame
from tokinfo.report.pages.replication import write_replication_page
from tokinfo.tables.replication import REPLICATION_SCHEMA, write_replication
from tokinfo.tables.verdicts import VERDICTS

OPTIMISER = VERDICTS[1]


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


def test_the_page_says_it_and_escapes_what_comes_from_models(tmp_path: Path) -> None:
    published = runs([False, False], found_token="<b>x</b>")
    others = sweeps(published, "identifiable")
    comparisons = [
        comparison(HIDDEN, published, others),
        comparison(HIDDEN, published, others, stand_in="a <small> one"),
        comparison(FOUND, [], runs=False, reason="weights not at hand: 1.0 GB"),
    ]
    recovery = tmp_path / "recovery.parquet"
    frame(published + others).write_parquet(recovery)
    files = [tmp_path / name for name in ("r.parquet", "r.csv", "s.csv")]
    write_replication(recovery, comparisons, {}, *files)
    page = tmp_path / "page.html"
    write_replication_page(files[0], page, name="Study <1>")
    text = page.read_text(encoding="utf-8")
    assert "<b>x</b>" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "a &lt;small&gt; one" in text
    assert "Of 2 measured statements, 1 were run" in text
    assert text.count(f"<b>{OPTIMISER}</b>") == 2
    assert "weights not at hand: 1.0 GB" in text
    assert "snakemake --config &#39;run=[mine]&#39;" in text
    assert pl.read_csv(files[1])["verdict"].to_list() == [OPTIMISER, OPTIMISER, "not run"]
    assert pl.read_csv(files[2])["rows"].sum() == 3


def test_the_page_counts_what_joint_search_gave_back(tmp_path: Path) -> None:
    """Rows that hide nothing, and those without joint search, are in neither number."""

    def page(row: str, published: list[Row], joint: list[Row]) -> str:
        made = table([*published, *joint], [comparison(row, published, joint)], tmp_path)
        pl.DataFrame(made, schema=REPLICATION_SCHEMA).write_parquet(tmp_path / "made.parquet")
        write_replication_page(tmp_path / "made.parquet", tmp_path / "page.html")
        return " ".join((tmp_path / "page.html").read_text(encoding="utf-8").split())

    missed = runs([False, False])
    given_back = page(HIDDEN, missed, certified(runs([True, True])))
    assert "Of the 1 comparisons with hidden tokens that joint search was run on" in given_back
    assert "certifies the prompt in 1, given the same input" in given_back
    assert "the published descent finds them in every run in 0." in given_back
    # What visible activations do not depend on is certified, whatever is found there.
    assert "certifies the prompt in 0," in page(HIDDEN, missed, certified(runs([False, False])))
    assert "joint search was run on" not in page(HIDDEN, missed, [])
    plain = runs([True], mask=":")
    whole = page("mixer-untrained-block1-full", plain, certified(runs([True], mask=":")))
    assert "joint search was run on" not in whole
