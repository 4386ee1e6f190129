"""What each job of the workflow is given: narrow settings, code digests and resources.

Snakemake reruns a job when its parameters change, so a job must be given what it uses and
nothing more: a setting that leaks into another job's parameters reruns that job for nothing,
and one that is left out leaves a stale result. Both are decided here, by pure functions of the
study; the rules only call them.

Snakemake compares the *set* of a job's parameter values, without their names. Everything a job
uses therefore goes into one dictionary, in which a value cannot change places unnoticed.

This module imports neither torch nor transformers: the Snakefile reads it again in every
cluster job.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokinfo.study.cell import CELL_PATH, Cell
from tokinfo.study.lengths import Use
from tokinfo.study.prompts import written
from tokinfo.study.solvers import SWEEPING
from tokinfo.study.sources import Built, GgufSource, MixerSource, Saved, Source, located
from tokinfo.study.study import Study
from tokinfo.workflow.rules import FEWEST, FIGURES, SCALING, code, pattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Settings = dict[str, Any]

CONFIG = "config"
"""The part of a fetched model that is its configuration and tokenizer, without weights."""
_UNFETCHED = {"note", "config", "special_tokens", "megabytes"}


class Plan:
    """A study as the workflow sees it: its jobs, and what each of them is given.

    Attributes:
        study: the validated study.
        cells: every cell of the study, by its path below the results directory.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.cells: dict[str, Cell] = {cell.path: cell for cell in study.cells()}

    # --- which jobs there are -------------------------------------------------------------

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Names of the models that some cell probes or explains, in the study's order."""
        probed = {name for cell in self.cells.values() for name in cell.models}
        return tuple(name for name in self.study.models if name in probed)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that some probed model is made from."""
        used = {self.study.models[model].source for model in self.models}
        return tuple(name for name in self.study.sources if name in used)

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Names of the sources that must be trained: some probed model of theirs is trained."""
        wanted = {
            self.study.models[model].source
            for model in self.models
            if self.study.models[model].state == "trained"
        }
        return tuple(name for name in self.sources if name in wanted and self.is_local(name))

    @cached_property
    def scaling(self) -> tuple[str, ...]:
        """Names of the axes on which some model takes values enough for a line of a figure.

        The width of pretrained models is not in the study: they make no line along it.
        """
        values: dict[str, dict[object, set[object]]] = {}
        for cell in self.cells.values():
            model, source = self.study.models[cell.model], self.study.source_of(cell.model)
            task = tuple(cell.model_dump(exclude={"model", "site", "mask"}).values())
            kind = getattr(source, "form", source.kind), model.state, model.quantization, model.at
            width = source.d_model if isinstance(source, Built) else None
            for axis, line, value in (
                ("width", (task, cell.site, cell.mask, kind), width),
                ("depth", (task, cell.model, cell.mask), cell.block or None),
                ("hidden", (task, cell.model, cell.site), cell.mask.leading),
                (
                    "training",
                    (task, cell.site, cell.mask, model.source),
                    model.at if width and model.state == "trained" else None,
                ),
            ):
                if value is not None:
                    values.setdefault(axis, {}).setdefault(line, set()).add(value)
        long = {axis for axis, lines in values.items() if max(map(len, lines.values())) >= FEWEST}
        return tuple(axis for axis in SCALING if axis in long)

    @property
    def state(self) -> str:
        """Directory of resume points and download caches, which no rule declares."""
        return f"{self.study.results}/.state"

    @cached_property
    def fetched(self) -> tuple[str, ...]:
        """Names of the sources whose weights come from elsewhere."""
        return tuple(name for name in self.sources if not self.is_local(name))

    def is_local(self, source: str) -> bool:
        """Return whether a source's models are built (and perhaps trained) by this workflow."""
        return isinstance(self.study.sources[source], Built)

    def needs_weights(self, model: str) -> bool:
        """Return whether a model's checkpoint is cut from a trained or fetched model.

        An untrained model of a local source needs only its tokenizer, so it never waits for
        (or causes) a training run. An untrained twin of a fetched model needs its config.
        """
        return self.study.models[model].state == "trained" or not self.is_local(
            self.study.models[model].source
        )

    def tokenizer_of(self, source: str) -> str | None:
        """Return the name of a source's tokenizer; None: it comes with the fetched model."""
        built = self.study.sources[source]
        return built.tokenizer if isinstance(built, Built) else None

    def tokenizer_path(self, source: str) -> str:
        """Return the directory that holds a source's tokenizer."""
        tokenizer = self.tokenizer_of(source)
        if tokenizer is None:
            return f"<results>/sources/{source}/{CONFIG}"
        return f"<results>/tokenizers/{tokenizer}"

    def origin(self, model: str, blocks: int) -> str:
        """Return the directory that a model's checkpoint of ``blocks`` blocks is made from.

        Of a fetched model there is one directory for each number of blocks; its untrained twin is
        made from its configuration alone.
        """
        entry = self.study.models[model]
        if self.is_local(entry.source):
            trained = f"<results>/sources/{entry.source}"
            return trained if entry.state == "trained" else self.tokenizer_path(entry.source)
        part = CONFIG if entry.state == "untrained" else str(blocks)
        return f"<results>/sources/{entry.source}/{part}"

    def checkpoint(self, cell: Cell) -> str:
        """Return the directory of the checkpoint that a cell loads: no block more than it needs."""
        return f"<results>/checkpoints/{cell.model}/{cell.block}"

    def target(self, cell: Cell) -> list[str]:
        """Return the checkpoint whose activations a cell explains, where it is another model's."""
        return [f"<results>/checkpoints/{name}/{cell.block}" for name in cell.models[1:]]

    def prior(self, cell: Cell) -> list[str]:
        """Return the unigram prior of a cell, where its solver has a use for one."""
        if self.study.prior is None or self.study.solvers[cell.solver].kind not in SWEEPING:
            return []
        return [f"<results>/unigrams/{cell.model}.safetensors"]

    def passages(self, sets: Iterable[str]) -> list[str]:
        """Return the files of those of these sets of prompts that are drawn from a text."""
        drawn = sorted(set(sets) & set(self.study.passages))
        return [f"<results>/passages/{name}.json" for name in drawn]

    def cell(self, wildcards: Mapping[str, str]) -> Cell:
        """Return the cell that a file name's wildcards stand for."""
        return self.cells[CELL_PATH.format(**wildcards)]

    def wildcard_patterns(self) -> dict[str, str]:
        """Return a regular expression for each wildcard, made from the study's names."""
        values: dict[str, set[str]] = {}
        for cell in self.cells.values():
            for name, value in cell.wildcards.items():
                values.setdefault(name, set()).add(value)
        values["blocks"] = {str(cell.block) for cell in self.cells.values()}
        values["part"] = {CONFIG, "0", *values["blocks"]}
        values["blocks"].discard("0")  # the embedding alone has its own rule
        values["model"] = set(self.models)
        values["source"] = set(self.sources)
        values["corpus"] = set(self.study.corpora)
        values["passages"] = set(self.study.passages)
        values["tokenizer"] = set(self.study.tokenizers)
        return {name: pattern(found) for name, found in values.items()}

    # --- what each job is given -----------------------------------------------------------

    def corpus_settings(self, corpus: str) -> Settings:
        """Return what writing a corpus depends on."""
        return canonical(self.study.corpora[corpus].model_dump(exclude={"megabytes"}))

    def corpus_files(self, corpus: str) -> list[str]:
        """Return the files on this machine that a corpus is read from."""
        path = getattr(self.study.corpora[corpus], "path", None)
        return [] if path is None else [path]

    def tokenizer_settings(self, tokenizer: str) -> Settings:
        """Return what training a tokenizer depends on, besides its corpus."""
        return canonical({"vocabulary": self.study.tokenizers[tokenizer].vocabulary})

    def passages_settings(self, passages: str) -> Settings:
        """Return what drawing passages depends on, besides the held-out text and the tokenizer."""
        return canonical(self.study.passages[passages].model_dump())

    def training_settings(self, source: str) -> Settings:
        """Return what training a model depends on, besides its tokenizer and tokens."""
        return canonical(self.study.sources[source].model_dump())

    def fetch_settings(self, source: str, part: str) -> Settings:
        """Return what fetching a part of a model depends on: a number of blocks, or its config.

        Its note is a fact for the tables, and what the study says of its sizes one for planning.
        """
        return canonical(
            {
                "blocks": None if part == CONFIG else int(part),
                "source": self.study.sources[source].model_dump(exclude=_UNFETCHED),
            }
        )

    def fetch_files(self, source: str, part: str) -> list[str]:
        """Return the files on this machine whose change means a different part of a model.

        A directory's own time does not change when a file inside is rewritten, so the files
        themselves are the inputs.
        """
        entry = self.study.sources[source]
        if not isinstance(entry, Saved | GgufSource) or entry.path is None:
            return []
        path = located(entry.path)
        if isinstance(entry, GgufSource):
            return [str(path)]
        kept = {".json", ".jinja", ".model", ".txt"} | (
            set() if part == CONFIG else {".safetensors", ".bin"}
        )
        found = sorted(p for p in path.glob("*") if p.suffix in kept and p.is_file())
        # With nothing there yet, name the file that every model has: Snakemake then says what
        # is missing before anything starts.
        return [str(p) for p in found] or [str(path / "config.json")]

    def prepare_settings(self, model: str, blocks: int) -> Settings:
        """Return what cutting a checkpoint of ``blocks`` blocks depends on.

        A trained model's training enters through the files that the job reads. An untrained
        one is built from its architecture alone, so its source's training plays no part.
        """
        entry = self.study.models[model]
        source = self.study.sources[entry.source]
        built = isinstance(source, Built)
        unused = {"training"} if built else _UNFETCHED
        facts = {"model": model, "source": entry.source, "n_ctx": source.n_ctx}
        settings: Settings = {
            "blocks": blocks,
            "built": not self.needs_weights(model),
            "model": entry.model_dump(),
            "source": source.model_dump(exclude=unused),
            "facts": facts | _prompt_facts(source),
        }
        training = source.training if isinstance(source, Built) else None
        if training is not None and entry.at < 1:
            settings["snapshot"] = f"at-{training.step_at(entry.at)}"
        return canonical(settings)

    def prompt_settings(self, source: str) -> Settings:
        """Return what checking the prompts of a source's models with its tokenizer depends on."""
        entry = self.study.sources[source]
        uses = self._uses(source)
        sets = {name for name, *_ in uses}
        return canonical(
            {
                "n_ctx": entry.n_ctx,
                "prompts": {
                    name: list(map(written, prompts))
                    for name, prompts in self.study.prompts.items()
                    if name in sets
                },
                "uses": [list(use) for use in sorted(uses)],
                **_prompt_facts(entry),
            }
        )

    def passages_of(self, source: str) -> list[str]:
        """Return the files of the passages that a source's models are probed with."""
        return self.passages(name for name, *_ in self._uses(source))

    def _uses(self, source: str) -> set[Use]:
        """Return the use of every cell that a source's models take part in."""
        return {
            (cell.prompts, cell.mask.text, cell.padding, cell.known.text)
            for cell in self.cells.values()
            if source in {self.study.models[name].source for name in cell.models}
        }

    def cell_code(self, cell: Cell) -> str:
        """Return the digest of the code that solves a cell: of its solver, and of no other."""
        return code("invert", f"tokinfo.solvers.{self.study.solvers[cell.solver].kind}")

    def cell_settings(self, cell: Cell) -> Settings:
        """Return what solving a cell depends on, besides its checkpoints, decoder and prior.

        The metric's weights are there for the one metric that has some. The name of the prior and
        the settings of a target's model are there for the cells that use them. Prompts drawn from
        a text come in a file.
        """
        model = self.study.models[cell.model]
        source = self.study.sources[model.source]
        weights = self.study.metric_weights.model_dump() if cell.metric == "l1+cosine" else {}
        others = [self.study.models[name].model_dump() for name in cell.models[1:]]
        prior = {"prior": self.study.prior} if self.prior(cell) else {}
        trust = {
            key: True
            for key, name in zip(
                ("trust_remote_code", "trust_target_code"), cell.models, strict=False
            )
            if getattr(self.study.source_of(name), "trust_remote_code", False)
        }
        given = self.study.prompts.get(cell.prompts)
        prompts = {} if given is None else {"prompts": list(map(written, given))}
        return canonical(
            {
                **trust,
                **({"target_models": others} if others else {}),
                **prior,
                **prompts,
                "cell": cell.model_dump(),
                "metric_weights": weights,
                "quantization": model.quantization,
                "solver": self.study.solvers[cell.solver].model_dump(),
                "source": model.source,
                "state": model.state,
                "weights_note": getattr(source, "note", ""),
            }
        )

    @property
    def histories(self) -> list[str]:
        """The training histories of every source that is trained."""
        return [f"<results>/training/{source}.csv" for source in sorted(self.trained)]

    def tables(self, table: str) -> list[str]:
        """Return the files that a figure or page is made from, by the name of its table."""
        return self.histories if table == "histories" else [f"<results>/tables/{table}.parquet"]

    def figure_settings(self, figure: str) -> Settings:
        """Return what drawing a figure depends on besides its tables.

        For the training curves: the family of every source that is trained, as the tables call it.
        """
        if FIGURES[figure].table != "histories":
            return {}
        families: dict[str, str] = {}
        for name in self.trained:
            source = self.study.sources[name]
            families[name] = f"mixer-{source.form}" if isinstance(source, MixerSource) else "llama"
        return {"families": families}

    def labels(self) -> Settings:
        """Return what the report's pages say about the study as a whole."""
        return {"description": self.study.description, "name": self.study.name}


def _prompt_facts(source: Source) -> Settings:
    """Return how prompts are read, where that is not the tokenizer's default."""
    return {} if getattr(source, "special_tokens", True) else {"special_tokens": False}


def embedded(settings: Mapping[str, Any]) -> Settings:
    """Return settings of a rule whose outputs are in Snakemake's report, as one text of JSON.

    The report holds the parameters of these rules inside a script element, as they are: a
    ``</script>`` in any text of the study or of the command line would end it. So no markup
    character is written as itself. `json.loads` gives the settings back.
    """
    text = json.dumps(settings, sort_keys=True)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return {"json": text}


def canonical(settings: Mapping[str, Any]) -> Settings:
    """Return settings with the keys of all dictionaries sorted, and lists for tuples.

    Snakemake compares parameters by their `repr`, in which the order of keys shows.
    """
    return {key: _canonical(settings[key]) for key in sorted(settings)}


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return canonical(value)
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value
