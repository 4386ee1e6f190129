"""The noise floor covers what the same prompt's activations really change by."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import VOCABULARY, tiny_llama, tiny_mixer, tiny_problem
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.substitution import Substitution

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6, 8], [5, 3, 5, 8, 9, 7]]


def problem_of(family: str, **settings: object) -> Problem:
    if family == "llama":
        model = tiny_llama(d_model=64, blocks=3)
        decoder, embedding = model.get_decoder(), model.get_input_embeddings().weight
    else:
        decoder = tiny_mixer(family, d_model=64, blocks=3)
        embedding = decoder.embed_tokens.weight
    return tiny_problem(decoder, embedding, PROMPTS, **settings)


@pytest.mark.parametrize("family", ["llama", "flat", "expanded", "parallel"])
@pytest.mark.parametrize("metric", ["l1", "l2", "cosine", "l1+cosine"])
@pytest.mark.parametrize("mask", [":", "1:", ":2"])
def test_the_true_prompt_stays_within_twice_the_floor_in_every_sweep(
    family: str, metric: str, mask: str
) -> None:
    problem = problem_of(family, metric=metric, mask=mask, site="block.3")
    everything = torch.arange(VOCABULARY)
    for row, prompt in enumerate(PROMPTS):
        one = problem.rows(torch.tensor([row]))
        around = one.decoder.embedding[torch.tensor(prompt)]
        for position, token in enumerate(prompt):
            true = Substitution(one, around, position).residuals(everything)[token]
            assert float(true) <= 2 * float(one.floor[0])


def test_the_floor_is_never_zero_and_in_the_metrics_units() -> None:
    floors = {metric: problem_of("flat", metric=metric).floor for metric in ("l1", "l2", "cosine")}
    for floor in floors.values():
        assert bool((floor > 0).all())
    scale = problem_of("flat").target.abs().sum((1, 2))
    assert bool((floors["l1"] < 1e-4 * scale).all())
    assert bool((floors["l2"] < floors["l1"]).all())
    assert bool((floors["cosine"] < 1e-4).all())
