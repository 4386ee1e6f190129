"""One cell: a point of the study, and its file."""

from __future__ import annotations

from pydantic import Field, JsonValue

from tokinfo.study.fields import MetricName, Padding, Parametrisation, Quantization, State, Strict
from tokinfo.study.known import NONE, Known
from tokinfo.study.masks import Mask
from tokinfo.study.prompts import Prompt
from tokinfo.study.sites import Site
from tokinfo.study.solvers import MetricWeights, Solver
from tokinfo.study.targets import OWN, other_model, slug

CELL_PATH = (
    "cells/{model}/{site}/{mask}/{metric}_{parametrisation}_{solver}_{prompts}_s{seed}.parquet"
)


class Cell(Strict):
    """One point of the study: one job, all of its prompts and restarts as one batch."""

    model: str
    site: Site
    residual: bool
    causal: bool
    padding: Padding
    mask: Mask
    metric: MetricName
    parametrisation: Parametrisation
    solver: str
    prompts: str
    target: str = OWN
    known: Known = Known(NONE)
    seed: int

    @property
    def block(self) -> int:
        """How many blocks its site lies behind; 0 for the embedding."""
        return self.site.block

    @property
    def models(self) -> tuple[str, ...]:
        """The models it loads: the probed one, and any other whose activations it explains."""
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
                (f"known-{self.known.slug}", self.known.text != NONE),
            )
            if present
        ]
        return {
            "model": self.model,
            "site": "+".join([str(self.site), *variants]),
            "mask": self.mask.slug,
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


class CellSettings(Strict):
    """What solving a cell depends on, besides the files it reads."""

    cell: Cell
    solver: Solver
    metric_weights: MetricWeights = Field(default_factory=lambda: MetricWeights())
    prompts: tuple[Prompt, ...] = Field((), description="Empty where they come in a file.")
    source: str = Field(description="Name of the source of the cell's model.")
    state: State
    quantization: Quantization
    weights_note: str = ""
    prior: str | None = Field(None, description="Name of the corpus that the prior counts.")
    target_models: tuple[JsonValue, ...] = Field(
        (), description="The model whose activations are explained, where it is another one."
    )
    trust_remote_code: bool = Field(False, description="Of the cell's model.")
    trust_target_code: bool = Field(False, description="Of the model that it explains.")
