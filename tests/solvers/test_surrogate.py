"""The surrogate is a Gaussian process, and finds what descent does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tiny import VOCABULARY, tiny_llama, tiny_problem
from tokinfo.solvers import sequential, surrogate
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.surrogate import NOISE, WIDTH, Surrogate, directions_of
from tokinfo.study.solvers import SequentialSolver

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6, 8], [5, 3, 5, 8, 9, 7]]


def deep(prompts: list[list[int]] = PROMPTS) -> Problem:
    model = tiny_llama(d_model=64)
    embedding = model.get_input_embeddings().weight
    return tiny_problem(model.get_decoder(), embedding, prompts, site="block.2")


def test_directions_are_of_unit_length_and_have_no_mean_in_common() -> None:
    embedding = torch.randn(200, 16) + 5
    found = directions_of(embedding)
    assert torch.allclose(found.norm(dim=1), torch.ones(200))
    assert float(found.mean(0).norm()) < 0.1


def test_learning_in_parts_is_the_process_solved_at_once_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = directions_of(torch.randn(40, 8, generator=generator))
    activations = torch.randn(40, 12, generator=generator)
    target = torch.randn(12, generator=generator)
    process = Surrogate(directions, torch.Generator().manual_seed(1))
    for part in (torch.tensor([3, 17, 30, 5]), torch.tensor([11, 2]), torch.tensor([39])):
        process.add(part, activations[part])
    order = process.likeliest(target, 33)

    tried = process.tried
    every = directions.double() @ directions.double().T
    kernel = every + ((every - 1) / WIDTH).exp()
    within = kernel[tried][:, tried] + 2 * NOISE * torch.eye(7, dtype=torch.float64)
    measured = activations[tried].double()
    mean, scale = measured.mean(0), measured.std(0) + 1e-6
    projected = (measured - mean) / scale @ process.projection.double()
    wanted = (target.double() - mean) / scale @ process.projection.double()
    weights = torch.linalg.solve(within, projected)
    gain = torch.linalg.solve(within, kernel[tried])
    left = (2 - (kernel[tried] * gain).sum(0)).clamp_min(1e-3) + 2 * NOISE
    unit = (projected * weights).mean()
    away = (kernel[:, tried] @ weights - wanted).square().sum(1)
    score = away / (left * unit) + surrogate.COMPONENTS * left.log()
    score += 2 * (torch.arange(40, dtype=torch.float64) + 50).log()
    score[tried] = torch.inf
    assert order.tolist() == score.argsort()[:33].tolist()


def test_no_token_is_proposed_twice_and_all_are_in_the_end() -> None:
    directions = directions_of(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)))
    process = Surrogate(directions, torch.Generator().manual_seed(1))
    picked = torch.arange(4)
    while len(picked):
        process.add(picked, directions[picked])
        picked = process.likeliest(directions[29], 5)
    assert sorted(process.tried.tolist()) == list(range(30))


def test_a_token_like_the_true_one_brings_it_forward() -> None:
    """Activations that follow the embedding: the process needs a fraction of the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(2000, 24, generator=generator)
    activations = torch.tanh(embedding @ torch.randn(24, 32, generator=generator) / 24**0.5)
    needed = []
    for true in (100, 900, 1999):
        process = Surrogate(directions_of(embedding), torch.Generator().manual_seed(1))
        picked = torch.randperm(2000, generator=generator)[:32]
        while true not in picked.tolist():
            process.add(picked, activations[picked])
            picked = process.likeliest(activations[true], 16)
        needed.append(len(process.tried))
    assert max(needed) < 200


@pytest.mark.parametrize("guesses", [0, 200, 2048])
def test_sequential_finds_the_prompt_with_any_number_of_guesses(guesses: int) -> None:
    """A single step of descent proves next to nothing."""
    problem = deep()
    settings = SequentialSolver(steps=1, attempts=1, check_every=1, candidates=5, guesses=guesses)
    found = sequential.solve(problem, settings)
    for row, prompt in enumerate(PROMPTS):
        assert found.top_ids[row, : len(prompt), 0].tolist() == prompt
    assert int(found.evaluations.sum()) >= VOCABULARY


def test_guesses_of_a_restricted_vocabulary_are_of_that_vocabulary() -> None:
    problem = deep([[3, 1, 4, 1, 5]])
    ids = torch.tensor([1, 3, 4, 5, *range(60, 200, 3)])
    problem = replace(problem, decoder=replace(problem.decoder, candidates=ids))
    settings = SequentialSolver(steps=1, attempts=1, check_every=1, candidates=5)
    found = sequential.solve(problem, settings)
    assert found.top_ids[0, :, 0].tolist() == [3, 1, 4, 1, 5]
    assert bool(torch.isin(found.top_ids, ids).all())
