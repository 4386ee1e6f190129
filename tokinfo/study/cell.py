"""One cell: a point of the study, and its file."""

from __future__ import annotations

from tokinfo.study.fields import MetricName, Padding, Parametrisation, Strict
from tokinfo.study.masks import Mask
from tokinfo.study.targets import OWN, other_model, slug

CELL_PATH = (
    "cells/{model}/{site}/{mask}/{metric}_{parametrisation}_{solver}_{prompts}_s{seed}.parquet"
)


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
