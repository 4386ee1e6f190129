"""The published protocol one prompt at a time, against the `adam` solver's batch.

    python benchmarks/descent.py docs/evidence/descent.csv

Both on the same untrained flat mixer (d = 512, 8 blocks, n_ctx = 14), site block.8, mask `3:`,
32 prompts of 14 random tokens, in one run: times are ratios inside it. The published protocol
is timed on the first few prompts (its time does not depend on the prompt) and scored on all of
them; `adam` is timed and scored on all.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from common import write
from torch import Tensor

from tokinfo.models.mixer import MixerSpec, MixerStack
from tokinfo.probe.batch import make_batch
from tokinfo.probe.noise import alone, floor
from tokinfo.probe.probe import Probe
from tokinfo.solvers import adam, chapter
from tokinfo.solvers.decoding import Decoder, inverse_gram
from tokinfo.solvers.problem import Problem, Result
from tokinfo.study.masks import Mask
from tokinfo.study.sites import Site
from tokinfo.study.solvers import AdamSolver, ChapterSolver, MetricWeights

VOCABULARY, WIDTH, BLOCKS, LENGTH, PROMPTS = 4096, 512, 8, 14, 32


def make_problem(seed: int = 0) -> tuple[Problem, Tensor]:
    """Return 32 random prompts as a problem, the first three tokens hidden, and their tokens."""
    torch.manual_seed(seed)
    mixer = MixerStack(MixerSpec(VOCABULARY, WIDTH, BLOCKS, LENGTH)).eval().requires_grad_(False)
    embedding = mixer.embed_tokens.weight
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(VOCABULARY, (PROMPTS, LENGTH), generator=generator).tolist()
    batch = make_batch(ids, Mask("3:"), pad_id=0)
    probe = Probe(mixer, Site("block", BLOCKS))
    target = alone(probe, embedding, batch.ids, batch.layout.seen)
    problem = Problem(
        probe=probe,
        decoder=Decoder(embedding, inverse_gram(embedding)),
        layout=batch.layout,
        known=torch.full_like(batch.ids, -1),
        target=target.masked_fill(~batch.layout.visible[..., None], 0),
        metric="l1",
        weights=MetricWeights(),
        parametrisation="embedding",
        seed=seed,
        noise=floor(probe, embedding, batch, target, "l1"),
        numbers=torch.arange(PROMPTS),
    )
    return problem, batch.ids


def shares(problem: Problem, truth: Tensor, result: Result) -> tuple[float, float]:
    """Return the share of hidden and of visible tokens found."""
    hit = result.top_ids[..., 0] == truth
    visible = problem.layout.visible
    return float(hit[~visible].float().mean()), float(hit[visible].float().mean())


def main() -> None:
    """Time both and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--timed", type=int, default=3, help="prompts timed one at a time")
    parser.add_argument("--steps", type=int, default=ADAM.steps)
    parser.add_argument("--learning-rate", type=float, default=ADAM.learning_rate)
    parser.add_argument("--final-share", type=float, default=ADAM.final_share)
    options = parser.parse_args()
    problem, truth = make_problem()
    published = ChapterSolver()
    settings = ADAM.model_copy(
        update={
            "steps": options.steps,
            "learning_rate": options.learning_rate,
            "final_share": options.final_share,
        }
    )
    chapter.solve(problem.rows(torch.tensor([0])), ChapterSolver(steps=5))  # warm up
    begun = time.perf_counter()
    for row in range(options.timed):
        chapter.solve(problem.rows(torch.tensor([row])), published)
    one_at_a_time = (time.perf_counter() - begun) / options.timed

    begun = time.perf_counter()
    batch = adam.solve(problem, settings)
    batched = (time.perf_counter() - begun) / PROMPTS

    hidden, visible = shares(problem, truth, chapter.solve(problem, published))
    adam_hidden, adam_visible = shares(problem, truth, batch)
    # Forward and gradient to the input, each a product with every weight of the MLPs.
    operations = 2 * 2 * BLOCKS * 8 * WIDTH**2 * LENGTH * PROMPTS * settings.steps
    left, right = torch.randn(LENGTH * PROMPTS, WIDTH), torch.randn(WIDTH, 4 * WIDTH)
    begun = time.perf_counter()
    for _ in range(50):
        left @ right
    rate = 50 * 2 * LENGTH * PROMPTS * WIDTH * 4 * WIDTH / (time.perf_counter() - begun)
    write(
        options.out,
        [
            {
                "method": "chapter, one prompt at a time",
                "steps": published.steps,
                "seconds_per_prompt": round(one_at_a_time, 4),
                "hidden_found": round(hidden, 4),
                "visible_found": round(visible, 4),
                "times_faster": 1.0,
                "share_of_matrix_rate": "",
            },
            {
                "method": "adam, one batch",
                "steps": settings.steps,
                "seconds_per_prompt": round(batched, 4),
                "hidden_found": round(adam_hidden, 4),
                "visible_found": round(adam_visible, 4),
                "times_faster": round(one_at_a_time / batched, 1),
                "share_of_matrix_rate": round(operations / (batched * PROMPTS) / rate, 2),
            },
        ],
    )


ADAM = AdamSolver(
    steps=45, learning_rate=0.2, final_share=0.02, check_every=45, second_moment="row"
)

if __name__ == "__main__":
    main()
