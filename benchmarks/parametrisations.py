r"""The same descents on embeddings and on mixtures of tokens: which of them find hidden tokens?

    OMP_NUM_THREADS=1 python benchmarks/parametrisations.py RESULTS TEXT \
        docs/evidence/parametrisations.csv

RESULTS is the results directory of a study with the checkpoints `smollm2/1` and `smollm2/8`; TEXT a
file of real prose. Three leading tokens of eight are hidden, and the others are known. Candidates
are the tokens of the passage and of what follows it, the true ones among them, for both
parametrisations alike. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from common import write
from exact import alone_losses

from tokinfo.models.checkpoint import load
from tokinfo.solvers import adam, chapter
from tokinfo.solvers.decoding import read_inverse_gram
from tokinfo.solvers.pose import make_problem
from tokinfo.study.cell import Cell
from tokinfo.study.solvers import AdamSolver, ChapterSolver, DecodeSettings, MetricWeights

MODEL, BLOCKS = "smollm2", (1, 8)
HIDDEN, TOKENS, AROUND = 3, 8, 64
PROMPTS, STEPS = 5, 100


def texts(path: Path, model: object, count: int) -> list[tuple[str, str]]:
    """Return passages, spread evenly over a text, each with what its candidates are taken from."""
    tokenizer = model.tokenizer  # type: ignore[attr-defined]
    ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids
    found = []
    for start in torch.linspace(0, len(ids) - AROUND, 4 * count).int().tolist():
        passage = tokenizer.decode(ids[start : start + TOKENS]).strip()
        around = tokenizer.decode(ids[start : start + AROUND]).strip()
        if len(tokenizer.encode(passage).ids) == TOKENS and "<|" not in around:
            found.append((passage, f"{passage} {around}"))
    return found[:count]


def main() -> None:
    """Descend on both, behind each block; the table is written anew after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    gram = read_inverse_gram(options.results / "decoders" / f"{MODEL}.safetensors")
    for block in BLOCKS:
        model = load(options.results / "checkpoints" / MODEL / str(block))
        for kind, parametrisation in (
            (kind, one) for kind in ("chapter", "adam") for one in ("embedding", "mixture")
        ):
            hit = certified = candidates = 0
            spent = []
            for passage, around in texts(options.text, model, PROMPTS):
                decode = DecodeSettings(restricted_to=around)
                solver = (ChapterSolver if kind == "chapter" else AdamSolver)(
                    steps=STEPS, decode=decode
                )
                cell = Cell(
                    model=MODEL,
                    site=f"block.{block}",
                    residual=True,
                    causal=True,
                    padding="none",
                    mask=f"{HIDDEN}:",
                    known="visible",
                    metric="l1",
                    parametrisation=parametrisation,
                    solver=kind,
                    prompts="text",
                    seed=0,
                )
                problem, truth = make_problem(model, gram, cell, solver, MetricWeights(), [passage])
                begun = time.process_time()
                solve = chapter.solve if kind == "chapter" else adam.solve
                ids = solve(problem, solver).top_ids[..., 0]  # type: ignore[operator]
                spent.append(time.process_time() - begun)
                hit += int((ids == truth)[:, :HIDDEN].sum())
                certified += int(alone_losses(problem, ids)[0] <= problem.floor[0])
                candidates += problem.decoder.size
            rows.append(
                {
                    "model": MODEL,
                    "block": block,
                    "solver": kind,
                    "parametrisation": parametrisation,
                    "steps": STEPS,
                    "candidates_mean": candidates / PROMPTS,
                    "prompts": PROMPTS,
                    "prompts_certified": certified,
                    "hidden": HIDDEN * PROMPTS,
                    "hidden_found": hit,
                    "seconds_median": round(sorted(spent)[len(spent) // 2], 1),
                }
            )
            write(options.out, rows)


if __name__ == "__main__":
    main()
