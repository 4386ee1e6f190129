"""The study: one validated configuration, and the cells it stands for.

A study says which models are probed, where (sites), what stays visible (masks), how
activations are compared (metrics) and who searches (solvers). Its grids are products of
those axes; the union of the grids is the set of cells, each of which is one job.

This module imports neither torch nor transformers: the Snakefile reads it again in every
cluster job. Modules that need a part of it import that part (`tokinfo.sources`,
`tokinfo.solvers`): a change to one solver's settings then reruns no training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from tokinfo.masks import Mask
from tokinfo.sites import Site
from tokinfo.solvers import MetricWeights, Solver
from tokinfo.sources import Corpus, Model, Passages, Source, Tokenizer
from tokinfo.strict import Integer, MetricName, Name, Padding, Parametrisation, Seed, Strict
from tokinfo.targets import OWN, other_model, slug


class Grid(Strict):
    """A product of axes; every combination is a cell. `identify` adds some beside them."""

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
    solvers: list[Name] = Field(
        [],
        description="Names of solvers; may be empty where `identify` names one, in a grid that "
        "only asks what is there.",
    )
    identify: list[Name] = Field(
        [],
        description="Names of solvers of kind `sweep` or `joint` that say what the activations "
        "identify in the settings of this grid (models, sites, masks, prompts, residual, causal, "
        "padding): one cell by each in every setting, under the first metric and seed, with "
        "parametrisation `embedding` and target `own`. Which positions: the solver's own "
        "`positions` and `first`.",
    )
    prompts: list[Name] = Field(
        min_length=1, description="Names of prompt sets, of `prompts` or of `passages`."
    )
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
    targets: list[str] = Field(
        [OWN],
        min_length=1,
        description="What is to be explained. `own`: the prompt's own activations. Controls, "
        "which no prompt explains: `shuffled`, the same with their positions permuted; "
        "`of:MODEL`, another model's of the study, of the same tokenizer and width.",
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
    target: str = OWN
    seed: int

    @property
    def models(self) -> tuple[str, ...]:
        """The models it loads: its own, and the one whose activations it explains if another."""
        other = other_model(self.target)
        return (self.model,) if other is None else (self.model, other)

    @property
    def wildcards(self) -> dict[str, str]:
        """The cell as the wildcards of its file name, readable and without separators inside."""
        variants = [
            slug
            for slug, present in (
                ("noresidual", not self.residual),
                ("acausal", not self.causal),
                ("padded", self.padding == "n_ctx"),
                (slug(self.target), self.target != OWN),
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

_IDENTIFY_BY: tuple[Parametrisation, ...] = ("embedding",)


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
    cells_per_submission: Integer = Field(
        1,
        ge=1,
        description="Cells of one model that a cluster is handed as one submission, to be solved "
        "in turn; nothing on a workstation.",
    )
    corpora: dict[Name, Corpus] = Field(default_factory=dict, description="Texts, by name.")
    tokenizers: dict[Name, Tokenizer] = Field(default_factory=dict, description="By name.")
    sources: dict[Name, Source] = Field(
        min_length=1, description="Where weights come from, by name."
    )
    models: dict[Name, Model] = Field(min_length=1, description="What is probed, by name.")
    prompts: dict[Name, list[Annotated[str, Field(min_length=1)]]] = Field(
        default_factory=dict, description="Sets of prompts, by name."
    )
    passages: dict[Name, Passages] = Field(
        default_factory=dict,
        description="Sets of prompts drawn from held-out text, by name; a name is that of one set "
        "only, here or in `prompts`.",
    )
    metric_weights: MetricWeights = Field(
        default_factory=lambda: MetricWeights(), description="Weights of the `l1+cosine` metric."
    )
    solvers: dict[Name, Solver] = Field(min_length=1, description="Solvers, by name.")
    prior: Name | None = Field(
        None,
        description="Name of the corpus whose tokens' frequencies are the prior of `prior_bits` "
        "in cells of kind `sweep` and `joint` (null: none).",
    )
    grids: list[Grid] = Field(min_length=1, description="Products of axes; their union is probed.")

    def source_of(self, model: str) -> Source:
        """Return the source of a model, by the model's name."""
        return self.sources[self.models[model].source]

    def prompt_count(self, prompts: str) -> int:
        """Return how many prompts a set of `prompts` or `passages` has."""
        if prompts in self.passages:
            return self.passages[prompts].count
        return len(self.prompts[prompts])

    def cells(self) -> tuple[Cell, ...]:
        """Return every cell once, in the order the grids name them."""
        return tuple(dict.fromkeys(cell for grid in self.grids for cell in self._cells(grid)))

    def _cells(self, grid: Grid) -> Iterator[Cell]:
        settings = itertools.product(
            itertools.product(grid.models, grid.sites, grid.masks, grid.prompts),
            itertools.product(grid.residual, grid.causal, grid.padding),
        )
        asked = [
            *itertools.product(
                grid.solvers, grid.metrics, grid.parametrisations, grid.seeds, grid.targets
            ),
            *itertools.product(
                grid.identify, grid.metrics[:1], _IDENTIFY_BY, grid.seeds[:1], (OWN,)
            ),
        ]
        for (model, site, mask, prompts), (residual, causal, padding) in settings:
            for solver, metric, parametrisation, seed, target in asked:
                yield Cell(
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
                    target=target,
                    seed=seed,
                )
