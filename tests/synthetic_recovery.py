"""Made-up recovery tables of a study's shape: for tables, figures and pages, never for claims."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from tokinfo.study.known import Known
from tokinfo.study.masks import Mask
from tokinfo.tables.schema import RECOVERY_SCHEMA

PROMPTS = (
    "The sky is blue.",
    "This is a prompt sentence",
    "Mario the man versus Mario the idea",
    "Four score and seven years ago",
    "Geralt of Rivia",
    "Blue is the sky.",
    "The sky is red or blue depending on the time of day.",
    "Mario the idea versus the man",
    "Mario, the Idea, versus Mario, the Man",
    "Once upon a time there was a cat",
)


@dataclass(frozen=True)
class FakeModel:
    """How a made-up model behaves: chance that a visible or hidden token is found."""

    name: str
    source: str
    family: str
    depth: int
    visible: float = 0.95
    hidden: float = 0.02
    state: str = "trained"
    quantization: str = "float32"
    note: str = ""
    vocabulary: int = 4096


def default_models() -> list[FakeModel]:
    """Return eleven models in the shape of the default study."""
    models = []
    for form, hidden in (("flat", 0.85), ("expanded", 0.08), ("parallel", 0.95)):
        base = FakeModel(form, form, f"mixer-{form}", 8, hidden=hidden)
        models += [base, replace(base, name=f"{form}-untrained", state="untrained")]
    llama = FakeModel("transformer", "transformer", "llama", 8, visible=0.8)
    models += [llama, replace(llama, name="transformer-untrained", state="untrained")]
    note = "dequantised from 4-bit Q4_1"
    smol = FakeModel("smollm2", "smollm2", "llama", 30, 0.9, 0.0, note=note, vocabulary=49152)
    models += [
        smol,
        replace(smol, name="smollm2-int8", quantization="int8", visible=0.7),
        replace(smol, name="smollm2-untrained", state="untrained", visible=0.85, note=""),
    ]
    return models


def cell_rows(
    model: FakeModel,
    *,
    block: int = 1,
    mask: str = "1:",
    metric: str = "l1",
    solver: str = "adam",
    seed: int = 0,
    texts: tuple[str, ...] = PROMPTS,
    **fixed: Any,
) -> list[dict[str, Any]]:
    """Return the rows of one made-up cell; the same arguments give the same rows."""
    chance = random.Random(f"{model.name} {block} {mask} {metric} {solver} {seed}")
    weaker = (0.6 if solver == "chapter" else 1.0) * (0.9 if metric == "cosine" else 1.0)
    rows = []
    for number, prompt in enumerate(texts):
        words = prompt.split(" ")
        tokens = [words[0], *(f" {word}" for word in words[1:])]
        ids = [sum(map(ord, token)) % model.vocabulary for token in tokens]
        visible = Mask(mask).visible(len(ids))
        # Nothing visible depends on what stands here or later.
        end = max(visible, default=-1) + 1 if fixed.get("causal", True) else len(ids)
        luck = chance.uniform(-0.15, 0.15)
        found = [
            true
            if chance.random() < weaker * (model.visible if p in visible else model.hidden) + luck
            else (true + 17 + p) % model.vocabulary
            for p, true in enumerate(ids)
        ]
        first = 1000.0 * (0.001 if metric == "cosine" else 1.0)
        loss = first * 10 ** chance.uniform(-6, -1)
        left = list(ids)
        for position, (true, guess) in enumerate(zip(ids, found, strict=True)):
            matched = guess in left
            if matched:
                left.remove(guess)
            rows.append(
                {
                    "model": model.name,
                    "source": model.source,
                    "family": model.family,
                    "state": model.state,
                    "quantization": model.quantization,
                    "outlier_threshold": 6.0 if model.quantization == "int8" else None,
                    "weights_note": model.note,
                    "site": f"block.{block}" if block else "embedding",
                    "block": block,
                    "depth": model.depth,
                    "residual": True,
                    "causal": True,
                    "padding": "none",
                    "mask": mask,
                    "metric": metric,
                    "parametrisation": "embedding",
                    "solver": solver,
                    "kind": solver if solver in ("chapter", "sweep", "joint") else "adam",
                    "seed": seed,
                    "prompts": "chapter",
                    "target": "own",
                    "known": "none",
                    "prompt_id": number,
                    "prompt": prompt,
                    "position": position,
                    "visible": position in visible,
                    "given": False,
                    "independent": position >= end,
                    "true_id": true,
                    "true_token": tokens[position],
                    "found_id": guess,
                    "found_token": tokens[position] if guess == true else f" w{guess}",
                    "top5_ids": [guess, true + 1, true + 2, true + 3, true + 4],
                    "top5_tokens": [f" w{guess}", "a", "b", "c", "d"],
                    "correct": guess == true,
                    "in_top5": guess == true,
                    "in_prompt": matched,
                    "reference_id": true if solver == "chapter" else None,
                    "published_correct": guess == true if solver == "chapter" else None,
                    "loss": loss,
                    "first_loss": first,
                    "true_loss": 1e-5,
                    "restart": 0,
                    "restarts": 1,
                    "steps": 300,
                    "seconds": 0.25,
                    "evaluations": 301,
                    "device": "cpu",
                    "dtype": "float32",
                    "vocabulary": model.vocabulary,
                    "model_digest": "0" * 12,
                    "code_digest": "0" * 12,
                    **fixed,
                }
            )
    return rows


def known_rows(rows: list[dict[str, Any]], known: str = "visible") -> list[dict[str, Any]]:
    """Return made-up rows as those of a solver that was given some tokens."""
    length = {row["prompt_id"]: row["position"] + 1 for row in rows}
    out = []
    for row in rows:
        positions = Known(known).positions(Mask(row["mask"]), length[row["prompt_id"]])
        given = row["position"] in positions
        put = {"found_id": row["true_id"], "found_token": row["true_token"], **_NOT_SOUGHT}
        out.append(row | {"known": known, "given": given} | (put if given else {}))
    return out


_NOT_SOUGHT = dict.fromkeys(("correct", "in_top5", "in_prompt", "published_correct"))
_NOTHING_FOUND = dict.fromkeys(("found_id", "found_token", "top5_ids", "top5_tokens"))


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return rows as a table of the exact schema, absent columns null."""
    return pl.DataFrame(rows, schema=RECOVERY_SCHEMA)


