"""Ranks, margins, verdicts and bits equal their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokinfo.solvers.identification import bits, identify

RESIDUALS = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=2, max_size=30)


@given(RESIDUALS, st.data())
def test_rank_and_margin_are_their_definitions(values: list[float], data: st.DataObject) -> None:
    true = data.draw(st.integers(0, len(values) - 1))
    found = identify(torch.tensor(values, dtype=torch.float64), true, slack=0.0)
    others = values[:true] + values[true + 1 :]
    assert found.rank == 1 + sum(other <= values[true] for other in others)
    assert found.margin == pytest.approx(min(others) - values[true])


@pytest.mark.parametrize(
    ("values", "verdict", "candidates"),
    [
        ([0.0, 5.0, 9.0], "identifiable", 1),
        ([1.9, 2.1, 9.0], "identifiable", 1),
        ([0.0, 1.9, 9.0], "ambiguous", 2),
        ([3.0, 1.0, 9.0], "excluded", 1),
        ([3.0, 5.0, 9.0], "excluded", 0),
    ],
)
def test_verdicts_look_at_twice_the_floor(
    values: list[float], verdict: str, candidates: int
) -> None:
    found = identify(torch.tensor(values), true=0, slack=2.0)
    assert (found.verdict, found.candidates) == (verdict, candidates)


def test_bits_are_nothing_where_no_candidate_explains_the_activations() -> None:
    found = identify(torch.tensor([3.0, 2.5, 9.0]), true=0, slack=2.0, prior=torch.ones(3) / 3)
    assert found.candidates == 0
    assert (found.bits_low, found.bits_high) == (None, None)
    assert (found.prior_bits_low, found.prior_bits_high) == (None, None)


@pytest.mark.parametrize(
    ("values", "claimed"),
    [([0.0, 9.0], 0), ([9.0, 0.0], 1), ([0.0, 0.0], None), ([9.0, 9.0], None)],
)
def test_a_claim_is_the_only_candidate_that_explains_right_or_wrong(
    values: list[float], claimed: int | None
) -> None:
    assert identify(torch.tensor(values), true=0, slack=1.0).claimed == claimed


@given(RESIDUALS, st.floats(0, 50))
def test_bits_count_what_the_activations_leave_open(values: list[float], floor: float) -> None:
    residuals = torch.tensor(values, dtype=torch.float64)
    low, high = bits(residuals, 2 * floor)
    best = min(values)
    left = sum(value <= best + 2 * floor for value in values)
    assert low == pytest.approx(math.log2(len(values)) - math.log2(left), abs=1e-9)
    assert 0 <= low <= high <= math.log2(len(values)) + 1e-9


def test_bits_under_a_prior_are_its_surprise() -> None:
    residuals = torch.tensor([0.0, 0.1, 9.0, 9.0])
    prior = torch.tensor([0.1, 0.15, 0.25, 0.5])
    low, high = bits(residuals, 0.2, prior)
    assert low == pytest.approx(2.0)
    assert high == pytest.approx(-math.log2(0.1))


@given(st.data(), st.floats(0, 50))
def test_prior_bits_are_those_of_a_brute_force_count(data: st.DataObject, floor: float) -> None:
    """Summed candidate by candidate in plain Python, from what the definition says."""
    values = data.draw(RESIDUALS)
    counts = [data.draw(st.integers(0, 1000)) for _ in values]
    prior = [(count + 1) / (sum(counts) + len(counts)) for count in counts]
    true = data.draw(st.integers(0, len(values) - 1))
    found = identify(
        torch.tensor(values, dtype=torch.float64), true, 2 * floor, torch.tensor(prior).double()
    )
    for slack, claimed in ((2 * floor, found.prior_bits_low), (0.0, found.prior_bits_high)):
        if min(values) > 2 * floor:
            assert claimed is None
            continue
        mass = 0.0
        for value, probability in zip(values, prior, strict=True):
            if value <= min(values) + slack:
                mass += probability
        assert claimed == pytest.approx(max(0.0, -math.log2(mass)), abs=1e-5)


def test_a_uniform_prior_gives_the_same_bits_as_none() -> None:
    residuals = torch.tensor([0.0, 0.1, 3.0, 9.0])
    found = identify(residuals, 0, 0.2, torch.full((4,), 0.25, dtype=torch.float64))
    assert (found.prior_bits_low, found.prior_bits_high) == (found.bits_low, found.bits_high)
    assert identify(residuals, 0, 0.2).prior_bits_low is None


def test_activations_that_say_nothing_carry_no_bits() -> None:
    assert bits(torch.zeros(4096), 0.0) == (0.0, 0.0)


def test_a_true_token_that_is_no_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="not among the 3"):
        identify(torch.zeros(3), true=3, slack=0.0)
