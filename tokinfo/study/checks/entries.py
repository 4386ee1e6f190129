"""Checks of single sections that no one field can say, and of the files on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tokinfo.io import tokenizers
from tokinfo.io.errors import InvalidError
from tokinfo.study import architecture, targets
from tokinfo.study.checks.draft import Draft
from tokinfo.study.grid import Grid
from tokinfo.study.mistakes import MISSING, Keys, Mistake, listing
from tokinfo.study.solvers import SWEEPING
from tokinfo.study.sources import (
    Built,
    HubSource,
    MixerSource,
    Model,
    Pretrained,
    Saved,
    Source,
    Training,
    located,
)
from tokinfo.study.stated import stated
from tokinfo.study.study import Study

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which a tokenizer is read or made."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def mistakes(draft: Draft) -> Iterator[Mistake]:
    """Yield what is wrong with sources, models and the metric's weights."""
    yield from _study(draft.study)
    yield from _sources(draft)
    yield from _models(draft)


def _study(study: Study) -> Iterator[Mistake]:
    if not study.grids and not study.claims:
        yield Mistake(("grids",), [], "is empty", "grids, or `claims`")
    used = any("l1+cosine" in grid.metrics for grid in study.grids)
    if used and study.metric_weights.l1 == study.metric_weights.cosine == 0:
        message = "both weights are 0, so `l1+cosine` would measure nothing"
        yield Mistake(("metric_weights",), MISSING, message, "at least one above 0")


def _sources(draft: Draft) -> Iterator[Mistake]:
    for name, source in draft.study.sources.items():
        path = ("sources", name)
        training = source.training if isinstance(source, Built) else None
        if training is not None and draft.sound("sources", name, "training"):
            yield from _snapshots((*path, "training", "snapshots"), training)
        if isinstance(source, HubSource) and source.trust_remote_code:
            yield from _trust((*path, "revision"), source.revision)
        if isinstance(source, MixerSource):
            yield from _of_form(path, source)


def _trust(path: tuple[str, ...], revision: str) -> Iterator[Mistake]:
    if not _COMMIT.fullmatch(revision):
        # Anyone who may push to a branch would choose the code that runs here tomorrow.
        message = "is not a commit, which trust_remote_code needs"
        yield Mistake(path, revision, message, "40 hexadecimal digits")


def _of_form(path: tuple[str, str], source: MixerSource) -> Iterator[Mistake]:
    """Not beside the fields: jobs are given all of them, and a default there is no mistake."""
    for key, form in (("expansion", "expanded"), ("kernels", "parallel")):
        if key in source.model_fields_set and source.form != form:
            message = f"has no meaning for form {source.form!r}"
            value = getattr(source, key)
            yield Mistake((*path, key), value, message, f"only with form {form!r}")


def _snapshots(path: tuple[str, ...], training: Training) -> Iterator[Mistake]:
    firsts: dict[int, float] = {training.steps: 1.0}
    for place, share in enumerate(training.snapshots):
        step = training.step_at(share)
        if share > 0 and step == 0:
            message = f"is less than half a step of {training.steps}"
            allowed = f"0, or more than {0.5 / training.steps:g}"
            yield Mistake((*path, place), share, message, allowed)
        elif step in firsts:
            message = f"is step {step} of {training.steps}, as {firsts[step]:g} is"
            yield Mistake((*path, place), share, message, "each step once")
        firsts.setdefault(step, share)


def _models(draft: Draft) -> Iterator[Mistake]:
    for name, model in draft.study.models.items():
        path = ("models", name)
        outlying = "outlier_threshold" in model.model_fields_set and model.quantization != "int8"
        if outlying and draft.sound(*path, "quantization"):
            message = f"has no meaning for quantization {model.quantization!r}"
            where, threshold = (*path, "outlier_threshold"), model.outlier_threshold
            yield Mistake(where, threshold, message, "only with quantization int8")
        source = draft.study.sources.get(model.source)
        if source is None or not draft.sound(*path, "state"):
            continue
        sound = draft.sound("sources", model.source, "training")
        if model.state == "trained":
            if isinstance(source, Built) and source.training is None and sound:
                message = f"source `{model.source}` has no training"
                allowed = f"untrained, or a `training:` in sources.{model.source}"
                yield Mistake((*path, "state"), "trained", message, allowed)
            if "seed" in model.model_fields_set:
                message = "a trained model has no random weights to seed"
                yield Mistake((*path, "seed"), model.seed, message, "only state untrained")
        if model.at < 1 and draft.sound(*path, "at") and sound:
            yield from _at((*path, "at"), model, source)


def _at(path: tuple[str, ...], model: Model, source: Source) -> Iterator[Mistake]:
    training = source.training if isinstance(source, Built) else None
    if model.state != "trained" or training is None:
        message = "only a model that is trained here is taken along its training"
        yield Mistake(path, model.at, message, "1, or another model")
    elif model.at not in training.snapshots:
        kept = [f"{share:g}" for share in (*training.snapshots, 1.0)]
        message = f"is not among sources.{model.source}.training.snapshots"
        yield Mistake(path, model.at, message, listing(kept))


