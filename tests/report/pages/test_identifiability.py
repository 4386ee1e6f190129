"""The page on identifiability says what the table says, and nothing that it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.report.pages.test_strips import HOSTILE, Page
from tests.synthetic_recovery import cell_rows, default_models, frame, swept_rows
from tokinfo.report.pages.identifiability import write_identifiability
from tokinfo.report.pages.strips import write_strips
from tokinfo.tables.identifiability import finding, hidden_rows

FLAT = default_models()[0]


def write(rows: list[dict[str, Any]], directory: Path, **options: Any) -> Page:
    frame(rows).write_parquet(directory / "recovery.parquet")
    write_identifiability(directory / "recovery.parquet", directory / "page.html", **options)
    return Page((directory / "page.html").read_text(encoding="utf-8"))


def everything() -> list[dict[str, Any]]:
    rows = []
    for mask in ("1:", ":2"):
        rows += cell_rows(FLAT, mask=mask) + cell_rows(FLAT, solver="chapter", mask=mask)
        rows += swept_rows(FLAT, mask=mask) + swept_rows(FLAT, around="found", mask=mask)
    return rows


def test_the_finding_is_computed_from_the_table(tmp_path: Path) -> None:
    page = write(everything(), tmp_path)
    table = hidden_rows(tmp_path / "recovery.parquet")
    adam, joint = finding(table, "adam"), finding(table, "joint")
    assert adam is not None
    assert joint is not None
    for share in (adam.found, adam.identifiable, joint.found, joint.certified, joint.recovered):
        assert share is not None
        words = f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
        assert words in page.text.replace("\u00a0", " ")
    assert [
        name
        for name in ("chapter", "adam", "joint")
        if f"Of 10 hidden tokens (1 setting, 10 prompts) {name} found" in page.text
    ] == ["chapter", "adam", "joint"]


def test_what_was_not_asked_is_not_0(tmp_path: Path) -> None:
    rows = everything() + [row | {"model": "other"} for row in everything()]
    for row in rows:
        if row["solver"] == "joint":
            row |= {"around": None, "identified": None}
    page = write(rows, tmp_path)
    assert "recovered" not in page.text[: page.text.index("Each sentence")]
    table = page.text[page.text.index("prompts certifiedrecovered") : page.text.index("Words")]
    # Neither descents nor a joint search without sweeps around what it found were asked.
    assert table.count("not asked") == 2 * (3 + 2), "and descents gave no verdict here"
    # A sweep finds no prompt: there is none that could be certified.
    control = [row | {"target": "shuffled"} for row in swept_rows(FLAT)]
    page = write(everything() + control, tmp_path)
    row = page.text[page.text.index("positions shuffled") :]
    assert "prompts certified" not in row[: row.index("positions identifiable")]


def test_the_page_says_which_controls_fail(tmp_path: Path) -> None:
    assert "All results are as they must be." in write(everything(), tmp_path).text
    rows = everything()
    for row in rows:
        if row["mask"] == ":2" and row.get("identified"):
            row["identified"] = "identifiable"
    page = write(rows, tmp_path)
    assert "2 of 2 do not" in page.text
    assert "All results are as they must be." not in page.text


def shuffled(rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    return [row | {"target": "shuffled", "verdict": "unexplained"} | changes for row in rows]


def test_targets_that_nothing_explains_are_shown_with_the_required_result(tmp_path: Path) -> None:
    control = shuffled(swept_rows(FLAT, around="found"))
    for row in control:
        row |= {"correct": row["prompt_id"] == 0, "target": "of:other"}
        if not row["visible"]:
            row["identified"] = "excluded"
    page = write(everything() + control, tmp_path)
    assert "All results are as they must be." in page.text
    assert "activations of other" in page.text
    assert "no prompt certified, no position identifiable" in page.text
    came = "0 of 10 prompts certified; 0 of 10 positions identifiable; 1 of 10 hidden tokens found"
    assert came in page.text
    assert "(chance: 1 in 4,096)" in page.text
    # In the headlines it is as if the control were not there.
    headline = page.text[page.text.index("The finding") : page.text.index("Words")]
    alone = write(everything(), tmp_path).text
    assert headline == alone[alone.index("The finding") : alone.index("Words")]


def test_one_certified_control_marks_the_page(tmp_path: Path) -> None:
    control = shuffled(swept_rows(FLAT, around="found"), identified=None)
    control[0]["verdict"] = "certified"
    page = write(everything() + control, tmp_path)
    assert "1 of 3 do not" in page.text
    assert "1 of 10 prompts certified" in page.text
    assert page.text.count("NO") == 1


def test_prior_bits_stand_beside_bits_where_there_is_a_prior(tmp_path: Path) -> None:
    assert "prior bits" not in write(everything(), tmp_path).text.lower()
    rows = everything()
    for row in rows:
        if row.get("bits") is not None:
            row |= {"prior_bits": 8.0, "prior_bits_high": 8.5, "prior_entropy": 9.25}
    page = write(rows, tmp_path)
    assert "8.0 to 8.5 (the text's tokens: 9.2)" in page.text
    assert "Laplace" in page.text


def test_controls_are_in_no_strip_and_in_no_headline(tmp_path: Path) -> None:
    searched, control = cell_rows(FLAT), shuffled(cell_rows(FLAT, solver="joint"))
    pages = []
    for name, rows in (("with", searched + control), ("without", searched), ("only", control)):
        frame(rows).write_parquet(tmp_path / "recovery.parquet")
        write_strips(tmp_path / "recovery.parquet", tmp_path / f"{name}.html")
        pages.append(" ".join((tmp_path / f"{name}.html").read_text().split()))
    note = pages[0][pages[0].index("<p class=note>1 cells of controls") :]
    note = note[: note.index("results. ") + len("results. ")]
    assert pages[0].replace(note, "") == pages[1]
    assert "No search in this study." in pages[2]


def test_the_page_of_a_study_without_sweeps_says_so(tmp_path: Path) -> None:
    page = write(cell_rows(FLAT), tmp_path)
    assert "No cell of this study was swept" in page.text
    assert "The finding" not in page.text


def test_what_only_one_side_ran_on_is_not_compared(tmp_path: Path) -> None:
    page = write(swept_rows(FLAT) + cell_rows(FLAT, mask="3:"), tmp_path)
    assert "No setting of this study has both a search and a sweep" in page.text
    assert "None in this study" in page.text


def test_a_study_cannot_add_markup_and_the_page_fetches_nothing(tmp_path: Path) -> None:
    rows = everything()
    for row in rows:
        row |= {"model": HOSTILE, "prompts": "<h1>"}
        row["solver"] = f"<script>{row['solver']}"
    rows += shuffled(swept_rows(FLAT, around="found"), target=f"of:{HOSTILE}")
    page = write(rows, tmp_path, name="<script>x", description="</main><iframe src=x>")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "link"}
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    for _, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on") or name == "src"}
    text = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert f"activations of {HOSTILE}" in page.text, "shown as text"


def test_sweeps_are_in_no_strip_and_in_no_headline(tmp_path: Path) -> None:
    searched, swept = cell_rows(FLAT), swept_rows(FLAT)
    pages = []
    for name, rows in (("with", searched + swept), ("without", searched), ("only", swept)):
        frame(rows).write_parquet(tmp_path / "recovery.parquet")
        write_strips(tmp_path / "recovery.parquet", tmp_path / f"{name}.html")
        pages.append(" ".join((tmp_path / f"{name}.html").read_text().split()))
    note = pages[0][pages[0].index("<p class=note>1 cells of sweeps") :]
    note = note[: note.index("shows them. ") + len("shows them. ")]
    assert "the other tokens are known" in note
    assert pages[0].replace(note, "") == pages[1]
    assert "No search in this study." in pages[2]
