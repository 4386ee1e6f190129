"""A grid: models, sites, masks, metrics and solvers of which every combination is a cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from tokinfo.study import known, masks, sites, targets
from tokinfo.study.fields import (
    MetricName,
    Name,
    Padding,
    Parametrisation,
    Seed,
    Strict,
    fits,
    misfit,
)


def _stands_for(what: str, parse: Callable[[str], object], allowed: str) -> AfterValidator:
    """Return the validator of a text that can be read as something else, and stays a text."""

    def check(text: str) -> None:
        try:
            parse(text)
        except ValueError as error:
            step = str(error).endswith("the step must be 1 or more")
            message = f"the step of a {what} must be 1 or more" if step else f"is not a {what}"
            message += sites.hint(text) if what == "site" else ""
            raise misfit(message, allowed) from None

    return fits(check)


def _several(value: Any) -> Any:
    """Join a list of sites, which are read at once."""
    joined = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return "+".join(value) if joined else value


_SITE = _stands_for("site", sites.Site.parse, sites.ALLOWED)
_MASK = _stands_for("mask", masks.Mask, masks.ALLOWED)
_KNOWN = _stands_for("choice of known tokens", known.Known, known.ALLOWED)
_TARGET = _stands_for("target", targets.kind, targets.ALLOWED)


class Grid(Strict):
    """A product of axes; every combination is a cell. `identify` adds some beside them."""

    models: list[Name] = Field(min_length=1, description="Names of models.")
    sites: list[Annotated[str, _SITE, BeforeValidator(_several)]] = Field(
        min_length=1,
        description="`embedding`, `attention.K`, `mlp.K`, `block.K` (1-based) or `.last`; `norm`, "
        "the final norm; `kv.K`, keys and values of block K as a cache keeps them, or `kv.A-B` of "
        "blocks A to B at once (`[kv.1, kv.2]` inside the list means `kv.1-2`).",
    )
    masks: list[Annotated[str, _MASK]] = Field(
        min_length=1,
        description="Python slices over positions that stay visible, several joined by commas; or "
        "`hide=` and what is hidden: roles, whose messages' contents in chats it hides, or texts "
        'in quotes (`hide="seven years"`), whose tokens it hides wherever they stand.',
    )
    metrics: list[MetricName] = Field(["l1"], min_length=1, description="Distances.")
    parametrisations: list[Parametrisation] = Field(
        ["embedding"],
        min_length=1,
        description="What descends: `embedding`; `vocabulary`, a vector of one weight a token; or "
        "`mixture`, a probability of every candidate token (solvers of kind `chapter` and `adam`).",
    )
    solvers: list[Name] = Field(
        [],
        description="Names of solvers; may be empty where `identify` names one, in a grid that "
        "only tests what is identifiable.",
    )
    identify: list[Name] = Field(
        [],
        description="Names of solvers of kind `sweep` or `joint` that say what the activations "
        "identify in the settings of this grid (models, sites, masks, prompts, residual, causal, "
        "padding, known): one cell by each in every setting, under the first metric and seed, with "
        "parametrisation `embedding` and target `own`. The solver's `positions` "
        "and `first` say which positions.",
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
        description="`none`: the prompt's length; `n_ctx`: padded to n_ctx, pads visible "
        "where the mask says so and searched for like any position.",
    )
    known: list[Annotated[str, _KNOWN]] = Field(
        [known.NONE],
        min_length=1,
        description="Positions whose token every solver is given. `none`; `visible`: all visible "
        "ones; or a Python slice over the prompt's own positions, such as `8:`. Known tokens "
        "enter no share.",
    )
    targets: list[Annotated[str, _TARGET]] = Field(
        [targets.OWN],
        min_length=1,
        description="What is to be explained. `own`: the prompt's activations. Controls, "
        "which no prompt explains: `shuffled`, the same with their positions permuted; "
        "`of:MODEL`, another model's of the study, of the same tokenizer and width.",
    )
    seeds: list[Seed] = Field([0], min_length=1, description="Seeds of the starts.")
