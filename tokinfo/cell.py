"""One cell: load a checkpoint, make the targets, solve, score, write one parquet file."""

from __future__ import annotations

import gc
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokinfo.io.atomic import new_file
from tokinfo.io.errors import TokinfoError
from tokinfo.io.provenance import versions
from tokinfo.models.checkpoint import Checkpoint, load
from tokinfo.models.placement import pick_device
from tokinfo.models.remote_code import trusted
from tokinfo.models.unigram import entropy, read_unigrams
from tokinfo.solvers.decoding import read_inverse_gram
from tokinfo.solvers.identification import Identification
from tokinfo.solvers.pose import activations, make_problem
from tokinfo.solvers.problem import Problem, Result
from tokinfo.solvers.run import run
from tokinfo.solvers.scores import found_unordered, prompt_scores, published_reference, verdict
from tokinfo.solvers.watch import Watch, lines
from tokinfo.study.cell import CellSettings
from tokinfo.study.solvers import ChapterSolver, SweepSolver
from tokinfo.study.targets import OWN
from tokinfo.text.documents import read_passages

log = logging.getLogger(__name__)


class CellError(TokinfoError):
    """A cell failed in an expected way; the message names the cell."""


def run_cell(
    settings: CellSettings,
    checkpoint: Path,
    decoder: Path,
    out: Path,
    *,
    target: Path | None = None,
    prior: Path | None = None,
    passages: Path | None = None,
    device: str = "auto",
    threads: int = 1,
    code_digest: str = "",
) -> None:
    """Run one cell and write its rows to ``out``.

    Args:
        settings: the cell, and what solving it depends on; kept in the file's metadata.
        checkpoint: directory of the model's checkpoint.
        decoder: the model's inverse Gram matrix.
        out: parquet file to write.
        target: checkpoint of the model whose activations are to be explained, where the cell's
            target names one.
        prior: unigram probabilities of the model's tokens, where the study names a prior.
        passages: the cell's prompts, where they are drawn from a text and not in ``settings``.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads.
        code_digest: digest of the code that makes a cell.

    Raises:
        CellError: the cell failed in an expected way; the message names it.
    """
    torch.set_num_threads(threads)
    cell, solver = settings.cell, settings.solver
    try:
        if passages is not None:
            settings = settings.model_copy(update={"prompts": tuple(read_passages(passages))})
        prompts = settings.prompts
        other, more = None, {}
        if target is not None:
            # Before the cell's model is loaded: memory need not hold both.
            with trusted(settings.trust_target_code):
                another = load(target, pick_device(device))
            other = activations(another, cell, prompts)
            more = {"target_digest": another.facts.digest}
            del another
            gc.collect()  # layers of bitsandbytes hold each other
        with trusted(settings.trust_remote_code):
            model = load(checkpoint, pick_device(device))
        problem, truth = make_problem(
            *(model, read_inverse_gram(decoder), cell, solver, settings.metric_weights, prompts),
            other=other,
            prior=None if prior is None else read_unigrams(prior),
        )
        begun = time.perf_counter()
        result = run(problem, solver, truth, watch=Watch(lines(solver.kind)))
        seconds = time.perf_counter() - begun
        rows = make_rows(settings, model, problem, truth, result)
    except (TokinfoError, OSError) as error:
        raise CellError(f"cell {cell.path}: {error}") from error
    constants = {"seconds": seconds / len(prompts), "code_digest": code_digest}
    write(out, [row | constants for row in rows], settings, more)


