"""A certificate holds at every visible position by itself, whatever metric was descended on."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import VOCABULARY, tiny_llama, tiny_problem
from tokinfo.solvers.problem import Problem
from tokinfo.study.fields import MetricName

METRICS: tuple[MetricName, ...] = ("l1", "l2", "cosine", "l1+cosine")
MASSIVE = 7
"""A token whose embedding is so large that its position is all that a norm or a product sees."""


def with_one_massive_position(
    length: int, block: int, metric: MetricName
) -> tuple[Problem, list[int]]:
    model = tiny_llama(d_model=64, blocks=3, scale=0.1)
    embedding = model.get_input_embeddings().weight
    embedding[MASSIVE] *= 3000 / embedding[MASSIVE].norm()
    prompt = [MASSIVE, *range(20, 19 + length)]
    problem = tiny_problem(
        model.get_decoder(), embedding, [prompt], mask=":", metric=metric, site=f"block.{block}"
    )
    return problem, prompt


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("length", [8, 40])
def test_no_prompt_with_a_wrong_token_is_certified(
    length: int, block: int, metric: MetricName
) -> None:
    problem, prompt = with_one_massive_position(length, block, metric)
    ids = torch.tensor(prompt)
    for token in range(0, VOCABULARY, 16):
        wrong = ids.clone()
        wrong[-1] = token
        loss = float(problem.token_loss(wrong[None])[0])
        assert not problem.certified(wrong, loss)
        assert not bool(problem.judged(wrong[None])[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("length", [8, 40])
def test_the_true_prompt_lies_between_nothing_and_the_floor(
    length: int, metric: MetricName
) -> None:
    problem, prompt = with_one_massive_position(length, 3, metric)
    away, within, apart = problem.judged(torch.tensor([prompt]))
    assert 0 <= float(away) <= float(problem.floor)
    assert bool(within)
    assert bool((apart <= problem.noise.positions).all())


def test_one_position_alone_denies_a_certificate() -> None:
    problem, prompt = with_one_massive_position(8, 1, "l2")
    # As a whole the difference is within the floor, which the massive position makes large.
    problem.target[0, -1] += 2 * problem.noise.positions[0, -1] / 8
    away, within, _ = problem.judged(torch.tensor([prompt]))
    assert float(away) <= float(problem.floor)
    assert not bool(within)
