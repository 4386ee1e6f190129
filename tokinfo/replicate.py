"""The chapter, row by row: what it states, what came out here, and whether the two agree.

Every figure is computed from the long table, and every verdict from the figures
(`tokinfo.agreement`); nothing is typed. A *run* is one start in one model: of an untrained model
mostly another initialisation, of a trained one another start.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tokinfo.agreement import VERDICTS, hollow, settled, verdict
from tokinfo.atomic import new_file
from tokinfo.intervals import Share, clustered_share
from tokinfo.schema import CELL_KEYS
from tokinfo.tables import RECOVERED, scan

_SHARE = ("", "_low", "_high")
_OVER_PROMPTS = ("found", "adam", "joint", "identifiable")
REPLICATION_SCHEMA: dict[str, pl.DataType] = {
    **dict.fromkeys(("row", "verdict"), pl.String()),
    "settled": pl.Boolean(),
    "hollow": pl.Boolean(),
    **dict.fromkeys(("reason", "command", "entry", "stand_in"), pl.String()),
    # what is stated, and of what
    **dict.fromkeys(("claimed_model", "state", "quantization", "claimed_site"), pl.String()),
    "residual": pl.Boolean(),
    "causal": pl.Boolean(),
    **dict.fromkeys(("mask", "metric", "parametrisation", "prompt"), pl.String()),
    **dict.fromkeys(("criterion", "published", "published_found"), pl.String()),
    # what answers it, under the published protocol
    **dict.fromkeys(("models", "size", "site", "padding", "ours"), pl.String()),
    **dict.fromkeys(("runs", "runs_found", "initialisations"), pl.Int64()),
    **{f"found{end}": pl.Float64() for end in _SHARE},
    "tokens_found": pl.Float64(),
    "visible_found": pl.Float64(),
    # other searches, and what is there to be found
    **dict.fromkeys(("adam_found", "joint_found", "joint_certified", "recovered"), pl.Float64()),
    "swept": pl.Int64(),
    **{f"identifiable{end}": pl.Float64() for end in _SHARE},
    **dict.fromkeys(("margin", "noise_floor", "bits"), pl.Float64()),
    "vocabulary": pl.Int64(),
    # the same over all prompts, passages among them
    "n_prompts": pl.Int64(),
    **{f"prompts_{what}{end}": pl.Float64() for what in _OVER_PROMPTS for end in _SHARE},
    # what the models were trained on, and what all this took
    "trained_tokens": pl.Int64(),
    **dict.fromkeys(("train_loss", "held_out_loss"), pl.Float64()),
    **dict.fromkeys(("published_held_out_loss", "loss_gap"), pl.Float64()),
    **dict.fromkeys(("tflop", "seconds", "minutes_needed"), pl.Float64()),
    **dict.fromkeys(("device", "model_digests", "code_digests", "note"), pl.String()),
}
"""Columns of `replication.parquet`. ``found``: share of runs in which the tokens in question came
out by the row's own criterion; ``tokens_found``: of these tokens, over all runs. ``identifiable``
is of swept tokens around the true prompt, ``margin`` their median. ``prompts_found``,
``prompts_adam`` and ``prompts_joint``: share of the tokens in question that the published protocol
and other searches found (top-1, in place) over all prompts that the row was asked of, passages and
its own among them; ``prompts_identifiable``: of the swept ones. Intervals of these are over
prompts."""


@dataclass(frozen=True)
class Training:
    """How far a source was trained, from the last line of its history.

    Attributes:
        tokens: tokens seen.
        train_loss: mean next-token loss on them, nats.
        held_out_loss: on held-out text.
    """

    tokens: int
    train_loss: float
    held_out_loss: float


def read_training(history: Path) -> Training:
    """Read the last line of a training history; raises ValueError where there is none."""
    with history.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise ValueError(f"{history}: a training history without a line")
    last = rows[-1]
    return Training(int(last["tokens"]), float(last["train_loss"]), float(last["held_out_loss"]))


# --- the table ----------------------------------------------------------------------------


def replication(
    recovery: Path, answers: Sequence[Mapping[str, Any]], histories: Mapping[str, Path]
) -> pl.DataFrame:
    """Return one row for each row of the chapter and what answers it (`REPLICATION_SCHEMA`).

    Args:
        recovery: the long table, with the cells of every answer that runs.
        answers: as `tokinfo.answers.answers` returns them.
        histories: training histories, by the name of their source.

    Raises:
        TableError: the long table cannot be read or has another schema.
        ValueError: it lacks a cell of an answer that runs, or a history is empty.
    """
    table = scan(recovery).collect(engine="streaming")
    out = [_row(table, answer, histories) for answer in answers]
    rate = max(
        (
            (row["tflop"], row["tflop"] / row["seconds"], row["row"])
            for row in out
            if row["seconds"]
        ),
        default=None,
    )
    for row, answer in zip(out, answers, strict=True):
        if row["verdict"] != "not run":
            row["command"] = ""
        elif answer["entry"] is not None and not answer["reason"]:
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
    table: pl.DataFrame, answer: Mapping[str, Any], histories: Mapping[str, Path]
) -> dict[str, Any]:
    claim, claimed = answer["claim"], answer["claimed"]
    stated = claim["share"]
    row: dict[str, Any] = dict.fromkeys(REPLICATION_SCHEMA) | {
        "row": answer["row"],
        "reason": answer["reason"],
        "command": answer["command"],
        "entry": answer["entry"],
        "stand_in": answer["stand_in"],
        "claimed_model": claim["model"],
        "claimed_site": claim["site"],
        "criterion": answer["criterion"],
        "published": " | ".join(claim["published"]),
        "published_found": _stated(claim),
        "models": " ".join(answer["models"]),
        "size": answer["size"],
        "tflop": answer["tflop"],
        "note": claim["note"],
        **{
            name: claim[name]
            for name in (
                *("state", "quantization", "residual", "causal", "mask", "metric"),
                *("parametrisation", "prompt"),
            )
        },
    }
    ours = None
    if answer["runs"]:
        published = _cells(table, answer["published"], answer)
        others = _cells(table, answer["others"], answer)
        ours = _published(row, published, answer)
        _others(row, others, answer)
        _over_prompts(row, published, others, answer)
        _trained(row, answer, claimed, histories)
        row["reason"] = ""
    row["verdict"] = verdict(
        claim["found"], None if stated is None else tuple(stated), ours, row["identifiable"]
    )
    row["hollow"] = ours is not None and (
        row["verdict"].startswith("agrees")
        and hollow(claim["found"], claim["least"], ours, row["visible_found"])
    )
    row["settled"] = settled(None if stated is None else tuple(stated), ours)
    return row


def _stated(claim: Mapping[str, Any]) -> str:
    if claim["share"] is None:
        return "yes" if claim["found"] else "no"
    low, high = claim["share"]
    return f"{low:.0%} of initialisations" if low == high else f"{low:.0%} or more of them"


def _cells(
    table: pl.DataFrame, cells: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]
) -> pl.DataFrame:
    """Return the rows of these cells; a cell that has none was never run."""
    wanted = pl.DataFrame(
        [{key: cell[key] for key in CELL_KEYS} for cell in cells],
        schema={key: table.schema[key] for key in CELL_KEYS},
    )
    found = table.join(wanted, on=list(CELL_KEYS), how="semi", maintain_order="left")
    there = found.select(CELL_KEYS).n_unique()
    if there != len(wanted):
        raise ValueError(
            f"row {answer['row']}: the table has {there} of the {len(wanted)} cells of "
            f"{answer['entry']}"
        )
    # In the order of the cells: the first is the one whose text is shown.
    order = wanted.with_row_index("_order")
    return found.join(order, on=list(CELL_KEYS), how="left").sort("_order", "prompt_id", "position")


# --- the published protocol ---------------------------------------------------------------


def _published(row: dict[str, Any], rows: pl.DataFrame, answer: Mapping[str, Any]) -> Share:
    """Fill in what the published protocol found; return the share of runs that found it."""
    claim = answer["claim"]
    own = rows.filter(pl.col("prompt") == claim["prompt"])
    outcomes = [
        (model, *_tokens(part, answer))
        for (model, *_), part in own.group_by("model", "seed", "prompts", maintain_order=True)
    ]
    by_model: dict[str, list[bool]] = {}
    for model, found, of in outcomes:
        by_model.setdefault(model, []).append(found >= claim["least"] * of - 1e-9)
    groups = list(by_model.values())
    if len(groups) == 1:
        groups = [[one] for one in groups[0]]
    share = clustered_share([sum(group) for group in groups], [len(group) for group in groups])
    first = own.row(0, named=True)
    one = own.filter(model=first["model"], seed=first["seed"], prompts=first["prompts"])
    row |= {
        "site": " ".join(rows["site"].unique(maintain_order=True)),
        "padding": first["padding"],
        "ours": " | ".join(_texts(one, claim["top_k"])),
        "runs": len(outcomes),
        "runs_found": sum(map(sum, groups)),
        "initialisations": len(by_model),
        **_of("found", share),
        "tokens_found": sum(o[1] for o in outcomes) / sum(o[2] for o in outcomes),
        "visible_found": own.filter("visible")["correct"].mean(),
        "seconds": rows.unique([*CELL_KEYS, "prompt_id"])["seconds"].sum(),
        "device": " ".join(rows["device"].unique(maintain_order=True)),
        "model_digests": " ".join(d[:12] for d in rows["model_digest"].unique(maintain_order=True)),
        "code_digests": " ".join(d[:12] for d in rows["code_digest"].unique(maintain_order=True)),
    }
    return share


def _tokens(rows: pl.DataFrame, answer: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many of the tokens in question one run found, by the row's criterion."""
    claim = answer["claim"]
    asked = rows.filter(~pl.col("visible")) if answer["hides"] else rows
    if not claim["unordered"]:
        best = pl.col("top5_ids").list.head(claim["top_k"])
        return int(asked.select(best.list.contains(pl.col("true_id")).sum()).item()), len(asked)
    if claim["top_k"] == 1:
        return int(asked["in_prompt"].sum()), len(asked)
    # Each of the k texts holds every position once: a token counts as often as it came out.
    texts = Counter(rows["top5_ids"].list.head(claim["top_k"]).explode().to_list())
    wanted = Counter(asked["true_id"].to_list())
    return sum(min(count, texts[token]) for token, count in wanted.items()), len(asked)


