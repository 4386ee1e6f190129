"""Checks of a study that need more than one of its values.

What one value may be, the schema says (`tokinfo.study`); that the values fit together is said
here. Every check yields all it finds. A study with mistakes in its form is checked as far as
it could be read: `Draft` says what is missing from it, so that one mistake is told once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tokinfo import masks, prompt_fit, sites
from tokinfo.masks import Mask
from tokinfo.problems import MISSING, Problem, listing, suggestion
from tokinfo.sites import Site
from tokinfo.sources import FileCorpus, LocalSource, MixerSource, Source, TransformerSource
from tokinfo.study import Grid, Study

MOST_CELLS = 1_000_000
HELD_OUT = ".held-out"
"""Ending of a corpus's second file, `corpora/{corpus}.held-out.txt`."""


@dataclass
class Draft:
    """A study, or as much of one as could be read.

    Attributes:
        study: the part that is valid in itself.
        broken: (section, name) of entries that are there but could not be read.
        repaired: (section, name, key) of wrong values that a default stands in for.
        sections: sections that are absent or no mapping: nothing refers to them in vain.
        complete: whether the study is valid in itself as a whole.
    """

    study: Study
    broken: set[tuple[str, str]] = field(default_factory=set)
    repaired: set[tuple[str, str, str]] = field(default_factory=set)
    sections: set[str] = field(default_factory=set)
    complete: bool = True

    def names(self, section: str) -> list[str]:
        """Return every name a section has, readable or not."""
        broken = [name for place, name in self.broken if place == section]
        return [*getattr(self.study, section), *broken]

    def sound(self, section: str, name: str, *keys: str) -> bool:
        """Return whether an entry's values of these keys were read as they were written."""
        known = name in getattr(self.study, section)
        return known and not any((section, name, key) in self.repaired for key in keys)

    def source(self, model: str) -> Source | None:
        """Return the source of a model, or None where either could not be read."""
        known = self.study.models.get(model)
        return None if known is None else self.study.sources.get(known.source)


def check(draft: Draft) -> list[Problem]:
    """Return everything that does not fit together."""
    problems = [
        *_names(draft),
        *_duplicates(draft.study),
        *_study(draft.study),
        *_sources(draft),
        *_models(draft),
        *_prompts(draft.study),
        *_files(draft),
        *_grids(draft),
    ]
    problems.extend(_size(draft.study))
    if draft.complete and not problems:
        problems.extend(_paths(draft.study))
    return problems


# --- names --------------------------------------------------------------------------------


def _names(draft: Draft) -> Iterator[Problem]:
    study = draft.study
    for name, tokenizer in study.tokenizers.items():
        path = ("tokenizers", name, "corpus")
        yield from _reference(draft, path, tokenizer.corpus, "corpora", "corpus")
    for name, source in study.sources.items():
        if isinstance(source, MixerSource | TransformerSource):
            path = ("sources", name, "tokenizer")
            yield from _reference(draft, path, source.tokenizer, "tokenizers", "tokenizer")
    for name, model in study.models.items():
        path = ("models", name, "source")
        yield from _reference(draft, path, model.source, "sources", "source")
    for index, grid in enumerate(study.grids):
        for axis, what in (("models", "model"), ("solvers", "solver"), ("prompts", "prompt set")):
            for place, name in enumerate(getattr(grid, axis)):
                yield from _reference(draft, ("grids", index, axis, place), name, axis, what)


def _reference(
    draft: Draft, path: tuple[str | int, ...], name: str, section: str, what: str
) -> Iterator[Problem]:
    known = draft.names(section)
    if section not in draft.sections and name not in known:
        yield Problem(path, name, f"unknown {what}{suggestion(name, known)}", listing(known))


def _duplicates(study: Study) -> Iterator[Problem]:
    lists: list[tuple[tuple[str | int, ...], Sequence[object]]] = [(("grids",), study.grids)]
    lists += [(("prompts", name), prompts) for name, prompts in study.prompts.items()]
    for index, grid in enumerate(study.grids):
        for axis in Grid.model_fields:
            canonical = [_canonical(axis, value) for value in getattr(grid, axis)]
            lists.append((("grids", index, axis), canonical))
    for path, values in lists:
        firsts: dict[str, int] = {}
        for place, value in enumerate(values):
            if (first := firsts.setdefault(repr(value), place)) != place:
                again = Problem((*path, first), MISSING, "").key
                shown = MISSING if isinstance(value, Grid) else value
                yield Problem((*path, place), shown, f"repeats {again}", "each value once")


def _canonical(axis: str, value: object) -> object:
    if axis == "masks":
        try:
            return Mask(str(value)).text
        except ValueError:
            return value
    return value


# --- single entries -----------------------------------------------------------------------


