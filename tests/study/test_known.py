"""Known positions are read as they are written, and counted as they are listed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.example_study import example, keys, mistakes, put, says, spoilt
from tests.study.test_masks import texts
from tokinfo.study.cell import Cell
from tokinfo.study.known import Known
from tokinfo.study.load import load_study
from tokinfo.study.masks import Mask

choices = st.one_of(st.sampled_from(["none", "visible"]), texts)


@given(choices, texts, st.integers(0, 20), st.integers(0, 9))
def test_what_is_left_to_find_is_hidden_and_not_known(
    text: str, mask: str, length: int, pads: int
) -> None:
    known, where, seen = Known(text), Mask(mask), length + pads
    positions = known.positions(where, length, seen)
    assert positions == sorted(set(positions) & set(range(length)))
    assert known.count(where, length, seen) == len(positions)
    visible = set(where.visible(seen)) if where.hides else set()
    assert known.left(where, length, seen) == len(set(range(length)) - visible - set(positions))


def test_known_positions_are_none_the_visible_ones_or_a_slice_of_the_prompt() -> None:
    mask = Mask("1:3")
    found = [Known(text).positions(mask, 5) for text in ("none", "visible", "3:", "-1", "7:")]
    assert found == [[], [1, 2], [3, 4], [4], []]


def test_visible_tokens_of_a_chat_are_known_and_what_is_hidden_is_left() -> None:
    known, mask, spans = Known("visible"), Mask("hide=system"), {"system": [1, 2], "user": [4]}
    assert known.positions(mask, 6, 8, spans) == [0, 3, 4, 5]
    assert known.left(mask, 6, 8, spans) == 2
    assert Known("1:").left(mask, 6, 8, spans) == 0


def test_pads_are_never_known() -> None:
    found = [Known(text).positions(Mask("-2:"), 3, 4) for text in ("visible", ":", "-1")]
    assert found == [[2], [0, 1, 2], [2]]


@given(choices, choices)
def test_slug_is_one_to_one_and_safe_in_a_file_name(first: str, second: str) -> None:
    one, two = Known(first), Known(second)
    assert (one.slug == two.slug) == (one == two)
    assert re.fullmatch(r"[a-z0-9-]+", one.slug)
    assert Known(one.text) == one


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("all", "none, visible, or a Python slice"),
        ("", "none, visible"),
        ("hide=user", "none, visible"),
        ("::0", "the step must"),
    ],
)
def test_what_is_no_choice_is_refused_with_what_is_allowed(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"known '{text}': .*{reason}"):
        Known(text)


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (["all"], "grids[1].known[0]", "is not a choice of known tokens"),
        (["none", "1-"], "grids[1].known[1]", "none, visible, or a Python slice or index"),
        (["::-1"], "grids[1].known[0]", "the step of a choice of known tokens must be 1 or more"),
        ([], "grids[1].known", "a list of 1 or more"),
    ],
)
def test_a_grids_mistake_is_one_line_with_its_key_and_reason(
    value: list[str], key: str, reason: str
) -> None:
    found = spoilt((("grids", 1, "known"), value))
    assert keys(found) == [key]
    assert says(found[0], reason), found


# --- cells ----------------------------------------------------------------------------------


def cells(**grid: Any) -> list[Cell]:
    raw = put(example(), ("solvers", "sweep"), {"kind": "sweep"})
    raw["grids"] = [raw["grids"][1] | {"residual": [True], "solvers": ["adam"]} | grid]
    assert mistakes(raw) == []
    return list(load_study(raw).cells())


def test_file_names_of_cells_without_known_tokens_are_as_before() -> None:
    (cell,) = cells()
    assert cell.path == "cells/llama/attention.1/from1/l1_embedding_adam_sky_s0.parquet"
    assert cells(known=["none"]) == [cell]


def test_known_tokens_are_an_axis_of_a_grid_and_part_of_the_file_name() -> None:
    found = cells(known=["none", "visible", "1:", "1::1", "0:2"], masks=["3:"])
    sites = [cell.wildcards["site"] for cell in found]
    assert sites == [
        *("attention.1", "attention.1+known-visible", "attention.1+known-from1"),
        "attention.1+known-to2",
    ]


def test_identify_keeps_the_grids_known_tokens() -> None:
    found = cells(known=["visible"], identify=["sweep"])
    assert [(cell.solver, cell.known.text) for cell in found] == [
        ("adam", "visible"),
        ("sweep", "visible"),
    ]
