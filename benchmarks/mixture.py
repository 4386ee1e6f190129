r"""Hidden leading tokens by `mixture`: how many come back, from how few positions, at what cost.

    OMP_NUM_THREADS=1 python benchmarks/mixture.py RESULTS docs/evidence/mixture.csv TEXT...

RESULTS is the results directory of a study with the requested checkpoints `model/blocks`; each TEXT
a file of real prose. A case is `model/blocks:known:hidden+visible:prompts`, with `known` either
`visible` (the tokens behind the hidden ones are given) or `none`. No truth enters a search: what
is right is counted afterwards. With `--joint N` that solver searches the first N prompts too. With
`--together N` so many prompts are one run, which shares what they have in common, and a time limit.
Seconds are processor time, the mean over a run's prompts.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch
from common import write
from exact import alone_losses, passages, pose

from tokinfo.models.checkpoint import load
from tokinfo.solvers.problem import Problem, Result
from tokinfo.solvers.run import run
from tokinfo.study.solvers import JointSolver, MixtureSolver

CASES = (
    "smollm2/1:none:3+5:10",
    "smollm2/1:visible:8+8:10",
    "smollm2/1:none:4+1:10",
    "smollm2/1:none:8+1:10",
    "smollm2/1:none:8+8:10",
    "smollm2/1:visible:16+16:10",
    "smollm2/1:visible:32+16:5",
    "smollm2/1:visible:16+1:5",
    "smollm2/1:visible:64+32:2",
    "smollm2/8:visible:3+5:5",
    "smollm2/8:visible:8+8:5",
    "smollm2/8:none:4+1:5",
    "smollm2/8:none:8+1:5",
    "smollm2-int8/1:visible:8+8:2",
    "transformer/4:visible:8+8:5",
)


def searched(
    name: str,
    problem: Problem,
    truth: torch.Tensor,
    settings: JointSolver | MixtureSolver,
    together: int = 1,
) -> dict[str, object]:
    """Return what a solver finds of prompts, so many in a run, and its processor time a prompt."""
    results: list[Result] = []
    spent: list[float] = []
    for rows in torch.arange(len(truth)).split(together):
        begun = time.process_time()
        results.append(run(problem.rows(rows), settings, truth[rows]))
        spent.append((time.process_time() - begun) / len(rows))
    ids = problem.layout.padded(torch.cat([result.top_ids[..., 0] for result in results]))
    hidden = ~problem.layout.visible & problem.layout.scored
    certified = alone_losses(problem, ids) <= problem.floor
    hit = ids == truth
    return {
        "solver": name,
        "path": (results[0].path or [None])[0],
        "prompts": len(truth),
        "prompts_together": together,
        "prompts_certified": int(certified.sum()),
        "prompts_exact": int((hit | ~problem.layout.scored).all(1).sum()),
        "hidden": int(hidden.sum()),
        "hidden_found_and_certified": int((hit & hidden & certified[:, None]).sum()),
        "seconds_median": round(sorted(spent)[len(spent) // 2], 1),
        "seconds_most": round(max(spent), 1),
        "prompts_stopped": sum(
            reason is not None for result in results for reason in result.stopped or []
        ),
    }


def posed(results: Path, text: Path, case: str) -> tuple[dict[str, object], Problem, torch.Tensor]:
    """Return what a case is, its problem and the true tokens."""
    cell, known, sizes, count = case.split(":")
    model, block = cell.rsplit("/", 1)
    hidden, visible = map(int, sizes.split("+"))
    checkpoint = load(results / "checkpoints" / model / block)
    prompts = passages(text, checkpoint, int(count), hidden + visible)
    problem, truth = pose(results, model, int(block), prompts, f"{hidden}:", known=known)
    facts = {
        "text": text.name.split(".")[0],
        "model": model,
        "block": block,
        "known": known,
        "hidden_leading": hidden,
        "visible": visible,
        "vocabulary": problem.decoder.size,
    }
    return facts, problem, truth


def main() -> None:
    """Run the cases; the table is written anew after each of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--joint", type=int, default=0, help="prompts that `joint` is run on too")
    parser.add_argument("--minutes", type=float, help="after which a run is given up")
    parser.add_argument("--together", type=int, default=1, help="prompts of a run of `mixture`")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for text, case in itertools.product(options.texts, options.cases):
        facts, problem, truth = posed(options.results, text, case)
        solvers: dict[str, JointSolver | MixtureSolver] = {
            "mixture": MixtureSolver(minutes=options.minutes)
        }
        if options.joint:
            solvers["joint"] = JointSolver(
                sweep_found=False, mixtures=False, minutes=options.minutes
            )
        for name, settings in solvers.items():
            few = torch.arange(len(truth) if name == "mixture" else min(options.joint, len(truth)))
            together = options.together if name == "mixture" else 1
            found = searched(name, problem.rows(few), truth[few], settings, together)
            rows.append({**facts, **found})
            write(options.out, rows)


if __name__ == "__main__":
    main()