def _study(study: Study) -> Iterator[Problem]:
    path = PurePosixPath(study.results)
    if path.is_absolute() or ".." in path.parts or str(path) != study.results or not path.parts:
        message = "must be a relative path without `.`, `..` or a slash at its end"
        yield Problem(("results",), study.results, message, "such as results or results/smoke")
    if not study.name.strip():
        yield Problem(("name",), study.name, "is blank", "a title for the report")
    used = any("l1+cosine" in grid.metrics for grid in study.grids)
    if used and study.metric_weights.l1 == study.metric_weights.cosine == 0:
        message = "both weights are 0, so `l1+cosine` would measure nothing"
        yield Problem(("metric_weights",), MISSING, message, "at least one above 0")
    for name in study.corpora:
        if name.endswith(HELD_OUT):
            message = f"names that end in `{HELD_OUT}` are taken by held-out texts"
            yield Problem(("corpora", name), MISSING, message, "another name")
    for name, solver in study.solvers.items():
        restricted = solver.decode.restricted_to
        if restricted is not None and not restricted.strip():
            path_ = ("solvers", name, "decode", "restricted_to")
            yield Problem(path_, restricted, "is blank", "a text, or null for every token")


def _sources(draft: Draft) -> Iterator[Problem]:
    for name, source in draft.study.sources.items():
        path = ("sources", name)
        training = getattr(source, "training", None)
        if training is not None and draft.sound("sources", name, "training"):
            warmup, steps = training.warmup, training.steps
            if warmup > steps:
                message = f"is more than training.steps = {steps}"
                yield Problem((*path, "training", "warmup"), warmup, message, f"0 to {steps}")
        if isinstance(source, TransformerSource) and draft.sound("sources", name, "heads"):
            yield from _heads(path, source)
        if isinstance(source, MixerSource):
            for key, form in (("expansion", "expanded"), ("kernels", "parallel")):
                if key in source.model_fields_set and source.form != form:
                    message = f"has no meaning for form {source.form!r}"
                    value = getattr(source, key)
                    yield Problem((*path, key), value, message, f"only with form {form!r}")