def make_rows(
    settings: CellSettings, model: Checkpoint, problem: Problem, truth: Tensor, result: Result
) -> list[dict[str, Any]]:
    """Return one row per prompt and scored position: the columns of `tokinfo.tables.schema`."""
    from tokinfo.tables.schema import RECOVERY_SCHEMA

    cell, solver = settings.cell, settings.solver
    layout, embedding = problem.layout, problem.decoder.embedding
    noise = problem.floor.tolist()
    found_ids = layout.padded(result.top_ids[..., 0].to(truth))
    searched = result.around != "true"  # a sweep around the true prompt finds no prompt
    of_truth = problem.judged(truth)
    away, within, apart = problem.judged(found_ids) if searched else of_truth
    residual, at_positions = away.tolist(), apart.tolist()
    true_loss = of_truth[0].tolist()
    position_floor = problem.noise.positions.tolist()
    independent = problem.independent.tolist()
    norms = torch.linalg.vector_norm(problem.target.double(), dim=-1)
    shares = (problem.noise.positions.double() / norms).nan_to_num(posinf=0.0)
    floors = [one[seen].tolist() for one, seen in zip(shares, layout.visible, strict=True)]
    reference = None
    if isinstance(solver, ChapterSolver):
        reference = published_reference(
            problem.decoder, truth, solver.reference_noise, cell.seed
        ).tolist()
    facts = model.facts
    constants = {
        **dict.fromkeys(RECOVERY_SCHEMA),
        **cell.model_dump(),
        "source": settings.source,
        "family": facts.family,
        "state": settings.state,
        "quantization": settings.quantization,
        "outlier_threshold": facts.outlier_threshold,
        "weights_note": settings.weights_note,
        "block": cell.block,
        "depth": facts.depth,
        "width": facts.d_model,
        # Of models that were trained here.
        "training_share": facts.training_share,
        "training_tokens": facts.training_tokens,
        "held_out_loss": facts.held_out_loss,
        "device": _device_name(embedding.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "kind": solver.kind,
        "vocabulary": problem.decoder.size,
        "noise_step": solver.noise.step
        if isinstance(solver, SweepSolver) and solver.noise
        else None,
        "prior_entropy": None if problem.prior is None else entropy(problem.prior),
        "noise": problem.ratio,
        "restarts": result.restarts,
        "model_digest": facts.digest,
    }
    rows: list[dict[str, Any]] = []
    tops = result.top_ids.tolist()
    for number, prompt in enumerate(model.read(settings.prompts)):
        length = int(layout.lengths[number])
        true = truth[number, :length].tolist()
        found = found_ids[number, :length].tolist()
        visible = layout.visible[number, :length].tolist()
        unordered = found_unordered(found, true, visible)
        first = float(result.first_loss[number])
        curve = None if result.curve is None else result.curve[number]
        roles: dict[int, str] = {}
        for role, held in prompt.spans.items():
            # A token that holds something of two roles is the first one's.
            roles = dict.fromkeys(held, role) | roles
        swept = result.identified[number] if result.identified is not None else {}
        asked = [
            position
            for position in range(length)
            if not problem.given[number, position] and not independent[number][position]
        ]
        hidden = [position for position in asked if not visible[position]]
        if hidden or not all(visible):
            asked = hidden
        scores = (
            prompt_scores([found[p] for p in asked], [true[p] for p in asked]) if searched else None
        )
        exact, bag, edits = scores or (None, None, None)
        of_prompt = {
            "prompt_id": number,
            "prompt": prompt.text,
            "loss": float(result.loss[number]) if searched else None,
            "first_loss": None if math.isnan(first) else first,
            "found_loss": residual[number] if searched else None,
            "true_loss": true_loss[number],
            "noise_floor": noise[number],
            "verdict": verdict(
                residual[number],
                true_loss[number],
                noise[number],
                within=bool(within[number]),
                explained=cell.target == OWN,
            )
            if searched
            else None,
            "prompt_exact": exact,
            "token_f1": bag,
            "edit_similarity": edits,
            "restart": int(result.restart[number]),
            "steps": int(result.steps[number]),
            "path": None if result.path is None else result.path[number],
            "stopped": None if result.stopped is None else result.stopped[number],
            "evaluations": int(result.evaluations[number]),
            "curve_steps": None if curve is None else list(result.curve_steps[: len(curve)]),
            "curve": curve,
            # At every position, swept or not: where it is `true` the other tokens were known.
            "around": result.around if swept or result.around == "true" else None,
        }
        for position in range(length):
            given = bool(problem.given[number, position])
            # A sweep around the true prompt does not visit every position.
            visited = found[position] >= 0
            top = tops[number][position] if visited else None
            reference_id = reference[number][position] if reference else None
            sought = visited and not given
            rows.append(
                constants
                | of_prompt
                | {
                    "position": position,
                    "visible": visible[position],
                    "position_loss": at_positions[number][position]
                    if searched and visible[position]
                    else None,
                    "position_floor": position_floor[number][position]
                    if visible[position]
                    else None,
                    "role": roles.get(position),
                    "given": given,
                    "independent": independent[number][position],
                    "true_id": true[position],
                    "true_token": model.text(true[position]),
                    "found_id": found[position] if visited else None,
                    "found_token": model.text(found[position]) if visited else None,
                    "top5_ids": top,
                    "top5_tokens": None if top is None else [model.text(token) for token in top],
                    "correct": found[position] == true[position] if sought else None,
                    "in_top5": true[position] in top if top and sought else None,
                    "in_prompt": unordered[position] if sought else None,
                    "reference_id": reference_id,
                    "published_correct": reference_id in top
                    if reference_id is not None and top and sought
                    else None,
                }
                | _identification(swept.get(position), problem.decoder.ids, floors[number])
            )
    return rows


def _identification(
    found: Identification | None, candidates: Tensor, floors: list[float]
) -> dict[str, Any]:
    """Return the columns of one position's sweep; none where nothing was swept."""
    if found is None:
        return {}
    return {
        "identified": found.verdict,
        "rank": found.rank,
        "margin": found.margin,
        "candidates": found.candidates,
        "claimed_id": None if found.claimed is None else int(candidates[found.claimed]),
        "bits": found.bits_low,
        "bits_high": found.bits_high,
        "prior_bits": found.prior_bits_low,
        "prior_bits_high": found.prior_bits_high,
        "noise_threshold": found.noise_threshold,
        "carried": list(found.carried),
        "carried_floor": floors,
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def write(
    out: Path, rows: list[dict[str, Any]], settings: CellSettings, more: Mapping[str, str]
) -> None:
    """Write rows as parquet, with versions and settings in the file's metadata."""
    import polars as pl

    from tokinfo.tables.schema import RECOVERY_SCHEMA

    frame = pl.DataFrame(rows, schema=RECOVERY_SCHEMA)
    given = settings.model_dump(mode="json", exclude_unset=True)
    cell = given.pop("cell")
    about = json.dumps({"cell": cell, "settings": {**given, **more}, "versions": versions()})
    with new_file(out) as partial:
        frame.write_parquet(partial, metadata={"tokinfo": about})
