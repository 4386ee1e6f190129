"""Relaxation moves the open positions alone, each context for itself."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_llama, tiny_problem
from tokinfo.invert import relax as module
from tokinfo.invert.problem import Problem
from tokinfo.invert.relax import relax

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def problem_of(mask: str = "2:") -> Problem:
    model = tiny_llama(d_model=64)
    embedding = model.get_input_embeddings().weight
    return tiny_problem(model.get_decoder(), embedding, [PROMPT], mask=mask)


def contexts_of(problem: Problem, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompt with each of some tokens at position 0, position 1 open at the mean."""
    embedding = problem.decoder.embedding
    contexts = embedding[torch.tensor(PROMPT)].repeat(len(tokens), 1, 1)
    contexts[:, 0] = embedding[torch.tensor(tokens)]
    contexts[:, 1] = embedding.mean(0)
    free = torch.zeros(contexts.shape[:2], dtype=torch.bool)
    free[:, 1] = True
    return contexts, free


def test_without_steps_it_measures_the_distance_in_float64_too() -> None:
    problem = problem_of()
    contexts, free = contexts_of(problem, [3, 7])
    same, losses = relax(problem, contexts, free, 0, 0.3)
    assert torch.equal(same, contexts)
    found = problem.probe(contexts)[:, 2:].double()
    away = (found - problem.target[:, 2:].double()).flatten(1).norm(dim=1)
    assert torch.allclose(losses.double(), away, rtol=1e-5)


def test_only_open_positions_move_and_less_is_left_unexplained() -> None:
    problem = problem_of()
    contexts, free = contexts_of(problem, [3, 7, 11])
    _, before = relax(problem, contexts, free, 0, 0.3)
    moved, after = relax(problem, contexts, free, 30, 0.3)
    changed = (moved != contexts).any(-1)
    assert torch.equal(changed, free)
    assert bool((after < before).all())


def test_a_context_does_not_depend_on_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of()
    contexts, free = contexts_of(problem, [3, 7, 11, 13, 17])
    together, losses = relax(problem, contexts, free, 10, 0.3)
    monkeypatch.setattr(module, "_ROWS", 2)
    apart, others = relax(problem, contexts, free, 10, 0.3)
    assert torch.allclose(together, apart, atol=1e-5)
    assert torch.allclose(losses, others, rtol=1e-4)
