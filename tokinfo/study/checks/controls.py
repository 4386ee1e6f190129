"""Whether a study's controls are controls: targets that no prompt of the model explains.

Knows of a model what the study says. What only its files say (the width and the tokenizer of a
pretrained model) the cell itself checks (`tokinfo.solvers.pose`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tokinfo.study import targets
from tokinfo.study.masks import Mask
from tokinfo.study.mistakes import Problem
from tokinfo.study.sites import Site
from tokinfo.study.sources import MixerSource, Model, Source, TransformerSource
from tokinfo.study.study import Grid, Study

_FAR = 1 << 12
"""A length beyond any prompt's."""


def problems(
    path: tuple[str, int], grid: Grid, study: Study, source: Callable[[str], Source | None]
) -> Iterator[Problem]:
    """Yield the targets of a grid that are none, or that some prompt could explain.

    Args:
        path: keys that lead to the grid.
        grid: the grid; names of models that the study lacks are passed over.
        study: the study, as far as it could be read.
        source: a model's source, None where it could not be read as it was written.
    """
    for place, text in enumerate(grid.targets):
        where = (*path, "targets", place)
        try:
            kind = targets.kind(text)
        except ValueError:
            yield Problem(where, text, "is not a target", targets.ALLOWED)
            continue
        if kind == "shuffled":
            yield from _shuffled(where, grid)
        elif kind == "of":
            yield from _other(where, grid, study, source, text)


def _shuffled(where: tuple[str | int, ...], grid: Grid) -> Iterator[Problem]:
    if any(site.place == "embedding" for site in _sites(grid)):
        message = "at the site embedding the shuffled prompt itself explains it"
        yield Problem(where, targets.SHUFFLED, message, "another grid for that site")
    for mask in grid.masks:
        if _visible(mask) == 1:
            message = (
                f"needs two visible positions, and mask {mask!r} shows one, which a prompt of one "
                "repeated token may explain"
            )
            yield Problem(where, targets.SHUFFLED, message, "another grid for that mask")
            return


def _other(
    where: tuple[str | int, ...],
    grid: Grid,
    study: Study,
    source: Callable[[str], Source | None],
    target: str,
) -> Iterator[Problem]:
    """Another model's activations: of the same prompt and shape, by other weights."""
    other = targets.other_model(target) or ""
    theirs = source(other)
    if theirs is None:
        return
    if isinstance(theirs, MixerSource) and False in grid.causal:
        message = "its model is a mixer, which is causal by construction"
        yield Problem(where, target, message, "another grid for causal: [false]")
    for model in grid.models:
        ours = source(model)
        if ours is None:
            continue
        read = [site.resolve(ours.blocks).block for site in _sites(grid)]
        beyond = [block for block in read if theirs.blocks < block <= ours.blocks]
        why = _unlike(study, model, other)
        if why is None and beyond:
            why = f"has {theirs.blocks} blocks, and block {max(beyond)} is read"
        if why is not None:
            allowed = "a model of the same tokenizer and width, of other weights"
            yield Problem(where, target, f"{why} (for model `{model}`)", allowed)


def _unlike(study: Study, model: str, other: str) -> str | None:
    """Return why another model's activations are no control of a model, as far as is known."""
    mine, its = study.models[model], study.models[other]
    ours, theirs = study.sources[mine.source], study.sources[its.source]
    if _weights(mine) == _weights(its):
        return "has the same weights, so the true prompt may explain it"
    local = (MixerSource, TransformerSource)
    if isinstance(ours, local) and isinstance(theirs, local):
        if ours.tokenizer != theirs.tokenizer:
            return f"has another tokenizer, `{theirs.tokenizer}` for `{ours.tokenizer}`"
        if ours.d_model != theirs.d_model:
            return f"is {theirs.d_model} wide, not {ours.d_model}"
    elif isinstance(ours, local) or isinstance(theirs, local):
        return "has another tokenizer: of the two models one brings its own"
    if theirs.n_ctx < ours.n_ctx:
        return f"holds {theirs.n_ctx} positions, not {ours.n_ctx}"
    return None


def _weights(model: Model) -> tuple[object, ...]:
    """Return what decides a model's weights before they are quantised."""
    return model.source, model.state, model.seed, model.at


def _sites(grid: Grid) -> Iterator[Site]:
    """Yield the sites of a grid that are some; the others are problems of their own."""
    for text in grid.sites:
        try:
            yield Site.parse(text)
        except ValueError:
            continue


def _visible(mask: str) -> int | None:
    """Return how many positions a mask shows of a long prompt; None: it is no mask."""
    try:
        return Mask(mask).count(_FAR)
    except ValueError:
        return None
