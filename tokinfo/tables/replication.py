"""The chapter, row by row: what it states, what was found here, and whether the two agree.

Every share is computed from the long table (`replication_shares`), and every verdict from the
shares (`verdicts`); nothing is typed. A *run* is one start in one model: of an untrained
model mostly another initialisation, of a trained one another start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tokinfo.io.atomic import new_file
from tokinfo.io.errors import InvalidError
from tokinfo.tables.recovery import scan
from tokinfo.tables.replication_shares import (
    ENDS,
    OVER_PROMPTS,
    prompt_columns,
    published_columns,
    search_columns,
    sweep_columns,
    training_columns,
)
from tokinfo.tables.schema import CELL_KEYS
from tokinfo.tables.verdicts import VERDICTS, settled, verdict

if TYPE_CHECKING:
    from tokinfo.study.cell import Cell
    from tokinfo.study.claims import Claim, Comparison

REPLICATION_SCHEMA: dict[str, pl.DataType] = {
    **dict.fromkeys(("row", "verdict"), pl.String()),
    "settled": pl.Boolean(),
    **dict.fromkeys(("reason", "command", "entry", "stand_in"), pl.String()),
    # what is stated, and of what
    **dict.fromkeys(("claimed_model", "state", "quantization", "claimed_site"), pl.String()),
    "residual": pl.Boolean(),
    "causal": pl.Boolean(),
    **dict.fromkeys(("mask", "metric", "parametrisation", "prompt"), pl.String()),
    "hides": pl.Boolean(),
    **dict.fromkeys(("criterion", "published", "published_found"), pl.String()),
    # the cells that test it, under the published protocol
    **dict.fromkeys(("models", "size", "site", "padding", "ours"), pl.String()),
    **dict.fromkeys(("runs", "runs_found", "initialisations"), pl.Int64()),
    **{f"found{end}": pl.Float64() for end in ENDS},
    **dict.fromkeys(("tokens_found", "visible_found", "first_loss", "loss"), pl.Float64()),
    # other searches, and what is there to be found
    **dict.fromkeys(("adam_found", "adam_visible", "joint_found", "joint_visible"), pl.Float64()),
    **dict.fromkeys(("joint_certified", "joint_returned", "recovered"), pl.Float64()),
    "swept": pl.Int64(),
    "question_identifiable": pl.Float64(),
    **{f"identifiable{end}": pl.Float64() for end in ENDS},
    **dict.fromkeys(("margin", "noise_floor", "bits"), pl.Float64()),
    "vocabulary": pl.Int64(),
    # the same over all prompts, passages among them
    "n_prompts": pl.Int64(),
    **{f"prompts_{what}{end}": pl.Float64() for what in OVER_PROMPTS for end in ENDS},
    # what the models were trained on, and what all this took
    "trained_tokens": pl.Int64(),
    **dict.fromkeys(("train_loss", "held_out_loss"), pl.Float64()),
    **dict.fromkeys(("published_held_out_loss", "loss_gap"), pl.Float64()),
    **dict.fromkeys(("tflop", "seconds", "minutes_needed"), pl.Float64()),
    **dict.fromkeys(("device", "model_digests", "code_digests", "note"), pl.String()),
}
"""Columns of `replication.parquet`. ``found``: share of runs that found the tokens in question,
by the row's criterion; ``tokens_found``: of these tokens, over all runs. ``..._visible``: share of
the visible tokens, which is low where the search failed. ``first_loss`` and ``loss``: the
published descent's at its start and end, medians over runs, in the row's metric.
``joint_returned``: share of joint searches that found the tokens in question and certified the
prompt. ``identifiable`` is of swept tokens around the true prompt, ``margin`` their median;
``question_identifiable`` is of the tokens in question, those not swept counted as not identified.
``prompts_found``, ``prompts_adam`` and ``prompts_joint``: share of the tokens in question that the
published protocol and other searches found (top-1, in place) over all prompts that the row was run
on, passages and its own among them; ``prompts_identifiable``: of the swept ones. Intervals of these
are over prompts."""


_COMPARED = {"hides", "criterion", "entry", "stand_in", "size", "tflop", "reason", "command"}
_STATED = {
    *("state", "quantization", "residual", "causal", "mask", "metric", "parametrisation"),
    *("prompt", "note"),
}
"""Fields of a comparison and of its claim that are columns as they are."""

# --- the table ----------------------------------------------------------------------------


def replication(
    recovery: Path, comparisons: Sequence[Comparison], histories: Mapping[str, Path]
) -> pl.DataFrame:
    """Return a row for each row of the chapter and entry that tests it (`REPLICATION_SCHEMA`).

    Args:
        recovery: the long table, with the cells of every comparison that runs.
        comparisons: as `tokinfo.workflow.answers.answers` returns them.
        histories: training histories, by the name of their source.

    Raises:
        TableError: the long table cannot be read or has another schema.
        ValueError: it lacks a cell of a comparison that runs, or a history cannot be read.
    """
    table = scan(recovery).collect(engine="streaming")
    out = [_row(table, comparison, histories) for comparison in comparisons]
    rate = max(
        (
            (row["tflop"], row["tflop"] / row["seconds"], row["row"])
            for row in out
            if row["seconds"]
        ),
        default=None,
    )
    for row, comparison in zip(out, comparisons, strict=True):
        if row["verdict"] != "not run":
            row["command"] = ""
        elif comparison.entry is not None and not comparison.reason:
            row["reason"], row["minutes_needed"] = _time(row["tflop"], rate)
    return pl.DataFrame(out, schema=REPLICATION_SCHEMA)


def _time(tflop: float, rate: tuple[float, float, str] | None) -> tuple[str, float | None]:
    """Say what a row that lacks nothing but time needs, by the largest descent that was run."""
    if rate is None:
        return f"needs time: its published protocol takes {tflop:.3g} TFLOP", None
    minutes = tflop / rate[1] / 60
    return (
        f"needs about {math.ceil(minutes)} minutes on this machine for its published protocol "
        f"({tflop:.3g} TFLOP, at the rate of {rate[2]})"
    ), minutes


def _row(
    table: pl.DataFrame, comparison: Comparison, histories: Mapping[str, Path]
) -> dict[str, Any]:
    claim = comparison.claim
    row: dict[str, Any] = dict.fromkeys(REPLICATION_SCHEMA) | {
        "row": claim.id,
        "claimed_model": claim.model,
        "claimed_site": str(claim.site),
        "published": " | ".join(claim.published),
        "published_found": _stated(claim),
        "models": " ".join(comparison.models),
        **comparison.model_dump(include=_COMPARED),
        **claim.model_dump(include=_STATED),
    }
    ours = None
    if comparison.runs:
        published = _cells(table, comparison.published, comparison)
        others = _cells(table, comparison.others, comparison)
        found, ours = published_columns(published, comparison)
        row |= found
        row |= search_columns(others, comparison)
        row |= sweep_columns(others, comparison)
        row |= prompt_columns(published, others, comparison)
        row |= training_columns(comparison, histories)
        row["reason"] = ""
    row["verdict"] = verdict(
        *(claim.found, claim.share, ours),
        *(row["question_identifiable"], row["joint_returned"]),
        least=claim.least,
        visible=row["visible_found"],
    )
    row["settled"] = settled(claim.share, ours, row["runs"] or 0)
    return row


def _stated(claim: Claim) -> str:
    if claim.share is None:
        return "yes" if claim.found else "no"
    low, high = claim.share
    return f"{low:.0%} of initialisations" if low == high else f"{low:.0%} or more of them"


def _cells(table: pl.DataFrame, cells: Sequence[Cell], comparison: Comparison) -> pl.DataFrame:
    """Return the rows of these cells; a cell that has none was never run."""
    wanted = pl.DataFrame(
        [cell.model_dump() for cell in cells], {key: table.schema[key] for key in CELL_KEYS}
    )
    found = table.join(wanted, on=list(CELL_KEYS), how="semi", maintain_order="left")
    there = found.select(CELL_KEYS).n_unique()
    if there != len(wanted):
        raise InvalidError(
            f"row {comparison.claim.id}: the table has {there} of the {len(wanted)} cells of "
            f"{comparison.entry}"
        )
    # In the order of the cells: the first is the one whose text is shown.
    order = wanted.with_row_index("_order")
    return found.join(order, on=list(CELL_KEYS), how="left").sort("_order", "prompt_id", "position")


# --- the summary --------------------------------------------------------------------------

SUMMARY_SCHEMA: dict[str, pl.DataType] = {
    "answered_by": pl.String(),
    "verdict": pl.String(),
    "rows": pl.Int64(),
}


def counts(table: pl.DataFrame) -> pl.DataFrame:
    """Return how many rows have each verdict, tested with their models and with stand-ins.

    Every verdict is listed, also those that no row has. A row that several stand-ins test counts
    once for each.
    """
    out = []
    for answered_by, part in (
        ("the row's own model", table.filter(pl.col("stand_in") == "")),
        ("stand-in", table.filter(pl.col("stand_in") != "")),
    ):
        for word in VERDICTS:
            rows = len(part.filter(verdict=word))
            out.append({"answered_by": answered_by, "verdict": word, "rows": rows})
    return pl.DataFrame(out, schema=SUMMARY_SCHEMA)


def write_replication(
    recovery: Path,
    comparisons: Sequence[Comparison],
    histories: Mapping[str, Path],
    table: Path,
    table_csv: Path,
    summary_csv: Path,
) -> None:
    """Write `replication` as parquet and as CSV, and `counts` of it as CSV.

    Raises what `replication` raises.
    """
    found = replication(recovery, comparisons, histories)
    with new_file(table) as partial:
        found.write_parquet(partial)
    with new_file(table_csv) as partial:
        found.write_csv(partial)
    with new_file(summary_csv) as partial:
        counts(found).write_csv(partial)
