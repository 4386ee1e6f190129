"""Tokens that a solver was given are in the long table, and enter no share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.synthetic_recovery import (
    FakeModel,
    cell_rows,
    default_models,
    frame,
    known_rows,
    swept_rows,
    write_tables,
)
from tokinfo.tables.identifiability import finding, hidden_rows, noise_table, unexplained
from tokinfo.tables.scaling import points

FLAT = default_models()[0]
TEXTS = ("a b c d", "e f g h i")

Rows = list[dict[str, Any]]


def wrong(rows: Rows) -> Rows:
    """No token is found that was not given."""
    nothing = {"correct": False, "in_top5": False, "in_prompt": False}
    return [row if row["given"] else row | nothing for row in rows]


def written(rows: Rows, directory: Path) -> Path:
    frame(rows).write_parquet(directory / "recovery.parquet")
    return directory / "recovery.parquet"


def test_the_summary_counts_what_had_to_be_found_and_no_known_token(tmp_path: Path) -> None:
    rows = wrong(known_rows(cell_rows(FLAT, mask="3:", texts=TEXTS), "1:4"))
    table = pl.read_parquet(write_tables(frame(rows), tmp_path)[0])
    hidden, visible = table.to_dicts()
    assert (hidden["known"], hidden["positions"], visible["positions"]) == ("1:4", 2, 1)
    for row in (hidden, visible):
        assert (row["top1"], row["top5"], row["unordered"], row["prompt_whole"]) == (0, 0, 0, 0)


def test_cells_of_which_all_visible_tokens_are_known_have_hidden_shares_alone(
    tmp_path: Path,
) -> None:
    rows = known_rows(cell_rows(FLAT, texts=TEXTS)) + cell_rows(FLAT, texts=TEXTS)
    table = pl.read_parquet(write_tables(frame(rows), tmp_path)[0])
    found = table.select("known", "visible", "positions").rows()
    assert found == [("visible", False, 2), ("none", False, 2), ("none", True, 7)]


def test_what_is_identifiable_and_found_is_of_unknown_tokens_in_settings_that_know_the_same(
    tmp_path: Path,
) -> None:
    mask = {"mask": "3:", "texts": TEXTS}
    sweep = known_rows(swept_rows(FLAT, there=1.0, **mask), "1:")
    recovery = written(sweep + wrong(known_rows(cell_rows(FLAT, **mask), "1:")), tmp_path)
    rows = hidden_rows(recovery)
    assert rows["position"].unique().to_list() == [0]
    assert noise_table(rows).select("known", "positions").rows() == [("1:", 2)]
    one = finding(rows, "adam")
    assert one is not None
    assert (one.positions, one.found.value, one.identifiable.value) == (2, 0, 1)
    apart = written(sweep + cell_rows(FLAT, **mask), tmp_path)
    assert finding(hidden_rows(apart), "adam") is None


def test_a_control_position_lies_right_of_every_visible_one_known_or_not(tmp_path: Path) -> None:
    rows = known_rows(swept_rows(FLAT, mask="1:3", texts=("a b c d",)), "visible")
    found = hidden_rows(written(rows, tmp_path))
    assert found.select("position", "control").rows() == [(0, False), (3, True)]


def test_of_a_target_that_nothing_explains_known_tokens_are_not_found(tmp_path: Path) -> None:
    rows = wrong(known_rows(cell_rows(FLAT, mask="3:", texts=TEXTS, target="shuffled"), "1:"))
    (one,) = unexplained(written(rows, tmp_path))
    assert (one["positions"], one["found"], one["known"]) == (2, 0, "1:")


@pytest.mark.parametrize("known", ["visible", "1:"])
def test_scaling_counts_no_known_token_and_mixes_no_two_choices(known: str, tmp_path: Path) -> None:
    rows: Rows = []
    for width in (32, 64, 128):
        name = f"flat-{width}"
        model = FakeModel(name, name, "mixer-flat", depth=1, hidden=1.0, state="untrained")
        facts = {"width": width, "mask": "3:", "texts": TEXTS}
        rows += wrong(known_rows(cell_rows(model, **facts), known))
        if width > 32:
            rows += cell_rows(model, **facts)
    found = points(written(rows, tmp_path), "width")
    hidden = {"visible": 6, "1:": 2}[known]
    assert [(row["share"], row["tokens"]) for row in found] == [(0, hidden)] * 3
    assert [row["visible_share"] for row in found] == [None] * 3