def default_study(models: list[FakeModel] | None = None) -> pl.DataFrame:
    """Return the long table of a study with the default's shape (about 350 cells)."""
    rows: list[dict[str, Any]] = []
    for model in models or default_models():
        for block in (1, model.depth):
            for mask in (":", "1:", "3:", "-1"):
                for metric in ("l1", "cosine"):
                    for solver in ("chapter", "adam"):
                        rows += cell_rows(
                            model, block=block, mask=mask, metric=metric, solver=solver
                        )
    return frame(rows)


def write_tables(rows: pl.DataFrame, directory: Path) -> tuple[Path, Path]:
    """Write recovery.parquet and its summary; return both paths."""
    from tokinfo.tables.summary import summarise

    recovery, summary = directory / "recovery.parquet", directory / "summary.parquet"
    rows.write_parquet(recovery)
    summarise(recovery, summary, directory / "summary.csv")
    return summary, recovery


def swept_rows(
    model: FakeModel,
    *,
    around: str = "true",
    there: float = 0.9,
    floor: float = 1e-3,
    threshold: float | None = 0.1,
    **cell: Any,
) -> list[dict[str, Any]]:
    """Return the rows of one made-up cell of a sweep (``true``) or a joint search (``found``).

    Args:
        model: the model; a joint search finds ``model.hidden`` of its hidden tokens.
        around: what was swept around.
        there: chance that a hidden token is identifiable.
        floor: noise floor.
        threshold: about where an identifiable token is lost in noise; None: not measured.
        **cell: as `cell_rows` takes it.
    """
    solver = "sweep" if around == "true" else "joint"
    searched = replace(model, hidden=1.0, visible=1.0) if around == "true" else model
    rows = cell_rows(searched, solver=solver, **cell)
    chance = random.Random(f"{model.name} {solver} {cell}")
    whole: dict[int, bool] = {}
    for row in rows:
        whole[row["prompt_id"]] = whole.get(row["prompt_id"], True) and bool(row["correct"])
    for row in rows:
        certified = around == "true" or whole[row["prompt_id"]]
        row |= {"around": around, "noise_floor": floor, "found_loss": 0.0 if certified else 40.0}
        row["verdict"] = "certified" if certified else "search failure"
        if around == "true":
            row |= dict.fromkeys(("loss", "first_loss", "found_loss", "verdict"))
        if row["visible"]:
            if around == "true":
                row |= _NOT_SOUGHT | _NOTHING_FOUND
            continue
        size = model.vocabulary
        if row["independent"]:
            row |= {"identified": "ambiguous", "rank": size, "margin": 0.0, "candidates": size}
            row |= {"bits": 0.0, "bits_high": 0.0, "noise_threshold": 0.0}
            continue
        sole = certified and chance.random() < there
        few = chance.randint(2, 40)
        rank = 1 if sole else min(size, chance.randint(1, few))
        if around == "found" and not row["correct"]:
            rank = int(size ** chance.uniform(0.2, 0.95))
        row |= {
            "identified": "identifiable" if sole else "ambiguous" if certified else "excluded",
            "rank": rank,
            "margin": floor * 10 ** chance.uniform(1, 5) if sole else -floor / 2,
            "candidates": 1 if sole else few if certified else 0,
            "claimed_id": row["true_id"] if sole else None,
            "bits": math.log2(size) - (0 if sole else math.log2(few)) if certified else None,
            "bits_high": math.log2(size) if certified else None,
        }
        if threshold is not None and around == "true":
            drawn = threshold * 10 ** chance.gauss(0, 0.4)
            row |= {"noise_threshold": drawn if sole else 0.0, "noise_step": 1.5}
    return rows


def identifiability_study(models: list[FakeModel] | None = None) -> pl.DataFrame:
    """Return the long table of a study with descents, sweeps, joint searches and controls."""
    rows: list[dict[str, Any]] = []
    for number, model in enumerate(models or default_models()):
        for block in (1, model.depth):
            for mask in ("1:", "3:", ":2"):
                cell: dict[str, Any] = {"block": block, "mask": mask}
                weak = replace(model, hidden=0.0 if mask == ":2" else model.hidden / (block + 1))
                rows += cell_rows(weak, solver="chapter", **cell)
                rows += cell_rows(weak, solver="adam", **cell)
                there = 0.98 - 0.06 * number * (1 if block == 1 else 1.5)
                floor = {"int8": 2.0}.get(model.quantization, 1e-3 * block)
                rows += swept_rows(
                    model, there=there, floor=floor, threshold=2 / (block + 3 * number), **cell
                )
                found = 0.0 if mask == ":2" else max(0.1, there - 0.1 * block / model.depth)
                strong = replace(model, hidden=found, visible=1.0)
                rows += swept_rows(strong, around="found", there=there, floor=floor, **cell)
    return frame(rows)
