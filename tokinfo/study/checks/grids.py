"""Whether a study's grids can be run: their sites, variants, solvers, sizes and files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from tokinfo.study import targets
from tokinfo.study.checks import chats, controls, mixtures, prompts
from tokinfo.study.checks.draft import Draft, parsed
from tokinfo.study.grid import Grid
from tokinfo.study.mistakes import MISSING, Mistake, listing
from tokinfo.study.sites import Site
from tokinfo.study.solvers import SWEEPING, SolverBase
from tokinfo.study.sources import Built, MixerSource, Pretrained, Source
from tokinfo.study.study import Study

MOST_CELLS = 1_000_000


def mistakes(draft: Draft) -> Iterator[Mistake]:
    """Yield what is wrong with every grid, and the prompts that do not suit one."""
    for index, grid in enumerate(draft.study.grids):
        readable = {
            model: source for model in grid.models if (source := draft.source(model)) is not None
        }
        yield from _sites(("grids", index), grid, readable)
        yield from _variants(("grids", index), grid, readable)
        yield from _solvers(draft, ("grids", index), grid)
        yield from _decoding(draft, ("grids", index), grid, readable)
        yield from controls.mistakes(("grids", index), grid, draft)
        yield from mixtures.mistakes(("grids", index), grid, draft)
    yield from chats.mistakes(draft)
    yield from _lengths(draft)


def _sites(path: tuple[str, int], grid: Grid, models: dict[str, Source]) -> Iterator[Mistake]:
    for place, text in enumerate(grid.sites):
        where = (*path, "sites", place)
        if (site := parsed(Site.parse, text)) is None:
            continue
        shallow = {name: s.blocks for name, s in models.items() if site.block > s.blocks}
        if shallow:
            depths = ", ".join(f"`{name}` ({blocks} blocks)" for name, blocks in shallow.items())
            most = min(shallow.values())
            yield Mistake(
                where,
                text,
                f"is beyond the depth of {depths}",
                f"{site.place}.1 to {site.place}.{most}, or {site.place}.last",
            )
        mixers = [f"`{name}`" for name, s in models.items() if isinstance(s, MixerSource)]
        if site.place == "kv" and mixers:
            message = f"is nowhere in a mixer, which has no keys and values: {', '.join(mixers)}"
            yield Mistake(where, text, message, "another grid for these models")
        if site.place == "kv" and False in grid.causal:
            message = "is read from a cache, which holds what a causal mask lets through"
            yield Mistake(where, text, message, "causal: [true], or another grid for this site")
        if False in grid.residual and site.place in ("embedding", "mlp", "norm", "kv"):
            yield Mistake(
                where,
                text,
                "is read without the residual around self-attention (residual: false), "
                "which has no meaning there",
                "attention.K or block.K, or another grid for this site",
            )


def _variants(path: tuple[str, int], grid: Grid, models: dict[str, Source]) -> Iterator[Mistake]:
    mixers = [f"`{name}`" for name, source in models.items() if isinstance(source, MixerSource)]
    if False in grid.causal and mixers:
        yield Mistake(
            (*path, "causal"),
            grid.causal,
            f"mixers are causal by construction: {', '.join(mixers)}",
            "[true], or another grid for these models",
        )
    fetched = [f"`{name}`" for name, source in models.items() if isinstance(source, Pretrained)]
    if "n_ctx" in grid.padding and fetched:
        yield Mistake(
            (*path, "padding"),
            grid.padding,
            f"pretrained models are not padded to n_ctx: {', '.join(fetched)}",
            "[none], or another grid for these models",
        )


def _solvers(draft: Draft, path: tuple[str, int], grid: Grid) -> Iterator[Mistake]:
    solvers = draft.study.solvers
    sweeping = [name for name, solver in solvers.items() if solver.kind in SWEEPING]
    for place, name in enumerate(grid.identify):
        if name in solvers and name not in sweeping:
            message = f"is of kind {solvers[name].kind}, which does not say what is identifiable"
            allowed = f"solvers of kind {listing(SWEEPING)}: {listing(sweeping, 'none here')}"
            yield Mistake((*path, "identify", place), name, message, allowed)
    if not grid.solvers and not grid.identify:
        message = "is empty, and `identify` names no solver either"
        yield Mistake((*path, "solvers"), [], message, listing(solvers))
    elif not grid.solvers and grid.targets != [targets.OWN]:
        message = "only `solvers` are given other targets, and this grid has none"
        yield Mistake((*path, "targets"), grid.targets, message, f"[{targets.OWN}], or solvers")


def _decoding(
    draft: Draft, path: tuple[str, int], grid: Grid, models: dict[str, Source]
) -> Iterator[Mistake]:
    """A square embedding matrix has a pseudo-inverse that nothing can be read with."""
    solvers = draft.study.solvers
    descents = [one for name in grid.solvers if isinstance(one := solvers.get(name), SolverBase)]
    if all(solver.decode.method != "pseudo-inverse" for solver in descents):
        return
    for place, name in enumerate(grid.models):
        source = models.get(name)
        if not isinstance(source, Built):
            continue
        tokenizer = draft.study.tokenizers.get(source.tokenizer)
        if tokenizer is not None and tokenizer.vocabulary == source.d_model:
            message = (
                f"is as wide as its vocabulary is large ({source.d_model}): the pseudo-inverse of "
                "a square matrix multiplies what a descent leaves over"
            )
            allowed = "another width or vocabulary, or solvers with `decode: {method: nearest}`"
            yield Mistake((*path, "models", place), name, message, allowed)


def _lengths(draft: Draft) -> Iterator[Mistake]:
    probed = dict.fromkeys(model for grid in draft.study.grids for model in grid.models)
    # With a default in place of a wrong n_ctx nothing can be said about what is too long.
    models = draft.study.models
    sources = {name: models[name].source for name in probed if name in models}
    sound = [name for name, source in sources.items() if draft.sound("sources", source, "n_ctx")]
    yield from prompts.mistakes(draft.study, *prompts.token_bounds(draft.study, sound))


def size(study: Study) -> Iterator[Mistake]:
    """Yield that the grids stand for more cells than can be listed."""
    total = 0
    for grid in study.grids:
        sizes = {axis: len(getattr(grid, axis)) for axis in Grid.model_fields}
        identify = sizes.pop("identify")
        once = ("solvers", "metrics", "parametrisations", "targets", "seeds")
        searched = math.prod(sizes[axis] for axis in once)
        total += math.prod(n for axis, n in sizes.items() if axis not in once) * (
            searched + identify
        )
    if total > MOST_CELLS:
        message = f"the grids stand for {total:,} cells"
        yield Mistake(("grids",), MISSING, message, f"at most {MOST_CELLS:,}")


def paths(study: Study) -> Iterator[Mistake]:
    """Yield every file that would be that of two cells."""
    for path, count in Counter(cell.path for cell in study.cells()).items():
        if count > 1:
            yield Mistake(("grids",), path, f"{count} different cells would be this one file")
