"""Intervals for shares of tokens, and what guessing would give.

Positions of one prompt are not independent: a prompt is found whole or not at all more often
than chance would have it. So an interval resamples prompts, not positions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2000
SEED = 20240902


@dataclass(frozen=True)
class Share:
    """A share and its interval, all in [0, 1].

    Attributes:
        value: successes over trials.
        low: lower end of the interval.
        high: upper end of the interval.
        method: how the interval was made.
    """

    value: float
    low: float
    high: float
    method: Literal["wilson", "bootstrap", "clopper-pearson"]


def wilson(successes: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval for a binomial share (E. B. Wilson, JASA 22, 1927).

    Unlike the textbook interval it keeps its coverage near 0 and 1 and for few trials.

    Raises:
        ValueError: no trials, or successes outside [0, trials].

    >>> tuple(round(end, 3) for end in wilson(0, 10))
    (0.0, 0.278)
    """
    if not trials > 0 or not 0 <= successes <= trials:
        raise ValueError(f"wilson: {successes} successes in {trials} trials")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # The ends are exact where the share is: rounding must not put 0 outside the interval of 0.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def clopper_pearson(successes: int, trials: int, level: float = LEVEL) -> Share:
    """Return a share with its exact interval (Clopper and Pearson, Biometrika 26, 1934).

    It covers at least ``level``, however few trials there are. Each end is the share at which the
    outcome, or one further away, has half of what is left of the probability.

    Raises:
        ValueError: no trials, or successes outside [0, trials].

    >>> share = clopper_pearson(0, 1)
    >>> share.low, round(share.high, 3)
    (0.0, 0.975)
    """
    if not trials > 0 or not 0 <= successes <= trials:
        raise ValueError(f"clopper_pearson: {successes} successes in {trials} trials")

    def at_least(count: int, share: float) -> float:
        terms = range(count, trials + 1)
        return sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in terms)

    def solve(count: int, aim: float) -> float:
        """Return the share at which ``count`` successes or more have the probability ``aim``."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if at_least(count, middle) < aim else (low, middle)
        return high

    tail = (1 - level) / 2
    return Share(
        successes / trials,
        0.0 if successes == 0 else solve(successes, tail),
        1.0 if successes == trials else solve(successes + 1, 1 - tail),
        "clopper-pearson",
    )


def bootstrap(
    successes: Sequence[float],
    trials: Sequence[float],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of sum(successes) / sum(trials).

    Whole clusters (prompts) are drawn with replacement (B. Efron, Annals of Statistics 7,
    1979). The draws depend on the number of clusters and the seed alone, so equal input gives
    an equal interval, and two settings with the same prompts are resampled alike.

    Args:
        successes: [cluster] positions that count, such as those found.
        trials: [cluster] scored positions, each more than 0.
        level: coverage aimed at.
        resamples: number of draws.
        seed: seed of the draws.
    """
    counts = _resampled(len(trials), resamples, seed)
    shares = (counts @ np.asarray(successes, float)) / (counts @ np.asarray(trials, float))
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def clustered_share(
    successes: Sequence[float], trials: Sequence[float], *, level: float = LEVEL
) -> Share:
    """Return the share of positions that count with an interval that respects prompts.

    - One position a prompt: prompts are independent trials, Wilson's interval.
    - Every prompt has the same share (all found, none found, or only one prompt): resampling
      prompts would give an interval of width 0, which ten prompts do not support. Wilson's
      interval with as many trials as PROMPTS, the most cautious reading.
    - Otherwise: bootstrap over prompts, widened where needed to Wilson's interval for as many
      independent trials as POSITIONS, because few prompts make a bootstrap too narrow and
      positions of one prompt never hold more information than independent ones.

    The interval is about other prompts of the same kind. It says nothing about other random
    weights, other training runs or other starts.

    Raises:
        ValueError: no prompts, or lists of different length.

    >>> clustered_share([0, 0, 0, 0], [3, 3, 3, 3]).high == wilson(0, 4)[1]
    True
    """
    if not trials or len(successes) != len(trials):
        raise ValueError(f"clustered_share: {len(successes)} and {len(trials)} prompts")
    found, scored = sum(successes), sum(trials)
    value = found / scored
    single = all(count == 1 for count in trials)
    equal = len({s / t for s, t in zip(successes, trials, strict=True)}) == 1
    if single or equal:
        low, high = wilson(value * len(trials), len(trials), level)
        return Share(value, low, high, "wilson")
    drawn = bootstrap(successes, trials, level=level)
    least = wilson(found, scored, level)
    return Share(value, min(drawn[0], least[0]), max(drawn[1], least[1]), "bootstrap")


