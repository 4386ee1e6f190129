r"""The same descents on embeddings and on mixtures of tokens: which of them find hidden tokens?

    OMP_NUM_THREADS=1 python benchmarks/parametrisations.py RESULTS TEXT \
        docs/evidence/parametrisations.csv

RESULTS is the results directory of a study with the checkpoints `smollm2/1` and `smollm2/8`; TEXT a
file of real prose. Three leading tokens of eight are hidden, and the others are known. Candidates
are the tokens of all prompts, the true ones among them, for both parametrisations alike. Seconds
are processor time, of all prompts as one batch.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

from common import write
from exact import alone_losses, passages, pose

from tokinfo.models.checkpoint import load
from tokinfo.solvers.run import run
from tokinfo.study.fields import Parametrisation
from tokinfo.study.solvers import AdamSolver, ChapterSolver, DecodeSettings

MODEL, BLOCKS = "smollm2", (1, 8)
HIDDEN, TOKENS = 3, 8
PROMPTS, STEPS = 5, 100
PARAMETRISATIONS: tuple[Parametrisation, ...] = ("embedding", "mixture")


def main() -> None:
    """Descend on both, behind each block; the table is written anew after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    model = load(options.results / "checkpoints" / MODEL / str(BLOCKS[0]))
    prompts = passages(options.text, model, PROMPTS, TOKENS)
    # Each on a line of its own: its first token is then the one that a prompt begins with.
    decode = DecodeSettings(restricted_to="\n".join(prompts))
    solvers = (ChapterSolver(steps=STEPS, decode=decode), AdamSolver(steps=STEPS, decode=decode))
    for block, solver, parametrisation in itertools.product(BLOCKS, solvers, PARAMETRISATIONS):
        problem, truth = pose(
            *(options.results, MODEL, block, prompts, f"{HIDDEN}:", solver),
            known="visible",
            parametrisation=parametrisation,
        )
        missing = set(truth.flatten().tolist()) - set(problem.decoder.ids.tolist())
        assert not missing, f"true tokens that are no candidates: {missing}"
        begun = time.process_time()
        ids = run(problem, solver, truth).top_ids[..., 0]
        rows.append(
            {
                "model": MODEL,
                "block": block,
                "solver": solver.kind,
                "parametrisation": parametrisation,
                "steps": STEPS,
                "candidates": problem.decoder.size,
                "prompts": PROMPTS,
                "prompts_certified": int((alone_losses(problem, ids) <= problem.floor).sum()),
                "hidden": HIDDEN * PROMPTS,
                "hidden_found": int((ids == truth)[:, :HIDDEN].sum()),
                "seconds": round(time.process_time() - begun, 1),
            }
        )
        write(options.out, rows)


if __name__ == "__main__":
    main()
