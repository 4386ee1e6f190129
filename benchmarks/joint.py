r"""Hidden leading tokens, nothing known: `joint` against `chapter` and `adam` on the same cells.

    python benchmarks/joint.py RESULTS TEXT docs/evidence/joint.csv \\
        --cells smollm2/1 flat/1 transformer/1 --hidden 1 3 --prompts 20

RESULTS is the results directory of a study with the requested checkpoints `model/blocks`; TEXT a
file of real prose. For each cell a sweep around the true prompt says what is identifiable at all,
so that "not found" is distinguished from "not there". Where a vocabulary is large and many
blocks lie before the site that is most of the work: with `--swept N` the first N prompts are swept,
and those that joint search does not certify. `--first N` begins behind N prompts that another run
has measured; its rows go beside that run's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from cells import chosen, parser
from common import write
from exact import alone_losses, pose

from tokinfo.solvers import adam, chapter, joint
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.problem import Problem, Result
from tokinfo.solvers.substitution import Substitution
from tokinfo.solvers.sweep import sweep
from tokinfo.study.solvers import AdamSolver, ChapterSolver, JointSolver

_NEAR = 16
"""Candidates that the bound leaves within so many floors are swept in full."""


def identifiable(problem: Problem, truth: torch.Tensor) -> torch.Tensor:
    """Return which hidden tokens a sweep around the true prompt identifies, bool [row, position].

    The verdict of a sweep for a part of its work: the distance at the first visible position bounds
    the whole from below (l1), and only candidates that are near there are computed in full. How
    far off the others are is not computed.
    """
    found = torch.zeros_like(problem.layout.visible)
    batcher = Batcher()
    for row, ids in enumerate(truth):
        one = problem.rows(torch.tensor([row]))
        visible = one.layout.visible[0]
        context = one.decoder.embedding[ids]
        for position in (one.layout.scored[0] & ~visible).nonzero()[:, 0].tolist():
            first = position + int(visible[position:].to(torch.uint8).argmax())
            bound = Substitution(one, context, position, batcher, upto=first + 1)
            near = bound.residuals(one.decoder.ids) <= _NEAR * one.floor[0]
            near[one.decoder.ids == ids[position]] = True
            few = replace(one, decoder=replace(one.decoder, candidates=one.decoder.ids[near]))
            judged, _ = sweep(few, ids, ids, [position], batcher)
            found[row, position] = position in judged and judged[position].verdict == "identifiable"
    return found


def row_of(
    name: str,
    problem: Problem,
    truth: torch.Tensor,
    result: Result,
    spent: float,
    count: int,
    there: dict[int, torch.Tensor],
) -> dict[str, object]:
    """Return what one solver found on the cell's first prompts.

    Args:
        name: the solver's.
        problem: the cell's, of all prompts.
        truth: their tokens.
        result: the solver's, of ``count`` prompts or more.
        spent: seconds that it took.
        count: prompts that are counted, from the first.
        there: of each prompt that was swept, which positions are identifiable, bool [1, position].
    """
    rows = range(count)
    problem = problem.rows(torch.arange(count))
    ids = problem.layout.padded(result.top_ids[rows, :, 0])
    hit = ids == truth[:count]
    visible = problem.layout.visible
    certified = alone_losses(problem, ids) <= problem.floor
    whole = (hit | ~problem.layout.scored).all(1)
    hidden = ~visible & problem.layout.scored
    swept = list(there)
    identified = torch.cat(list(there.values())) if there else hidden[swept]
    gained = hit & hidden & certified[:, None]
    return {
        "prompts": count,
        "solver": name,
        "hidden_found": int(hit[hidden].sum()),
        "hidden": int(hidden.sum()),
        "hidden_found_and_certified": int(gained.sum()),
        "hidden_swept": int(hidden[swept].sum()),
        "hidden_identifiable": int(identified.sum()),
        "identifiable_found_and_certified": int((gained[swept] & identified).sum()),
        "visible_found": int(hit[visible].sum()),
        "visible": int(visible.sum()),
        "prompts_certified": int(certified.sum()),
        "prompts_exact": int(whole.sum()),
        "evaluations": int(result.evaluations[rows].sum()),
        "seconds_per_prompt": round(spent / len(result.evaluations), 3),
    }


def timed(solve: Callable[[], Result]) -> tuple[Result, float]:
    """Return a solver's result and the seconds it took."""
    begun = time.perf_counter()
    return solve(), time.perf_counter() - begun


def main() -> None:
    """Run every solver on every cell; the table is written anew after each prompt."""
    arguments = parser(__doc__, ["smollm2/1"], prompts=20)
    arguments.add_argument("--hidden", type=int, nargs="+", default=[1, 3])
    arguments.add_argument(
        "--swept", type=int, help="prompts swept whatever joint search finds (default: all)"
    )
    arguments.add_argument("--first", type=int, default=0, help="the first prompt (default: 0)")
    options = arguments.parse_args()
    done: list[dict[str, object]] = []
    for cell, hidden in itertools.product(chosen(options), options.hidden):
        mask = f"{hidden}:"
        every, true = pose(options.results, cell.model, cell.block, cell.prompts, mask)
        problem = every.rows(torch.arange(options.first, len(cell.prompts)))
        truth = true[options.first :]
        rate = 2.0 if cell.checkpoint.facts.family == "llama" else 0.02
        descents = {
            "chapter": timed(partial(chapter.solve, problem, ChapterSolver(learning_rate=rate))),
            "adam": timed(partial(adam.solve, problem, AdamSolver())),
        }
        there: dict[int, torch.Tensor] = {}
        searched, spent = [], 0.0
        rows: list[dict[str, object]] = []
        for number in range(len(problem.target)):
            one = problem.rows(torch.tensor([number]))
            result, took = timed(partial(joint.solve, one, JointSolver(sweep_found=False)))
            searched.append(result)
            spent += took
            certified = alone_losses(one, result.top_ids[..., 0]) <= one.floor
            requested = options.swept is None or options.first + number < options.swept
            if requested or not bool(certified.all()):
                there[number] = identifiable(one, truth[number, None])
            solvers = {**descents, "joint": (Result.concatenate(searched), spent)}
            facts = {"model": cell.model, "block": cell.block, "hidden_leading": hidden}
            facts["first_prompt"] = options.first
            rows = [
                {**facts, **row_of(name, problem, truth, found, seconds, number + 1, there)}
                for name, (found, seconds) in solvers.items()
            ]
            write(options.out, [*done, *rows])
        done += rows


if __name__ == "__main__":
    main()