@dataclass(frozen=True)
class Median:
    """A median and its interval; None where there are too few prompts for one."""

    value: float
    low: float | None
    high: float | None


def clustered_median(values: Sequence[Sequence[float]], *, level: float = LEVEL) -> Median:
    """Return the median over all values with an interval that respects prompts.

    The interval is a percentile bootstrap over prompts, widened where needed to the order
    statistics of the prompts' medians, whose coverage is exact for any distribution
    (binomial, one half): few prompts make a bootstrap of a median too narrow. Fewer than six
    prompts have no distribution-free 95 % interval, and get none. Of two middle values the
    lower is taken, so that infinite values (a threshold above all that were tried) are safe.

    Args:
        values: [prompt][position], no prompt empty.
        level: coverage aimed at.

    Raises:
        ValueError: no prompts, or a prompt without values.

    >>> clustered_median([[1.0], [2.0], [3.0]])
    Median(value=2.0, low=None, high=None)
    """
    if not values or not all(values):
        raise ValueError(f"clustered_median: {len(values)} prompts, each must have values")
    flat = np.concatenate([np.asarray(of_prompt, float) for of_prompt in values])
    cluster = np.repeat(np.arange(len(values)), [len(of_prompt) for of_prompt in values])
    order = np.argsort(flat, kind="stable")
    flat, cluster = flat[order], cluster[order]
    value = float(flat[(len(flat) - 1) // 2])
    count, tail = len(values), (1 - level) / 2
    below = np.cumsum([math.comb(count, k) / 2**count for k in range(count + 1)])
    outside = int((below <= tail).sum())  # prompts' medians beyond each end of the interval
    if outside == 0:
        return Median(value, None, None)
    weights = np.cumsum(_resampled(count, RESAMPLES, SEED)[:, cluster], axis=1)
    drawn = flat[np.argmax(weights >= weights[:, -1:] / 2, axis=1)]
    low = float(np.quantile(drawn, tail, method="lower"))
    high = float(np.quantile(drawn, 1 - tail, method="higher"))
    medians = sorted(sorted(each)[(len(each) - 1) // 2] for each in values)
    return Median(value, min(low, medians[outside - 1]), max(high, medians[-outside]))


def chance_unordered(token_ids: Sequence[int], vocabulary: int) -> float:
    """Return the expected unordered share when every found token is a uniform guess.

    A guess counts when it can be matched to a token of the prompt that no other guess has
    taken. For a token that occurs m times in a prompt of n, the expected number of matches is
    E[min(m, B)] with B binomial(n, 1/vocabulary).

    >>> chance_unordered([7, 8], 4)
    0.4375
    """
    size, p = len(token_ids), 1 / vocabulary
    if size == 0:
        return 0.0
    most = max(Counter(token_ids).values())
    exactly = [math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(most)]
    # E[min(m, B)] is the sum over k = 1..m of P(B >= k).
    at_least = np.cumsum([1 - sum(exactly[: k + 1]) for k in range(most)])
    return float(sum(at_least[m - 1] for m in Counter(token_ids).values()) / size)


@lru_cache(maxsize=64)
def _resampled(clusters: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """Return how often each cluster is drawn, [resample, cluster]."""
    generator = np.random.default_rng([seed, clusters])
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), resamples).astype(float)
