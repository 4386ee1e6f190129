"""Where a descent stands among the tokens: against plain loops and finite differences."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_llama, tiny_problem
from tokinfo.solvers import adam
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.vocabulary import Vocabulary

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]


def llama_problem(**settings: object) -> Problem:
    model = tiny_llama(scale=0.2)
    return tiny_problem(
        model.get_decoder(), model.get_input_embeddings().weight, PROMPTS, mask="1:", **settings
    )


def penalty_by_loops(problem: Problem, free: Tensor) -> Tensor:
    """The penalty [row] as its description says it, position by position."""
    matrix = problem.decoder.embedding.double()
    points = free @ matrix if problem.parametrisation == "vocabulary" else free
    rows = []
    for row, length in enumerate(problem.layout.seen.tolist()):
        squared = [
            min(((points[row, position] - token) ** 2).mean() for token in matrix)
            for position in range(length)
        ]
        rows.append(sum(squared) / length / matrix.var())
    return torch.stack(rows)


@pytest.mark.parametrize("parametrisation", ["embedding", "vocabulary"])
def test_the_penalty_and_its_gradient_are_those_of_finite_differences(parametrisation: str) -> None:
    problem = llama_problem(parametrisation=parametrisation)
    vocabulary = Vocabulary(problem)
    free = adam._place(problem.start(0), problem)[0].requires_grad_(True)
    embedded = problem.embed(free)
    away = vocabulary.away(embedded, vocabulary.nearest(embedded), problem.layout.seen)
    wide = free.detach().double()
    torch.testing.assert_close(away.double(), penalty_by_loops(problem, wide), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(away.sum(), free)
    along = torch.randn(free.shape, generator=torch.Generator().manual_seed(1)).double()
    for row in range(len(PROMPTS)):
        step = torch.zeros_like(along)
        step[row] = 1e-6 * along[row]
        ahead, behind = (penalty_by_loops(problem, wide + s)[row] for s in (step, -step))
        slope = float((gradient[row].double() * along[row]).sum())
        assert slope == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-3)


def test_a_position_beyond_the_prompt_has_no_part_in_the_penalty() -> None:
    problem = llama_problem()
    vocabulary = Vocabulary(problem)
    embedded = problem.start(0).requires_grad_(True)
    away = vocabulary.away(embedded, vocabulary.nearest(embedded), problem.layout.seen)
    (gradient,) = torch.autograd.grad(away.sum(), embedded)
    assert bool((gradient[1, 3:] == 0).all())
    assert bool((gradient[1, :3] != 0).any())


def test_only_candidates_make_the_box_and_are_nearest() -> None:
    problem = llama_problem()
    few = torch.tensor([3, 7, 200])
    problem = dataclasses.replace(
        problem, decoder=dataclasses.replace(problem.decoder, candidates=few)
    )
    vocabulary = Vocabulary(problem)
    points = problem.start(0)
    chosen = problem.decoder.embedding[few]
    distances = torch.cdist(points.double(), chosen.double())
    assert torch.equal(vocabulary.nearest(points), few[distances.argmin(-1)])
    inside = vocabulary.clamp(points)
    assert bool(((inside >= chosen.min(0).values) & (inside <= chosen.max(0).values)).all())


def test_the_nearest_tokens_do_not_depend_on_the_parts_they_are_found_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = llama_problem()
    points = problem.start(0)
    whole = Vocabulary(problem).nearest(points)
    monkeypatch.setattr("tokinfo.solvers.vocabulary._MOST_SCORES", 2 * 256)
    assert torch.equal(Vocabulary(problem).nearest(points), whole)
    expected = torch.cdist(points.double(), problem.decoder.embedding.double()).argmin(-1)
    assert torch.equal(whole, expected)


@pytest.mark.parametrize("parametrisation", ["embedding", "vocabulary"])
def test_a_projection_is_a_token_and_passes_its_gradient_on(parametrisation: str) -> None:
    problem = llama_problem(parametrisation=parametrisation)
    vocabulary = Vocabulary(problem)
    free = adam._place(problem.start(0), problem)[0].requires_grad_(True)
    embedded = problem.embed(free)
    nearest = vocabulary.nearest(embedded)
    projected = vocabulary.projected(embedded, nearest)
    tokens = problem.decoder.embedding[nearest].clone().requires_grad_(True)
    assert torch.equal(projected, tokens)
    (gradient,) = torch.autograd.grad(problem.loss(projected).sum(), free)
    (expected,) = torch.autograd.grad(problem.loss(tokens).sum(), tokens)
    if parametrisation == "vocabulary":
        expected = expected @ problem.decoder.embedding.T
    torch.testing.assert_close(gradient, expected)
