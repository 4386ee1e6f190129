"""Whether what descends may be a mixture: which solvers, settings, variants and models allow it.

Which models can be given mixtures, and how many candidates a text has, is known to a job alone
(`tokinfo.solvers.relaxed`).
"""

from __future__ import annotations

from collections.abc import Iterator

from tokinfo.io.errors import InvalidError
from tokinfo.study.architecture import architecture_of
from tokinfo.study.checks.draft import Draft
from tokinfo.study.grid import Grid
from tokinfo.study.mistakes import Mistake, listing
from tokinfo.study.solvers import (
    MIXING,
    MOST_ENTRIES,
    MOST_MIXER_ENTRIES,
    AdamSolver,
    ChapterSolver,
)
from tokinfo.study.sources import Built, MixerSource, Source

NAME = "parametrisation `mixture`"


def mistakes(path: tuple[str, int], grid: Grid, draft: Draft) -> Iterator[Mistake]:
    """Yield what has no meaning in a grid whose parametrisations include mixtures."""
    if "mixture" not in grid.parametrisations:
        return
    apart = "or another grid for this parametrisation"
    if "n_ctx" in grid.padding:
        message = f"pads are sought like any token, and in {NAME} they are no candidates"
        yield Mistake((*path, "padding"), grid.padding, message, f"[none], {apart}")
    if False in grid.causal:
        message = f"in {NAME} a candidate is seen by later positions alone"
        yield Mistake((*path, "causal"), grid.causal, message, f"[true], {apart}")
    solvers = draft.study.solvers
    fitting = [name for name, solver in solvers.items() if solver.kind in MIXING]
    for place, name in enumerate(grid.solvers):
        where, solver = (*path, "solvers", place), solvers.get(name)
        if isinstance(solver, ChapterSolver | AdamSolver):
            if settings := " and ".join(_embedded(solver)):
                message = f"sets {settings}, which have no meaning for {NAME}"
                yield Mistake(where, name, message, f"{settings} left out, {apart}")
            if solver.decode.restricted_to is None:
                yield from _whole(where, grid, draft, name)
        elif solver is not None:
            message = f"is of kind {solver.kind}, which has no {NAME}"
            allowed = f"solvers of kind {listing(MIXING)}: {listing(fitting, 'none here')}"
            yield Mistake(where, name, message, allowed)


def _embedded(solver: ChapterSolver | AdamSolver) -> Iterator[str]:
    if isinstance(solver, AdamSolver):
        plain = AdamSolver()
        for setting in ("clamp", "nearest_penalty", "project"):
            if getattr(solver, setting) != getattr(plain, setting):
                yield setting


def _whole(
    path: tuple[str, int, str, int], grid: Grid, draft: Draft, solver: str
) -> Iterator[Mistake]:
    """Yield that a vocabulary alone, at one position beside another, is too many entries."""
    for model in grid.models:
        source = draft.source(model)
        vocabulary = 0 if source is None else _vocabulary(source, draft)
        most = MOST_MIXER_ENTRIES if isinstance(source, MixerSource) else MOST_ENTRIES
        if vocabulary >= most:
            message = (
                f"has the {vocabulary:,} tokens of `{model}` as candidates at each position, and "
                f"{NAME} takes at most {most:,} entries of the sequence in all"
            )
            allowed = f"a text of fewer tokens in solvers.{solver}.decode.restricted_to"
            yield Mistake(path, solver, message, allowed)
            return


def _vocabulary(source: Source, draft: Draft) -> int:
    """Return how many tokens a source's model has; 0: nothing here says so."""
    if isinstance(source, Built):
        tokenizer = draft.study.tokenizers.get(source.tokenizer)
        return 0 if tokenizer is None else tokenizer.vocabulary
    try:
        found = architecture_of(source)
    except InvalidError:
        return 0  # a mistake of its own
    return 0 if found is None else found.vocabulary
