"""Which search by mixtures applies where attention can be taken apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tokinfo.solvers import annealing, convex
from tokinfo.solvers.best import Best
from tokinfo.solvers.problem import Problem


class Search(NamedTuple):
    """A search by mixtures.

    Attributes:
        path: its name, of a prompt's result.
        run: searches a prompt, from the best one so far, and keeps better ones there.
    """

    path: str
    run: Callable[[Best], None]


def through_attention(problem: Problem) -> Search | None:
    """Return the search that takes attention apart, else None: the model has none, or it cannot."""
    attention = convex.first_attention(problem)
    if attention is not None:
        return Search("convex", lambda best: convex.search(best, attention))
    streams = annealing.streams(problem)
    if streams is None:
        return None
    start = annealing.Start(len(problem.decoder.embedding))
    return Search("annealing", lambda best: annealing.search(best, streams, start))
