"""Checks of a study that need more than one of its values.

What one value may be, the schema says (`tokinfo.study.study`); that the values fit together is said
here. Every check yields all it finds. A study with mistakes in its form is checked as far as
it could be read: `Draft` says what is missing from it, so that one mistake is told once.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from tokinfo.study import architecture, masks, sites, targets
from tokinfo.study.checks import claims as claim_fit
from tokinfo.study.checks import controls as target_fit
from tokinfo.study.checks import prompts as prompt_fit
from tokinfo.study.checks.draft import Draft
from tokinfo.study.masks import Mask
from tokinfo.study.mistakes import MISSING, Problem, listing, suggestion
from tokinfo.study.sites import Site
from tokinfo.study.solvers import SWEEPING, SolverBase
from tokinfo.study.sources import (
    HubSource,
    LocalSource,
    MixerSource,
    Model,
    Pretrained,
    Source,
    Training,
    TransformerSource,
)
from tokinfo.study.study import Grid, Study

MOST_CELLS = 1_000_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
HELD_OUT = ".held-out"
"""Ending of a corpus's second file, `corpora/{corpus}.held-out.txt`."""


def check(draft: Draft) -> list[Problem]:
    """Return everything that does not fit together."""
    problems = [
        *_names(draft),
        *_duplicates(draft.study),
        *_study(draft.study),
        *_sources(draft),
        *_models(draft),
        *_prompts(draft.study),
        *_passages(draft),
        *_asked(draft),
    ]
    seen = {(problem.path, problem.message) for problem in problems}
    problems += [
        problem
        for problem in claim_fit.problems(draft, lambda study: _asked(replace(draft, study=study)))
        if (problem.path, problem.message) not in seen
    ]
    problems.extend(_size(draft.study))
    if draft.complete and not problems:
        problems.extend(_paths(draft.study))
    return problems


def _asked(draft: Draft) -> Iterator[Problem]:
    """Yield what is wrong with a study's grids and the files that they need."""
    yield from _files(draft)
    yield from _grids(draft)


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
    for name, passages in study.passages.items():
        path = ("passages", name, "corpus")
        yield from _reference(draft, path, passages.corpus, "corpora", "corpus")
        path = ("passages", name, "tokenizer")
        yield from _reference(draft, path, passages.tokenizer, "tokenizers", "tokenizer")
    for index, grid in enumerate(study.grids):
        for axis, section, what in _REFERENCES:
            for place, name in enumerate(getattr(grid, axis)):
                yield from _reference(draft, ("grids", index, axis, place), name, section, what)
        for place, target in enumerate(grid.targets):
            if other := targets.other_model(target):
                where = ("grids", index, "targets", place)
                yield from _reference(draft, where, other, "models", "model")
    if study.prior is not None:
        yield from _reference(draft, ("prior",), study.prior, "corpora", "corpus")


_REFERENCES = (
    ("models", "models", "model"),
    ("solvers", "solvers", "solver"),
    ("identify", "solvers", "solver"),
    ("prompts", "prompts", "prompt set"),
)
"""Axes of a grid that hold names, the section of the study that has them, and what they are."""


def _reference(
    draft: Draft, path: tuple[str | int, ...], name: str, section: str, what: str
) -> Iterator[Problem]:
    known = draft.names(section)
    if section == "prompts":
        known += draft.names("passages")
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
    if not study.grids and not study.claims:
        yield Problem(("grids",), [], "is empty", "grids, or `claims`")
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
            yield from _snapshots((*path, "training", "snapshots"), training)
        if isinstance(source, TransformerSource) and draft.sound("sources", name, "heads"):
            yield from _heads(path, source)
        yield from _trust(path, source)
        if isinstance(source, MixerSource):
            for key, form in (("expansion", "expanded"), ("kernels", "parallel")):
                if key in source.model_fields_set and source.form != form:
                    message = f"has no meaning for form {source.form!r}"
                    value = getattr(source, key)
                    yield Problem((*path, key), value, message, f"only with form {form!r}")


def _trust(path: tuple[str, str], source: Source) -> Iterator[Problem]:
    if not isinstance(source, HubSource) or not source.trust_remote_code:
        return
    if not _COMMIT.fullmatch(source.revision):
        # Whoever may push to a branch would choose what is run here tomorrow.
        yield Problem(
            (*path, "revision"),
            source.revision,
            "is not a commit, which trust_remote_code needs",
            "40 hexadecimal digits",
        )


