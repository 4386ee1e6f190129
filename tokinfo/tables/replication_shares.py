"""Shares of one row of the chapter, counted in the rows that its cells have in the long table.

Each of the functions returns the columns of the `replication` table that it knows.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tokinfo.io.damaged import reading
from tokinfo.tables.intervals import Share, clopper_pearson, clustered_share
from tokinfo.tables.recovery import OTHERS_KNOWN, RECOVERED, SOUGHT
from tokinfo.tables.schema import CELL_KEYS

if TYPE_CHECKING:
    from tokinfo.study.claims import Claim, Comparison

ENDS = ("", "_low", "_high")
"""A share is three columns: its value, and the ends of its interval."""

OVER_PROMPTS = ("found", "adam", "joint", "identifiable")
"""Shares over all prompts of a row, in columns ``prompts_...``."""

_IDENTIFIABLE = pl.col("identified") == "identifiable"
_SWEPT = OTHERS_KNOWN & SOUGHT & pl.col("identified").is_not_null()

# --- the published protocol ---------------------------------------------------------------


def published_columns(rows: pl.DataFrame, comparison: Comparison) -> tuple[dict[str, Any], Share]:
    """Return what the published protocol found, and the share of runs that found it.

    Args:
        rows: of the cells under the published protocol.
        comparison: of the row.
    """
    claim = comparison.claim
    of_prompt = rows.filter(prompt=claim.prompt)
    outcomes = [
        (model, *_tokens(part, comparison))
        for (model, *_), part in of_prompt.group_by("model", "seed", "prompts", maintain_order=True)
    ]
    hits = sum(_suffices(found, of, claim) for _, found, of in outcomes)
    share = clopper_pearson(hits, len(outcomes))
    first, once = of_prompt.row(0, named=True), of_prompt.unique([*CELL_KEYS, "prompt_id"])
    one = of_prompt.filter(model=first["model"], seed=first["seed"], prompts=first["prompts"])
    return {
        "site": " ".join(rows["site"].unique(maintain_order=True)),
        "padding": first["padding"],
        "ours": " | ".join(_texts(one, claim.top_k)),
        "runs": len(outcomes),
        "runs_found": hits,
        "initialisations": len({model for model, *_ in outcomes}),
        **_share_columns("found", share),
        "tokens_found": sum(o[1] for o in outcomes) / sum(o[2] for o in outcomes),
        "visible_found": of_prompt.filter("visible")["correct"].mean(),
        "first_loss": once["first_loss"].median(),
        "loss": once["loss"].median(),
        "seconds": rows.unique([*CELL_KEYS, "prompt_id"])["seconds"].sum(),
        "device": " ".join(rows["device"].unique(maintain_order=True)),
        "model_digests": " ".join(d[:12] for d in rows["model_digest"].unique(maintain_order=True)),
        "code_digests": " ".join(d[:12] for d in rows["code_digest"].unique(maintain_order=True)),
    }, share


def _suffices(found: int, of: int, claim: Claim) -> bool:
    return found >= claim.least * of - 1e-9


def _tokens(rows: pl.DataFrame, comparison: Comparison) -> tuple[int, int]:
    """Return how many of the tokens in question one run found, by the row's criterion."""
    claim = comparison.claim
    in_question = rows.filter(_in_question(comparison))
    if not claim.unordered:
        best = pl.col("top5_ids").list.head(claim.top_k)
        return int(in_question.select(best.list.contains(pl.col("true_id")).sum()).item()), len(
            in_question
        )
    if claim.top_k == 1:
        return int(in_question["in_prompt"].sum()), len(in_question)
    # Each of the k texts holds every position once: a token counts as often as it was decoded, less
    # once for each copy of it that is not in question.
    texts = Counter(rows["top5_ids"].list.head(claim.top_k).explode().to_list())
    texts -= Counter(rows.filter(~_in_question(comparison))["true_id"].to_list())
    wanted = Counter(in_question["true_id"].to_list())
    return sum(min(count, texts[token]) for token, count in wanted.items()), len(in_question)


def _in_question(comparison: Comparison) -> pl.Expr:
    """Hidden tokens, or all of them where the row hides none."""
    return ~pl.col("visible") if comparison.hides else pl.lit(value=True)


def _texts(rows: pl.DataFrame, count: int) -> list[str]:
    """Return the best text of one run, or its best ``count``."""
    if count == 1:
        return ["".join(rows["found_token"])]
    lists = rows["top5_tokens"].to_list()
    return ["".join(tokens[place] for tokens in lists) for place in range(count)]


def _share_columns(name: str, share: Share) -> dict[str, float]:
    values = (share.value, share.low, share.high)
    return {f"{name}{end}": value for end, value in zip(ENDS, values, strict=True)}


# --- other searches, and what is there ----------------------------------------------------