def files(draft: Draft) -> Iterator[Mistake]:
    """Yield the files on this machine that some cell needs and that are not as they should be."""
    study = draft.study
    probed = dict.fromkeys(model for grid in study.grids for model in _models_of(grid))
    sources = dict.fromkeys(study.models[name].source for name in probed if name in study.models)
    tokenizers = dict.fromkeys(
        source.tokenizer for name in sources if isinstance(source := study.sources.get(name), Built)
    )
    sets = dict.fromkeys(name for grid in study.grids for name in grid.prompts)
    drawn = [study.passages[name] for name in sets if name in study.passages]
    tokenizers |= dict.fromkeys(passages.tokenizer for passages in drawn)
    corpora = [study.tokenizers[name].corpus for name in tokenizers if name in study.tokenizers]
    corpora += [passages.corpus for passages in drawn if passages.corpus in study.corpora]
    solvers = [name for grid in study.grids for name in (*grid.solvers, *grid.identify)]
    if any(study.solvers[name].kind in SWEEPING for name in solvers if name in study.solvers):
        corpora += [] if study.prior is None else [study.prior]
    for name in dict.fromkeys(corpora):
        path = getattr(study.corpora.get(name), "path", None)
        if path is None:
            continue
        if wrong := _pattern(("corpora", name, "path"), path):
            yield wrong
        elif not located(path).is_file():
            allowed = "a file, by its path from where the command is given"
            yield Mistake(("corpora", name, "path"), path, "there is no such file", allowed)
    for name in sources:
        source = study.sources.get(name)
        path = getattr(source, "path", None)
        if path is not None and (wrong := _pattern(("sources", name, "path"), path)):
            yield wrong
            continue
        if isinstance(source, Pretrained) and draft.sound("sources", name, "config"):
            yield from architecture.mistakes(("sources", name), source)
        if isinstance(source, Saved) and draft.sound("sources", name, "n_ctx"):
            yield from _local_model(("sources", name), source)


def _pattern(where: Keys, path: str) -> Mistake | None:
    """Return the mistake of a path in which Snakemake finds a pattern: `{name}` or `<name>`."""
    whole = located(path)
    # Of a model's directory, the files are inputs of a job.
    for file in (whole, *(whole.glob("*") if whole.is_dir() else ())):
        if not set("{}<>").isdisjoint(str(file)):
            message = f"Snakemake would take the brackets in {str(file)!r} for a pattern"
            return Mistake(where, path, message, "a path without {, }, < and >")
    return None


def _models_of(grid: Grid) -> list[str]:
    """Return the models that a grid probes, and those whose activations it explains."""
    others = (targets.other_model(target) for target in grid.targets)
    return [*grid.models, *(name for name in others if name is not None)]


def _local_model(path: tuple[str, str], source: Saved) -> Iterator[Mistake]:
    if source.path is None:
        return
    try:
        file = located(source.path) / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError) as error:
        message = "its config.json is not a JSON object"
        if isinstance(error, OSError):
            message = "there is no config.json there"
        yield Mistake((*path, "path"), source.path, message, "a directory by save_pretrained")
        return
    if not isinstance(config.get("model_type"), str) and "auto_map" not in config:
        message = "its config.json names no model_type"
        yield Mistake((*path, "path"), source.path, message, "a directory by save_pretrained")
    said = stated(located(source.path))
    if said.get("blocks", source.blocks) != source.blocks:
        message = f"the model in {source.path} has another number of blocks"
        yield Mistake((*path, "blocks"), source.blocks, message, str(said["blocks"]))
    if said.get("n_ctx", source.n_ctx) < source.n_ctx:
        message = f"is more than the limit of the model in {source.path}"
        yield Mistake((*path, "n_ctx"), source.n_ctx, message, f"2 to {said['n_ctx']}")
    yield from _tokenizer((*path, "path"), source.path, config.get("vocab_size"))


def _tokenizer(where: Keys, path: str, rows: object) -> Iterator[Mistake]:
    """Yield what is wrong with the tokenizer of a directory whose embedding has so many rows."""
    if not any((located(path) / name).is_file() for name in _TOKENIZERS):
        message = "there is no tokenizer there"
        yield Mistake(where, path, message, "a directory with tokenizer.json")
    file = located(path) / _TOKENIZERS[0]
    if not file.is_file():
        return
    try:
        last = tokenizers.last_id(file)
    except InvalidError:
        message = "its tokenizer.json holds no tokenizer"
        yield Mistake(where, path, message, "a tokenizer.json of the library tokenizers")
        return
    if isinstance(rows, int) and last >= rows:
        message = f"its tokenizer.json has the id {last}, its config.json a vocab_size of {rows}"
        yield Mistake(where, path, message, f"ids 0 to {rows - 1}")