def _texts(rows: pl.DataFrame, count: int) -> list[str]:
    """Return the best text of one run, or its best ``count``."""
    if count == 1:
        return ["".join(rows["found_token"])]
    lists = rows["top5_tokens"].to_list()
    return ["".join(tokens[place] for tokens in lists) for place in range(count)]


def _of(name: str, share: Share | None) -> dict[str, float | None]:
    values = (None,) * 3 if share is None else (share.value, share.low, share.high)
    return {f"{name}{end}": value for end, value in zip(_SHARE, values, strict=True)}


# --- other searches, and what is there ----------------------------------------------------


def _others(row: dict[str, Any], rows: pl.DataFrame, answer: Mapping[str, Any]) -> None:
    own = rows.filter(pl.col("prompt") == answer["claim"]["prompt"])
    for kind in ("adam", "joint"):
        runs = [
            _tokens(part, answer)
            for _, part in own.filter(kind=kind).group_by("model", "solver", maintain_order=True)
        ]
        least = answer["claim"]["least"]
        if runs:
            row[f"{kind}_found"] = sum(n >= least * of - 1e-9 for n, of in runs) / len(runs)
    joint = own.filter(kind="joint")
    if len(joint):
        prompts = joint.unique([*CELL_KEYS, "prompt_id"])
        row["joint_certified"] = (prompts["verdict"] == "certified").mean()
        row["recovered"] = joint.select(RECOVERED.mean()).item()
    swept = own.filter((pl.col("around") == "true") & pl.col("identified").is_not_null())
    if swept.is_empty():
        return
    models = swept.group_by("model", maintain_order=True).agg(
        found=(pl.col("identified") == "identifiable").sum(), of=pl.len()
    )
    row |= {
        "swept": len(swept),
        **_of("identifiable", clustered_share(models["found"].to_list(), models["of"].to_list())),
        "margin": swept["margin"].median(),
        "noise_floor": swept["noise_floor"].median(),
        "bits": swept["bits"].mean(),
        "vocabulary": swept["vocabulary"].max(),
    }


