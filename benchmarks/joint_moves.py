"""What each wider move of `joint` is worth: the same prompts with one of them left out.

python benchmarks/joint_moves.py RESULTS TEXT docs/evidence/joint_moves.csv --cells transformer/1

Behind the first block mixtures leave the other moves nothing to do: with `--no-mixtures` these are
measured there.
"""

from __future__ import annotations

import itertools
import time
from contextlib import nullcontext
from unittest import mock

import torch
from cells import chosen, parser
from common import write
from exact import alone_losses, pose

from tokinfo.solvers import joint
from tokinfo.solvers.detect import Detected
from tokinfo.solvers.problem import Problem
from tokinfo.study.solvers import AdamSolver, JointSolver

LEFT_OUT: dict[str, dict[str, object]] = {
    "nothing": {},
    "mixtures": {"mixtures": False},
    "gradient": {"gradient_candidates": 1},
    "detection": {"detections": 0},
    "rounds of detection": {"detection_rounds": 1},
    "detections after the first": {"detections": 1},
    "combinations of several tokens": {"combinations": 1},
    "checked windows in the descent": {"descent": AdamSolver()},
    "descent but for one step": {"descent": AdamSolver(steps=1)},
    "starts after the first": {"restarts": 1},
}


def _left_out(search: joint._Search) -> bool:
    """Make no move."""
    return search.certified


def _unmended(search: joint._Search, ids: torch.Tensor) -> bool:
    """Keep a prompt as it is, if it is the nearest: only the mending is left out."""
    search._keep(float(search._distances(ids[None])[0]), ids)
    return search.certified


def _all_visible(problem: Problem) -> int:
    return problem.target.shape[1]


WITHOUT: dict[str, tuple[object, str, object]] = {
    "swaps": (joint._Search, "_swapped", _left_out),
    "extension": (joint._Search, "_extended", _unmended),
    "nearest positions first": (joint, "enough", _all_visible),
    "certain visible tokens": (Detected, "sure", False),
}
"""What no setting leaves out: the function that does it, and what stands in for it."""


def main() -> None:
    """Search with each set of moves and write the table after each."""
    arguments = parser(__doc__, ["transformer/1"], prompts=8)
    arguments.add_argument("--hidden", type=int, nargs="+", default=[1, 3])
    arguments.add_argument(
        "--left-out", nargs="+", default=[*LEFT_OUT, *WITHOUT], help="what to leave out in turn"
    )
    arguments.add_argument("--no-mixtures", action="store_true", help="leave them out of all rows")
    options = arguments.parse_args()
    everywhere: dict[str, object] = {"sweep_found": False}
    everywhere |= {"mixtures": False} if options.no_mixtures else {}
    rows: list[dict[str, object]] = []
    for cell, hidden in itertools.product(chosen(options), options.hidden):
        problem, truth = pose(
            options.results, cell.model, cell.block, cell.prompts, mask=f"{hidden}:"
        )
        for name in options.left_out:
            begun = time.process_time()
            solver = JointSolver.model_validate(everywhere | LEFT_OUT.get(name, {}))
            without = WITHOUT.get(name)
            with mock.patch.object(*without) if without else nullcontext():
                result = joint.solve(problem, solver)
            ids = problem.layout.padded(result.top_ids[..., 0])
            hit = (ids == truth)[:, :hidden]
            certified = alone_losses(problem, ids) <= problem.floor
            rows.append(
                {
                    "model": cell.model,
                    "block": cell.block,
                    "hidden_leading": hidden,
                    "left_out": name,
                    "mixtures": solver.mixtures,
                    "found_by": "+".join(sorted(set(result.path or []))),
                    "prompts": len(cell.prompts),
                    "prompts_certified": int(certified.sum()),
                    "hidden": hit.numel(),
                    "hidden_found_and_certified": int((hit & certified[:, None]).sum()),
                    "evaluations_per_prompt": round(float(result.evaluations.double().mean())),
                    "cpu_seconds_per_prompt": round(
                        (time.process_time() - begun) / len(cell.prompts), 2
                    ),
                }
            )
            write(options.out, rows)


if __name__ == "__main__":
    main()
