"""Targets are read as they are written, and a shuffled one leaves no position in place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokinfo.study.targets import derangement, kind, other_model, slug


@given(st.integers(2, 300))
def test_a_derangement_is_a_permutation_that_moves_every_position(length: int) -> None:
    order = derangement(length)
    assert sorted(order) == list(range(length))
    assert not [place for place, origin in enumerate(order) if place == origin]


def test_a_derangement_is_the_same_on_every_machine() -> None:
    found = [derangement(length) for length in (2, 3, 6)]
    assert found == [[1, 0], [1, 2, 0], [4, 2, 0, 1, 5, 3]]


def test_one_position_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="1 position cannot be shuffled"):
        derangement(1)


@pytest.mark.parametrize("text", ["", "of:", "Own", "other", "of", "shuffled "])
def test_what_is_no_target_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="own, shuffled or of:MODEL"):
        kind(text)


@given(st.sampled_from(["own", "shuffled", "of:a.b-c", "of:of", "of:shuffled", "of:own"]))
def test_slugs_have_no_separator_and_name_the_target(target: str) -> None:
    assert not set(slug(target)) & set("/_+ :")
    other = other_model(target)
    assert slug(target) == ("" if target == "own" else target if other is None else f"of-{other}")
