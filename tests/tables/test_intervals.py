"""Intervals cover what they claim, and chance is what guessing gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokinfo.solvers.scores import found_unordered
from tokinfo.tables.intervals import (
    bootstrap,
    chance_unordered,
    clopper_pearson,
    clustered_median,
    clustered_share,
    wilson,
)

CLUSTERS = st.lists(
    st.integers(1, 8).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    min_size=1,
    max_size=15,
)


def test_wilson_agrees_with_published_values() -> None:
    # R. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 2)])
def test_what_is_not_a_share_is_refused(successes: int, trials: int) -> None:
    for interval in (wilson, clopper_pearson):
        with pytest.raises(ValueError, match="trials"):
            interval(successes, trials)


@given(CLUSTERS)
def test_interval_contains_its_share_and_stays_a_share(clusters: list[tuple[int, int]]) -> None:
    share = clustered_share([c[0] for c in clusters], [c[1] for c in clusters])
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert share.high > share.low, "no finite number of prompts makes a share certain"


def test_one_position_a_prompt_is_plain_wilson() -> None:
    share = clustered_share([1, 0, 1, 1], [1, 1, 1, 1])
    assert (share.low, share.high, share.method) == (*wilson(3, 4), "wilson")


def test_prompts_that_all_agree_count_as_prompts_not_positions() -> None:
    share = clustered_share([0] * 10, [3] * 10)
    assert (share.low, share.high) == wilson(0, 10)
    assert clustered_share([5], [5]).low == wilson(1, 1)[0]


def test_clustered_positions_give_a_wider_interval_than_independent_ones() -> None:
    together = clustered_share([9, 9, 9, 0, 0, 9], [9] * 6)
    low, high = wilson(36, 54)
    assert together.method == "bootstrap"
    assert together.high - together.low > 1.5 * (high - low)


def test_never_narrower_than_independent_positions_would_allow() -> None:
    share = clustered_share([1] + [0] * 9, [3] * 10)
    assert share.high == wilson(1, 30)[1] > bootstrap([1] + [0] * 9, [3] * 10)[1]


def test_bootstrap_is_deterministic_and_depends_on_its_seed() -> None:
    successes, trials = [1, 2, 0, 3, 1, 1, 2], [3] * 7
    assert bootstrap(successes, trials) == bootstrap(successes, trials)
    assert bootstrap(successes, trials, resamples=99) != bootstrap(
        successes, trials, resamples=99, seed=1
    )


@pytest.mark.parametrize("mean", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8])
def test_interval_covers_the_truth_with_ten_prompts(mean: float, correlation: float) -> None:
    """Ten prompts of three positions; a plain percentile bootstrap covers 22 to 95 % here."""
    random, runs, covered = np.random.default_rng(0), 300, 0
    for _ in range(runs):
        chances = np.full(10, mean)
        if correlation:
            spread = (1 - correlation) / correlation
            chances = random.beta(mean * spread, (1 - mean) * spread, 10)
        share = clustered_share(random.binomial(3, chances).tolist(), [3] * 10)
        covered += share.low <= mean <= share.high
    assert covered / runs >= 0.9


@pytest.mark.parametrize("trials", [1, 2, 5, 20])
def test_the_exact_interval_covers_every_share(trials: int) -> None:
    ends = [clopper_pearson(count, trials) for count in range(trials + 1)]
    for share in np.linspace(0, 1, 101):
        covered = sum(
            math.comb(trials, count) * share**count * (1 - share) ** (trials - count)
            for count, end in enumerate(ends)
            if end.low <= share <= end.high
        )
        assert covered >= 0.95 - 1e-12


def test_no_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 and 0 prompts"):
        clustered_share([], [])


def test_unordered_chance_equals_a_simulation_of_the_score() -> None:
    prompt, vocabulary = [1, 1, 1, 4, 7], 9
    random = np.random.default_rng(0)
    hits = [
        sum(found_unordered(random.integers(0, vocabulary, 5).tolist(), prompt, [True] * 5))
        for _ in range(20_000)
    ]
    assert chance_unordered(prompt, vocabulary) == pytest.approx(np.mean(hits) / 5, rel=0.02)


def test_unordered_chance_of_a_real_vocabulary_is_about_its_size_over_the_vocabulary() -> None:
    assert chance_unordered(list(range(14)), 49152) == pytest.approx(14 / 49152, rel=1e-3)
    assert chance_unordered([], 10) == 0


def test_few_prompts_have_no_distribution_free_interval_of_a_median() -> None:
    assert clustered_median([[float(i)] for i in range(5)]).low is None
    found = clustered_median([[float(i)] for i in range(6)])
    assert (found.value, found.low, found.high) == (2.0, 0.0, 5.0)


def test_a_median_survives_infinite_values_and_ignores_order() -> None:
    values = [[0.0, 1.0], [math.inf], [3.0], [math.inf, 2.0], [5.0], [4.0], [math.inf]]
    found = clustered_median(values)
    assert found.value == 4.0
    assert found.high == math.inf
    assert clustered_median(values[::-1]).value == found.value


def test_no_prompts_have_no_median() -> None:
    for values in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="each must have values"):
            clustered_median(values)


@pytest.mark.parametrize("prompts", [6, 10, 20])
def test_the_interval_of_a_median_covers_it(prompts: int) -> None:
    generator = np.random.default_rng(prompts)
    hits = 0
    for _ in range(300):
        shared = generator.normal(size=(prompts, 1))
        values = np.exp(shared + generator.normal(size=(prompts, 3)))
        found = clustered_median(values.tolist())
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.0 <= found.high
    assert hits / 300 >= 0.92