def _snapshots(path: tuple[str, ...], training: Training) -> Iterator[Problem]:
    firsts: dict[int, float] = {training.steps: 1.0}
    for place, share in enumerate(training.snapshots):
        step = training.step_at(share)
        if share > 0 and step == 0:
            message = f"is less than half a step of {training.steps}"
            yield Problem(
                (*path, place), share, message, f"0, or more than {0.5 / training.steps:g}"
            )
        elif step in firsts:
            message = f"is step {step} of {training.steps}, as {firsts[step]:g} is"
            yield Problem((*path, place), share, message, "each step once")
        firsts.setdefault(step, share)


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
        if model.at < 1 and draft.sound("models", name, "at") and sound:
            yield from _at(("models", name, "at"), model, source)
    for name, model in draft.study.models.items():
        if draft.sound("models", name, "quantization"):
            yield from _precision(("models", name), model)


def _at(path: tuple[str, ...], model: Model, source: Source) -> Iterator[Problem]:
    training = getattr(source, "training", None)
    if model.state != "trained" or training is None:
        message = "only a model that is trained here is taken along its training"
        yield Problem(path, model.at, message, "1, or another model")
    elif model.at not in training.snapshots:
        kept = [f"{share:g}" for share in (*training.snapshots, 1.0)]
        message = f"is not among sources.{model.source}.training.snapshots"
        yield Problem(path, model.at, message, listing(kept))


def _precision(path: tuple[str, str], model: Model) -> Iterator[Problem]:
    held, computed = model.quantization, model.compute_dtype
    if computed is not None and held not in ("int8", "nf4") and computed not in (held, "float32"):
        message = f"weights in {held} would be rounded once more to compute in {computed}"
        allowed = f"null, float32, or quantization {computed}"
        yield Problem((*path, "compute_dtype"), computed, message, allowed)
    if "outlier_threshold" in model.model_fields_set and held != "int8":
        message = f"has no meaning for quantization {held!r}"
        threshold = model.outlier_threshold
        yield Problem(
            (*path, "outlier_threshold"), threshold, message, "only with quantization int8"
        )


def _prompts(study: Study) -> Iterator[Problem]:
    for name, prompts in study.prompts.items():
        if not prompts:
            yield Problem(("prompts", name), [], "is an empty set", "at least one prompt")
        for index, prompt in enumerate(prompts):
            if not prompt.strip():
                message = "is blank: there is nothing to recover"
                yield Problem(("prompts", name, index), prompt, message, "a text")


def _passages(draft: Draft) -> Iterator[Problem]:
    for name, passages in draft.study.passages.items():
        path = ("passages", name)
        if name in draft.study.prompts:
            message = "names a set of `prompts` too: a cell's file could be either's"
            yield Problem(path, MISSING, message, "another name")
        if draft.sound("passages", name, "tokens") and passages.tokens[0] > passages.tokens[1]:
            message = "the fewest tokens are more than the most"
            yield Problem((*path, "tokens"), passages.tokens, message, "[fewest, most]")


def _files(draft: Draft) -> Iterator[Problem]:
    """Files on this machine that some cell needs."""
    study = draft.study
    probed = dict.fromkeys(model for grid in study.grids for model in _models_of(grid))
    sources = dict.fromkeys(study.models[name].source for name in probed if name in study.models)
    tokenizers = dict.fromkeys(
        source.tokenizer
        for name in sources
        if isinstance(source := study.sources.get(name), MixerSource | TransformerSource)
    )
    sets = dict.fromkeys(name for grid in study.grids for name in grid.prompts)
    drawn = [study.passages[name] for name in sets if name in study.passages]
    tokenizers |= dict.fromkeys(passages.tokenizer for passages in drawn)
    corpora = [study.tokenizers[name].corpus for name in tokenizers if name in study.tokenizers]
    corpora += [passages.corpus for passages in drawn if passages.corpus in study.corpora]
    asked = [name for grid in study.grids for name in (*grid.solvers, *grid.identify)]
    if any(study.solvers[name].kind in SWEEPING for name in asked if name in study.solvers):
        corpora += [] if study.prior is None else [study.prior]
    for name in dict.fromkeys(corpora):
        corpus = study.corpora.get(name)
        path = None if corpus is None else corpus.path
        if path is not None and not Path(path).expanduser().is_file():
            yield Problem(("corpora", name, "path"), path, "there is no such file")
    for name in sources:
        source = study.sources.get(name)
        if isinstance(source, Pretrained) and draft.sound("sources", name, "config"):
            yield from architecture.problems(("sources", name), source)
        if isinstance(source, LocalSource | HubSource) and draft.sound("sources", name, "n_ctx"):
            yield from _local_model(("sources", name), source)