def search_columns(rows: pl.DataFrame, comparison: Comparison) -> dict[str, Any]:
    """Return what other searches found in the row's prompt, of each kind the entry's first one.

    Args:
        rows: of the cells of other solvers.
        comparison: of the row.
    """
    claim = comparison.claim
    of_prompt = rows.filter(prompt=claim.prompt)
    out: dict[str, Any] = {}
    for kind in ("adam", "joint"):
        mine = _by_first(of_prompt, kind)
        runs = [
            (_suffices(*_tokens(part, comparison), claim), (part["verdict"] == "certified").all())
            for _, part in mine.group_by("model", maintain_order=True)
        ]
        if runs:
            out[f"{kind}_found"] = sum(found for found, _ in runs) / len(runs)
            out[f"{kind}_visible"] = mine.filter("visible")["correct"].mean()
        if runs and kind == "joint":
            prompts = mine.unique([*CELL_KEYS, "prompt_id"])
            out["joint_certified"] = (prompts["verdict"] == "certified").mean()
            out["joint_returned"] = sum(all(run) for run in runs) / len(runs)
            out["recovered"] = mine.select(RECOVERED.mean()).item()
    return out


def _by_first(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Return the rows of the first solver of a kind: searches of other strength are not pooled."""
    return rows.filter(kind=kind).filter(pl.col("solver") == pl.col("solver").first())


def sweep_columns(rows: pl.DataFrame, comparison: Comparison) -> dict[str, Any]:
    """Return what sweeps around the row's prompt identify; nothing where none was made.

    Arguments as `search_columns` takes them.
    """
    of_prompt = rows.filter(OTHERS_KNOWN & SOUGHT, prompt=comparison.claim.prompt)
    swept = of_prompt.filter(_SWEPT)
    if swept.is_empty():
        return {}
    position = ("model", "seed", "prompts", "prompt_id", "position")
    in_question = of_prompt.filter(_in_question(comparison)).group_by(position)
    return {
        "swept": len(swept),
        # A position that no sweep visited is not identified.
        "question_identifiable": in_question.agg(hit=_IDENTIFIABLE.any())["hit"].mean(),
        **_share_columns("identifiable", _share_by("model", swept, _IDENTIFIABLE)),
        "margin": swept["margin"].median(),
        "noise_floor": swept["noise_floor"].median(),
        "bits": swept["bits"].mean(),
        "vocabulary": swept["vocabulary"].max(),
    }


def prompt_columns(
    published: pl.DataFrame, others: pl.DataFrame, comparison: Comparison
) -> dict[str, Any]:
    """Return what was found of all prompts that the row was run on, its own among them.

    Args:
        published: rows of the cells under the published protocol.
        others: of the cells of other solvers.
        comparison: of the row.
    """
    in_question = _in_question(comparison) & SOUGHT
    counted = {
        "found": (published.filter(in_question), pl.col("correct")),
        "adam": (_by_first(others, "adam").filter(in_question), pl.col("correct")),
        "joint": (_by_first(others, "joint").filter(in_question), pl.col("correct")),
        "identifiable": (others.filter(_SWEPT), _IDENTIFIABLE),
    }
    out: dict[str, Any] = {"n_prompts": published["prompt"].n_unique()}
    for name, (rows, hit) in counted.items():
        if len(rows):
            out |= _share_columns(f"prompts_{name}", _share_by("prompt", rows, hit))
    return out


def _share_by(key: str, rows: pl.DataFrame, hit: pl.Expr) -> Share:
    """Return the share of hits among rows; the rows of one group are not independent."""
    groups = rows.group_by(key, maintain_order=True).agg(found=hit.sum(), of=pl.len())
    return clustered_share(groups["found"].to_list(), groups["of"].to_list())


# --- training -----------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingEnd:
    """How far a source was trained, from the last line of its history.

    Attributes:
        tokens: tokens seen.
        train_loss: mean next-token loss on them, nats.
        held_out_loss: on held-out text.
    """

    tokens: int
    train_loss: float
    held_out_loss: float


def read_training(history: Path) -> TrainingEnd:
    """Read the last line of a training history; raises DamagedError where there is none."""
    with reading(history):
        with history.open(encoding="utf-8", newline="") as stream:
            *_, last = csv.DictReader(stream)
        losses = float(last["train_loss"]), float(last["held_out_loss"])
        return TrainingEnd(int(last["tokens"]), *losses)


def training_columns(comparison: Comparison, histories: Mapping[str, Path]) -> dict[str, Any]:
    """Return how far the row's trained model was trained; nothing of an untrained or foreign one.

    Args:
        comparison: of the row.
        histories: training histories, by the name of their source.

    Raises DamagedError where a history cannot be read.
    """
    trained = [histories[name] for name in comparison.sources if name in histories]
    if comparison.claim.state != "trained" or not trained:
        return {}
    training = read_training(trained[0])
    published = comparison.claimed.held_out_loss
    return {
        "trained_tokens": training.tokens,
        "train_loss": training.train_loss,
        "held_out_loss": training.held_out_loss,
        "published_held_out_loss": published,
        "loss_gap": None if published is None else training.held_out_loss - published,
    }
