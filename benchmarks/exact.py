"""`sequential` on real text, every position visible: is it exact, and what does it save?

    python benchmarks/exact.py RESULTS TEXT docs/evidence/exact.csv

RESULTS is the results directory of a study with checkpoints of the model at the requested blocks;
TEXT a file of real prose. It is compared with a full sweep of every position, on a subset of
prompts and positions in the same run; the sweep's evaluations are counted in full.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from common import write

from tokinfo.models.checkpoint import Checkpoint, load
from tokinfo.solvers import sequential
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.decoding import read_inverse_gram
from tokinfo.solvers.pose import make_problem
from tokinfo.solvers.problem import Problem, Result
from tokinfo.solvers.substitution import Substitution
from tokinfo.study.cell import Cell
from tokinfo.study.fields import Parametrisation
from tokinfo.study.known import Known
from tokinfo.study.solvers import MetricWeights, SequentialSolver, Solver


def passages(text: Path, model: Checkpoint, count: int, tokens: int) -> list[str]:
    """Return passages of exactly ``tokens`` tokens, spread evenly over a text."""
    ids = model.tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    found: list[str] = []
    for tried in (4 * count, 64 * count):
        for start in torch.linspace(0, len(ids) - 2 * tokens, tried).int().tolist():
            passage = model.tokenizer.decode(ids[start : start + tokens]).strip()
            whole = model.tokenizer.encode(passage).ids
            if len(whole) == tokens and passage not in found and "<|" not in passage:
                found.append(passage)
            if len(found) == count:
                return found
    raise SystemExit(f"{text}: only {len(found)} of {count} passages of {tokens} tokens")


def pose(
    results: Path,
    model: str,
    block: int,
    prompts: list[str],
    mask: str = ":",
    solver: Solver | None = None,
    known: str = "none",
    parametrisation: Parametrisation = "embedding",
) -> tuple[Problem, torch.Tensor]:
    """Return the problem of one model, block and mask, distance l1, and the true tokens.

    The solver says which tokens are candidates.
    """
    solver = solver or SequentialSolver()
    checkpoint = load(results / "checkpoints" / model / str(block))
    cell = Cell(
        model=model,
        site=f"block.{block}",
        residual=True,
        causal=True,
        padding="none",
        mask=mask,
        metric="l1",
        parametrisation=parametrisation,
        solver=solver.kind,
        prompts="text",
        known=Known(known),
        seed=0,
    )
    gram = read_inverse_gram(results / "decoders" / f"{model}.safetensors")
    return make_problem(checkpoint, gram, cell, solver, MetricWeights(), prompts)


def last_position_sweep(problem: Problem, truth: torch.Tensor, row: int, batcher: Batcher) -> float:
    """Return the seconds of one full sweep at the middle position, as a search would do it."""
    one = problem.rows(torch.tensor([row]))
    middle = int(one.layout.seen[0]) // 2
    around = one.decoder.embedding[truth[row]]
    moved = Substitution(one, around, middle, batcher, upto=middle + 1)
    begun = time.perf_counter()
    moved.residuals(one.decoder.ids)
    return time.perf_counter() - begun


def main() -> None:
    """Search, compare with full sweeps, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 15, 30])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--swept", type=int, default=2, help="full sweeps timed per block")
    parser.add_argument("--at-once", type=int, default=100, help="prompts searched in one batch")
    options = parser.parse_args()
    model = load(options.results / "checkpoints" / options.model / str(options.blocks[0]))
    prompts = passages(options.text, model, options.prompts, options.tokens)
    rows = []
    for block in options.blocks:
        problem, truth = pose(options.results, options.model, block, prompts)
        batcher = Batcher()
        last_position_sweep(problem, truth, 0, batcher)  # finds the batch size
        one_sweep = sum(
            last_position_sweep(problem, truth, row, batcher) for row in range(options.swept)
        ) / max(options.swept, 1)
        rows.append({})
        parts: list[Result] = []
        spent = 0.0
        # Behind many blocks a batch takes long: the table says how far it is after each.
        for numbers in torch.arange(len(prompts)).split(options.at_once):
            begun = time.perf_counter()
            parts.append(sequential.solve(problem.rows(numbers), SequentialSolver()))
            spent += time.perf_counter() - begun
            done = problem.rows(torch.arange(int(numbers[-1]) + 1))
            found = row_of(done, truth, Result.concatenate(parts), spent, one_sweep)
            rows[-1] = {"model": options.model, "block": block, **found}
            write(options.out, rows)


def row_of(
    problem: Problem, truth: torch.Tensor, result: Result, spent: float, one_sweep: float
) -> dict[str, object]:
    """Return the table's row about the prompts searched so far."""
    hit = result.top_ids[..., 0] == truth[: len(problem.target)]
    exact = alone_losses(problem, result.top_ids[..., 0])
    positions = int(problem.layout.scored.sum())
    evaluations = int(result.evaluations.sum())
    return {
        "prompts": len(hit),
        "tokens": positions,
        "tokens_found": int(hit.sum()),
        "certified": int((exact <= problem.floor).sum()),
        "floor_median": float(problem.floor.median()),
        "evaluations": evaluations,
        "fewer_evaluations": round(positions * problem.decoder.size / evaluations, 1),
        "seconds": round(spent, 2),
        "seconds_per_prompt": round(spent / len(hit), 3),
        "seconds_one_sweep": round(one_sweep, 3),
        "times_faster": round(one_sweep * positions / spent, 1),
    }


def alone_losses(problem: Problem, ids: torch.Tensor) -> torch.Tensor:
    """Return the distance of found prompts, each computed alone as its target was."""
    from tokinfo.probe.metrics import distance
    from tokinfo.probe.noise import alone

    found = alone(problem.probe, problem.decoder.embedding, ids, problem.layout.seen)
    return distance(found, problem.target, problem.layout.visible, problem.metric, problem.weights)


if __name__ == "__main__":
    main()