def _heads(path: tuple[str, str], source: TransformerSource) -> Iterator[Problem]:
    width, heads = source.d_model, source.heads
    fitting = [
        n for n in range(1, min(width // 2, 1024) + 1) if width % n == 0 and width // n % 2 == 0
    ]
    if heads not in fitting:
        if width % heads:
            message = f"does not divide d_model = {width}"
        else:
            message = (
                f"makes heads of {width // heads} of d_model = {width}; "
                "rotary positions need an even size"
            )
        allowed = listing(map(str, fitting), "none for an odd d_model: choose an even one")
        yield Problem((*path, "heads"), heads, message, allowed)


def _models(draft: Draft) -> Iterator[Problem]:
    for name, model in draft.study.models.items():
        source = draft.study.sources.get(model.source)
        if source is None or not draft.sound("models", name, "state"):
            continue
        untrainable = isinstance(source, MixerSource | TransformerSource) and not source.training
        sound = draft.sound("sources", model.source, "training")
        if model.state == "trained" and untrainable and sound:
            yield Problem(
                ("models", name, "state"),
                "trained",
                f"source `{model.source}` has no training",
                f"untrained, or a `training:` in sources.{model.source}",
            )
        if model.state == "trained" and "seed" in model.model_fields_set:
            message = "a trained model has no random weights to seed"
            yield Problem(("models", name, "seed"), model.seed, message, "only state untrained")


def _prompts(study: Study) -> Iterator[Problem]:
    for name, prompts in study.prompts.items():
        if not prompts:
            yield Problem(("prompts", name), [], "is an empty set", "at least one prompt")
        for index, prompt in enumerate(prompts):
            if not prompt.strip():
                message = "is blank: there is nothing to recover"
                yield Problem(("prompts", name, index), prompt, message, "a text")


def _files(draft: Draft) -> Iterator[Problem]:
    """Files on this machine that some cell needs."""
    study = draft.study
    probed = dict.fromkeys(model for grid in study.grids for model in grid.models)
    sources = dict.fromkeys(study.models[name].source for name in probed if name in study.models)
    tokenizers = dict.fromkeys(
        source.tokenizer
        for name in sources
        if isinstance(source := study.sources.get(name), MixerSource | TransformerSource)
    )
    corpora = (study.tokenizers[name].corpus for name in tokenizers if name in study.tokenizers)
    for name in dict.fromkeys(corpora):
        corpus = study.corpora.get(name)
        if isinstance(corpus, FileCorpus) and not Path(corpus.path).is_file():
            yield Problem(("corpora", name, "path"), corpus.path, "there is no such file")
    for name in sources:
        source = study.sources.get(name)
        if isinstance(source, LocalSource) and draft.sound("sources", name, "n_ctx"):
            yield from _local_model(("sources", name), source)


def _local_model(path: tuple[str, str], source: LocalSource) -> Iterator[Problem]:
    try:
        config = json.loads((Path(source.path) / "config.json").read_text(encoding="utf-8"))
        depth, limit = config.get("num_hidden_layers"), config.get("max_position_embeddings")
    except OSError:
        message = "there is no config.json there"
        yield Problem((*path, "path"), source.path, message, "a directory by save_pretrained")
    except (ValueError, AttributeError):
        message = "its config.json is not a JSON object"
        yield Problem((*path, "path"), source.path, message, "a directory by save_pretrained")
    else:
        if isinstance(depth, int) and depth != source.blocks:
            message = f"the model in {source.path} has another number of blocks"
            yield Problem((*path, "blocks"), source.blocks, message, str(depth))
        if isinstance(limit, int) and limit < source.n_ctx:
            message = f"is more than the limit of the model in {source.path}"
            yield Problem((*path, "n_ctx"), source.n_ctx, message, f"2 to {limit}")


# --- grids --------------------------------------------------------------------------------


def _grids(draft: Draft) -> Iterator[Problem]:
    for index, grid in enumerate(draft.study.grids):
        readable = {
            model: source for model in grid.models if (source := draft.source(model)) is not None
        }
        yield from _sites(("grids", index), grid, readable)
        yield from _variants(("grids", index), grid, readable)
        yield from _masks(("grids", index), grid)
    yield from _lengths(draft)


def _sites(path: tuple[str, int], grid: Grid, models: dict[str, Source]) -> Iterator[Problem]:
    for place, text in enumerate(grid.sites):
        where = (*path, "sites", place)
        try:
            site = Site.parse(text)
        except ValueError:
            yield Problem(where, text, "is not a site", sites.ALLOWED)
            continue
        shallow = {name: s.blocks for name, s in models.items() if site.block > s.blocks}
        if shallow:
            depths = ", ".join(f"`{name}` ({blocks} blocks)" for name, blocks in shallow.items())
            most = min(shallow.values())
            yield Problem(
                where,
                text,
                f"is beyond the depth of {depths}",
                f"{site.place}.1 to {site.place}.{most}, or {site.place}.last",
            )
        if False in grid.residual and site.place in ("embedding", "mlp"):
            yield Problem(
                where,
                text,
                "is read without the residual around self-attention (residual: false), "
                "which has no meaning there",
                "attention.K or block.K, or another grid for this site",
            )


def _variants(path: tuple[str, int], grid: Grid, models: dict[str, Source]) -> Iterator[Problem]:
    mixers = [f"`{name}`" for name, source in models.items() if isinstance(source, MixerSource)]
    if False in grid.causal and mixers:
        yield Problem(
            (*path, "causal"),
            grid.causal,
            f"mixers are causal by construction: {', '.join(mixers)}",
            "[true], or another grid for these models",
        )
    fetched = [
        f"`{name}`"
        for name, source in models.items()
        if not isinstance(source, MixerSource | TransformerSource)
    ]
    if "n_ctx" in grid.padding and fetched:
        yield Problem(
            (*path, "padding"),
            grid.padding,
            f"pretrained models are not padded to n_ctx: {', '.join(fetched)}",
            "[none], or another grid for these models",
        )


def _masks(path: tuple[str, int], grid: Grid) -> Iterator[Problem]:
    for place, text in enumerate(grid.masks):
        try:
            Mask(text)
        except ValueError as error:
            message = "is not a mask"
            if "step" in str(error):
                message = "the step of a mask must be 1 or more"
            yield Problem((*path, "masks", place), text, message, masks.ALLOWED)


def _lengths(draft: Draft) -> Iterator[Problem]:
    probed = dict.fromkeys(model for grid in draft.study.grids for model in grid.models)
    # With a default in place of a wrong n_ctx nothing can be said about what is too long.
    models = draft.study.models
    known = [
        name
        for name in probed
        if name in models and draft.sound("sources", models[name].source, "n_ctx")
    ]
    yield from prompt_fit.problems(draft.study, *prompt_fit.token_bounds(draft.study, known))


# --- cells --------------------------------------------------------------------------------


def _size(study: Study) -> Iterator[Problem]:
    total = 0
    for grid in study.grids:
        product = 1
        for axis in Grid.model_fields:
            product *= len(getattr(grid, axis))
        total += product
    if total > MOST_CELLS:
        message = f"the grids stand for {total:,} cells"
        yield Problem(("grids",), MISSING, message, f"at most {MOST_CELLS:,}")


def _paths(study: Study) -> Iterator[Problem]:
    paths = Counter(cell.path for cell in study.cells())
    for path, count in paths.items():
        if count > 1:
            yield Problem(("grids",), path, f"{count} different cells would be this one file")