def _local_model(path: tuple[str, str], source: LocalSource | HubSource) -> Iterator[Problem]:
    if source.path is None:
        return
    try:
        file = Path(source.path).expanduser() / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
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
        yield from _solvers(draft, ("grids", index), grid)
        yield from _decoding(draft, ("grids", index), grid, readable)
        whole = partial(_whole_source, draft)
        yield from target_fit.problems(("grids", index), grid, draft.study, whole)
    yield from _lengths(draft)


def _models_of(grid: Grid) -> list[str]:
    """Return the models that a grid probes, and those whose activations it explains."""
    others = (targets.other_model(target) for target in grid.targets)
    return [*grid.models, *(name for name in others if name is not None)]


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


def _solvers(draft: Draft, path: tuple[str, int], grid: Grid) -> Iterator[Problem]:
    known = draft.study.solvers
    sweeping = [name for name, solver in known.items() if solver.kind in SWEEPING]
    for place, name in enumerate(grid.identify):
        if name in known and name not in sweeping:
            message = f"is of kind {known[name].kind}, which does not say what is identifiable"
            allowed = f"solvers of kind {listing(SWEEPING)}: {listing(sweeping, 'none here')}"
            yield Problem((*path, "identify", place), name, message, allowed)
    if not grid.solvers and not grid.identify:
        message = "is empty, and `identify` names no solver either"
        yield Problem((*path, "solvers"), [], message, listing(known))
    elif not grid.solvers and grid.targets != [targets.OWN]:
        message = "only `solvers` are given other targets, and this grid has none"
        yield Problem((*path, "targets"), grid.targets, message, f"[{targets.OWN}], or solvers")


def _decoding(
    draft: Draft, path: tuple[str, int], grid: Grid, models: dict[str, Source]
) -> Iterator[Problem]:
    """A square embedding matrix has a pseudo-inverse that nothing can be read with."""
    known = draft.study.solvers
    asked = [solver for name in grid.solvers if (solver := known.get(name)) is not None]
    if not any(
        isinstance(solver, SolverBase) and solver.decode.method == "pseudo-inverse"
        for solver in asked
    ):
        return
    for place, name in enumerate(grid.models):
        source = models.get(name)
        if not isinstance(source, MixerSource | TransformerSource):
            continue
        tokenizer = draft.study.tokenizers.get(source.tokenizer)
        if tokenizer is not None and tokenizer.vocabulary == source.d_model:
            message = (
                f"is as wide as its vocabulary is large ({source.d_model}): the pseudo-inverse of "
                "a square matrix multiplies what a descent leaves over"
            )
            allowed = "another width or vocabulary, or solvers with `decode: {method: nearest}`"
            yield Problem((*path, "models", place), name, message, allowed)


def _whole_source(draft: Draft, model: str) -> Source | None:
    """Return the source of a model if all that tells its weights was read as written."""
    known = draft.study.models.get(model)
    if known is None or not draft.sound("models", model, "state", "seed"):
        return None
    return draft.source(model) if draft.sound("sources", known.source, "n_ctx") else None


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
        sizes = {axis: len(getattr(grid, axis)) for axis in Grid.model_fields}
        identify = sizes.pop("identify")
        once = ("solvers", "metrics", "parametrisations", "targets", "seeds")
        searched = math.prod(sizes[axis] for axis in once)
        total += math.prod(n for axis, n in sizes.items() if axis not in once) * (
            searched + identify
        )
    if total > MOST_CELLS:
        message = f"the grids stand for {total:,} cells"
        yield Problem(("grids",), MISSING, message, f"at most {MOST_CELLS:,}")


def _paths(study: Study) -> Iterator[Problem]:
    paths = Counter(cell.path for cell in study.cells())
    for path, count in paths.items():
        if count > 1:
            yield Problem(("grids",), path, f"{count} different cells would be this one file")