def _over_prompts(
    row: dict[str, Any],
    published: pl.DataFrame,
    others: pl.DataFrame,
    answer: Mapping[str, Any],
) -> None:
    """Fill in what was found of all prompts that the row was asked of."""
    asked = ~pl.col("visible") if answer["hides"] else pl.lit(value=True)
    told = (pl.col("around") == "true") & pl.col("identified").is_not_null()
    counted = {
        "found": (published.filter(asked), pl.col("correct")),
        "adam": (others.filter(asked, kind="adam"), pl.col("correct")),
        "joint": (others.filter(asked, kind="joint"), pl.col("correct")),
        "identifiable": (others.filter(told), pl.col("identified") == "identifiable"),
    }
    row["n_prompts"] = published.select("prompts", "prompt_id").n_unique()
    for name, (rows, hit) in counted.items():
        prompts = rows.group_by("prompts", "prompt_id", maintain_order=True).agg(
            found=hit.sum(), of=pl.len()
        )
        if len(prompts):
            share = clustered_share(prompts["found"].to_list(), prompts["of"].to_list())
            row |= _of(f"prompts_{name}", share)


def _trained(
    row: dict[str, Any],
    answer: Mapping[str, Any],
    claimed: Mapping[str, Any],
    histories: Mapping[str, Path],
) -> None:
    known = [histories[name] for name in answer["sources"] if name in histories]
    if answer["claim"]["state"] != "trained" or not known:
        return
    training = read_training(known[0])
    published = claimed["held_out_loss"]
    row |= {
        "trained_tokens": training.tokens,
        "train_loss": training.train_loss,
        "held_out_loss": training.held_out_loss,
        "published_held_out_loss": published,
        "loss_gap": None if published is None else training.held_out_loss - published,
    }


