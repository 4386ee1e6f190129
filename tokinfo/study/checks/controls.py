"""Whether a study's controls are controls: targets that no prompt of the model explains.

These checks use what the study says of a model. The cell checks what only a model's files say: the
width and the tokenizer of a pretrained one (`tokinfo.solvers.pose`).
"""

from __future__ import annotations

from collections.abc import Iterator

from tokinfo.study import targets
from tokinfo.study.checks.draft import Draft, parsed
from tokinfo.study.grid import Grid
from tokinfo.study.masks import Mask
from tokinfo.study.mistakes import Keys, Mistake
from tokinfo.study.sites import Site
from tokinfo.study.sources import Built, MixerSource, Model
from tokinfo.study.study import Study

_FAR = 1 << 12
"""A length beyond any prompt's."""


def mistakes(path: tuple[str, int], grid: Grid, draft: Draft) -> Iterator[Mistake]:
    """Yield the targets of a grid that some prompt could explain.

    Args:
        path: keys that lead to the grid.
        grid: the grid; names of models that the study lacks are passed over.
        draft: the study, as far as it could be read.
    """
    for place, text in enumerate(grid.targets):
        where = (*path, "targets", place)
        if text == targets.SHUFFLED:
            yield from _shuffled(where, grid)
        elif targets.other_model(text):
            yield from _other(where, text, grid, draft)


def _shuffled(where: Keys, grid: Grid) -> Iterator[Mistake]:
    if any(site.place == "embedding" for site in _sites(grid)):
        message = "at the site embedding the shuffled prompt itself explains it"
        yield Mistake(where, targets.SHUFFLED, message, "another grid for that site")
    for mask in grid.masks:
        visible = parsed(Mask, mask)
        if visible is not None and not visible.named and visible.count(_FAR) == 1:
            message = (
                f"needs two visible positions, and mask {mask!r} leaves one, which a prompt of one "
                "repeated token may explain"
            )
            yield Mistake(where, targets.SHUFFLED, message, "another grid for that mask")
            return


def _other(where: Keys, target: str, grid: Grid, draft: Draft) -> Iterator[Mistake]:
    """Another model's activations: of the same prompt and shape, by other weights."""
    other = targets.other_model(target) or ""
    theirs = draft.sound_source(other)
    if theirs is None:
        return
    if isinstance(theirs, MixerSource) and False in grid.causal:
        message = "its model is a mixer, which is causal by construction"
        yield Mistake(where, target, message, "another grid for causal: [false]")
    for model in grid.models:
        ours = draft.sound_source(model)
        if ours is None:
            continue
        sites = [site.resolve(ours.blocks) for site in _sites(grid)]
        read = [site.block for site in sites]
        beyond = [block for block in read if theirs.blocks < block <= ours.blocks]
        why = _unlike(draft.study, model, other)
        if why is None and beyond:
            why = f"has {theirs.blocks} blocks, and block {max(beyond)} is read"
        if why is None and theirs.blocks != ours.blocks and any(s.place == "norm" for s in sites):
            why = f"has {theirs.blocks} blocks, not {ours.blocks}, in front of its final norm"
        if why is not None:
            allowed = "a model of the same tokenizer and width, of other weights"
            yield Mistake(where, target, f"{why} (for model `{model}`)", allowed)


def _unlike(study: Study, model: str, other: str) -> str | None:
    """Return why another model's activations are no control of a model; None: no reason found."""
    mine, its = study.models[model], study.models[other]
    ours, theirs = study.sources[mine.source], study.sources[its.source]
    if _weights(mine) == _weights(its):
        return "has the same weights, so the true prompt may explain it"
    if isinstance(ours, Built) and isinstance(theirs, Built):
        if ours.tokenizer != theirs.tokenizer:
            return f"has another tokenizer, `{theirs.tokenizer}` for `{ours.tokenizer}`"
        if ours.d_model != theirs.d_model:
            return f"is {theirs.d_model} wide, not {ours.d_model}"
    elif isinstance(ours, Built) or isinstance(theirs, Built):
        return "has another tokenizer: only one of the two models is built with the study's"
    if theirs.n_ctx < ours.n_ctx:
        return f"holds {theirs.n_ctx} positions, not {ours.n_ctx}"
    return None


def _weights(model: Model) -> tuple[object, ...]:
    """Return what decides a model's weights before they are quantised."""
    return model.source, model.state, model.seed, model.at


def _sites(grid: Grid) -> list[Site]:
    return [site for text in grid.sites if (site := parsed(Site.parse, text)) is not None]
