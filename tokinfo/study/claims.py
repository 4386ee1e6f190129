"""What the source chapter states: one row per measured statement, and the models it is about.

The rows are facts (`data/claims.yaml`); the study says which cells test one (`Replication`),
and whether they agree is computed from them (`tokinfo.tables.replication`).

This module imports neither torch nor transformers: the study names rows by their ids.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, model_validator

from tokinfo.io.errors import InvalidError
from tokinfo.study.cell import Cell
from tokinfo.study.fields import (
    Integer,
    MetricName,
    Name,
    Padding,
    Parametrisation,
    Quantization,
    Real,
    State,
    Strict,
)
from tokinfo.study.masks import Mask
from tokinfo.study.sites import Site

DATA = Path(__file__).parents[1] / "data" / "claims.yaml"


class ClaimedModel(Strict):
    """A model of the chapter, as far as it differs from others."""

    family: str = Field(description="llama, mistral, mixer-flat, mixer-expanded, mixer-parallel.")
    d_model: Integer = Field(ge=1, description="Width of an embedding.")
    blocks: Integer = Field(ge=1, description="Number of blocks.")
    heads: Integer | None = Field(None, ge=1, description="Attention heads; null for mixers.")
    n_ctx: Integer | None = Field(None, ge=2, description="Positions of a model trained for it.")
    padding: Padding = Field("none", description="How its prompts were given to it.")
    learning_rate: Real = Field(gt=0, description="First learning rate of the published descent.")
    train_loss: Real | None = Field(None, gt=0, description="Published training loss, nats.")
    held_out_loss: Real | None = Field(None, gt=0, description="Published test loss, nats.")


class Claim(Strict):
    """One measured statement of the chapter."""

    id: Name = Field(description="Name of the row.")
    model: Name = Field(description="One of the chapter's models.")
    state: State = Field(description="Trained, or with random weights.")
    quantization: Quantization = Field("float32", description="Precision of the weights.")
    site: Site = Field(
        description="Where activations were read: `attention.K`, `block.K` or `block.last`."
    )
    residual: bool = Field(True, description="False: without the residual around self-attention.")
    causal: bool = Field(True, description="False: attention without a causal mask.")
    mask: Mask = Field(description="Python slice over the positions that stay visible.")
    metric: MetricName = Field(description="Distance over the visible activations.")
    parametrisation: Parametrisation = Field("embedding", description="What descends.")
    prompt: str = Field(min_length=1, description="The text that was to be found.")
    restricted_to: str | None = Field(None, description="Only tokens of this text are candidates.")
    published: list[str] = Field(
        default_factory=list,
        description="The text that was decoded, best first; empty: none printed.",
    )
    found: bool | None = Field(
        None,
        description="Whether the tokens in question were found: the hidden ones, or where the mask "
        "hides none, all of them.",
    )
    share: tuple[Real, Real] | None = Field(
        None, description="In place of `found`: share of initialisations in which they were."
    )
    top_k: Integer = Field(1, ge=1, le=5, description="Decoded tokens that count at a position.")
    unordered: bool = Field(False, description="A token counts at any position of the prompt.")
    least: Real = Field(
        1.0, gt=0, le=1, description="Share of the tokens in question that counts as found."
    )
    note: str = Field("", description="What else is stated about the row.")

    @property
    def hides(self) -> bool:
        """Whether the tokens in question are hidden ones."""
        return self.mask.hides

    @property
    def criterion(self) -> str:
        """What counts as found, in words.

        >>> load_claims().rows["width8192-untrained-block1-after3"].criterion
        'hidden tokens, in any order, among the 2 best'
        """
        words = ["hidden tokens" if self.hides else "all tokens"]
        if self.least < 1:
            words = [f"at least {self.least:.0%} of the {words[0]}"]
        words += ["in any order"] * self.unordered
        words += [f"among the {self.top_k} best"] * (self.top_k > 1)
        return ", ".join(words)

    @model_validator(mode="after")
    def _one_outcome(self) -> Self:
        if (self.found is None) == (self.share is None):
            raise ValueError(f"claim {self.id}: exactly one of `found` and `share` must be given")
        if self.share is not None and not 0 <= self.share[0] <= self.share[1] <= 1:
            raise ValueError(f"claim {self.id}: share {self.share}: allowed: 0 <= low <= high <= 1")
        return self


class Comparison(Strict):
    """A statement of the chapter, and the cells of a study that it is compared with.

    What the tables read is in the fields: the digest of their code does not reach this module.
    """

    claim: Claim
    criterion: str = Field(description="What counts as found, in words.")
    hides: bool = Field(description="Whether the tokens in question are hidden ones.")
    claimed: ClaimedModel
    entry: str | None = Field(None, description="Name in the study's `claims`; null: none.")
    stand_in: str = Field("", description="What stands in for the claim's model; empty: nothing.")
    runs: bool = False
    models: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    size: str = Field("", description="Size of the models, in words.")
    published: tuple[Cell, ...] = Field((), description="Cells of the published protocol.")
    others: tuple[Cell, ...] = Field((), description="Cells of the other solvers.")
    tflop: float = Field(0.0, description="Arithmetic of the published protocol.")
    reason: str = Field(description="Why it does not run; empty: nothing but time.")
    command: str = Field("", description="The command that would run it.")


class Claims(Strict):
    """All of them: the chapter's models by name, and its statements."""

    models: dict[Name, ClaimedModel] = Field(description="Its models, by name.")
    statements: list[Claim] = Field(alias="rows", description="Its statements, in order.")

    @property
    def rows(self) -> dict[str, Claim]:
        """The statements by their ids, in the order of the file."""
        return {claim.id: claim for claim in self.statements}

    def model_of(self, row: str) -> ClaimedModel:
        """Return the chapter's model that a row is about."""
        return self.models[self.rows[row].model]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.rows) != len(self.statements):
            ids = [claim.id for claim in self.statements]
            twice = sorted({one for one in ids if ids.count(one) > 1})
            raise ValueError(f"given twice: {', '.join(twice)}")
        for claim in self.statements:
            model = self.models.get(claim.model)
            if model is None:
                raise ValueError(f"claim {claim.id}: unknown model {claim.model!r}")
            if claim.site.block > model.blocks:
                raise ValueError(f"claim {claim.id}: {claim.site} of {model.blocks} blocks")
        return self


@cache
def load_claims(path: Path = DATA) -> Claims:
    """Read and check the rows; raises ValueError naming what is wrong with the file."""
    try:
        return Claims.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InvalidError(f"{path}: {error}") from error