# --- the summary --------------------------------------------------------------------------

SUMMARY_SCHEMA: dict[str, pl.DataType] = {
    "answered_by": pl.String(),
    "verdict": pl.String(),
    "rows": pl.Int64(),
    "hollow": pl.Int64(),
}


def counts(table: pl.DataFrame) -> pl.DataFrame:
    """Return how many rows have each verdict, by their own models and by stand-ins apart.

    Every verdict is listed, those that no row has too. A row that several stand-ins answer
    counts once for each.
    """
    out = []
    for answered_by, part in (
        ("the row's own model", table.filter(pl.col("stand_in") == "")),
        ("stand-in", table.filter(pl.col("stand_in") != "")),
    ):
        for word in VERDICTS:
            own = part.filter(verdict=word)
            told = {"rows": len(own), "hollow": own["hollow"].sum()}
            out.append({"answered_by": answered_by, "verdict": word, **told})
    return pl.DataFrame(out, schema=SUMMARY_SCHEMA)


def write_replication(
    recovery: Path,
    answers: Sequence[Mapping[str, Any]],
    histories: Mapping[str, Path],
    table: Path,
    table_csv: Path,
    summary_csv: Path,
) -> None:
    """Write `replication` as parquet and as CSV, and `counts` of it as CSV.

    Raises what `replication` raises.
    """
    found = replication(recovery, answers, histories)
    with new_file(table) as partial:
        found.write_parquet(partial)
    with new_file(table_csv) as partial:
        found.write_csv(partial)
    with new_file(summary_csv) as partial:
        counts(found).write_csv(partial)
