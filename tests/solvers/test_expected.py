"""Sequential search tries what the model expects, as far as that pays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tiny import tiny_llama, tiny_mixer, tiny_problem, true_ids
from tokinfo.probe.probe import Probe
from tokinfo.solvers import sequential
from tokinfo.solvers.problem import Problem
from tokinfo.study.sites import Site
from tokinfo.study.solvers import SequentialSolver

REPEATING = [[7] * 8, [30] * 8, [111] * 6]
"""What an untrained model with tied embeddings expects: the residual stream carries the last
token to the output."""
OTHERS = [[3, 1, 4, 1, 5, 9, 2], [9, 2, 6, 8, 30, 12], [5, 3, 5, 8, 9, 7]]


def problem_of(prompts: list[list[int]]) -> Problem:
    model = tiny_llama(d_model=64)
    embedding = model.get_input_embeddings().weight
    return tiny_problem(model.get_decoder(), embedding, prompts, site="block.2")


def spent(prompts: list[list[int]], expected: int) -> int:
    """Solve, check the tokens, return the candidates and steps that took."""
    problem = problem_of(prompts)
    result = sequential.solve(problem, SequentialSolver(expected=expected, guesses=0))
    assert torch.equal(problem.layout.padded(result.top_ids[..., 0]), true_ids(prompts))
    return int(result.evaluations.sum())


def test_what_a_decoder_expects_is_the_logits_of_a_model_with_tied_embeddings() -> None:
    model = tiny_llama(d_model=64)
    model.lm_head.weight = model.model.embed_tokens.weight
    ids = torch.tensor(OTHERS[:1])
    probe = Probe(model.get_decoder(), Site.parse("block.1"))
    embedding = model.get_input_embeddings().weight
    found = probe.expected(embedding[ids], embedding)
    assert torch.allclose(found, model(ids).logits[:, -1], rtol=1e-5, atol=1e-6)


def test_outputs_of_another_width_say_nothing() -> None:
    probe = Probe(tiny_mixer(d_model=32), Site.parse("block.1"))
    scores = probe.expected(torch.randn(2, 3, 32), torch.randn(256, 16))
    assert scores.shape == (2, 256)
    assert not scores.any()


def judged(ranks: list[int], others: int, spent: int, most: int = 64) -> int:
    expectations = sequential._Expectations(most, 16)
    expected = torch.arange(100).expand(len(ranks), -1)
    expectations.add(expected, torch.tensor(ranks), others, spent)
    return expectations.worth()


@pytest.mark.parametrize(
    ("ranks", "spent", "worth"),
    [
        ([0, 3, 8, 99], 400, 16),  # 16 a token, and 100 for every fourth, against 100 each
        ([0, 3, 8, 40], 4000, 48),
        ([99, 98, 97, 96], 4000, 0),
        ([0, 3, 98, 99], 40, 0),  # what else there is finds them in 10
    ],
)
def test_as_many_are_tried_as_would_have_paid(ranks: list[int], spent: int, worth: int) -> None:
    assert judged(ranks, 4, spent) == worth


def test_where_nothing_else_was_needed_expectations_go_as_far_as_they_had_to() -> None:
    assert judged([0, 20, 3], 0, 0) == 32


def test_before_anything_is_known_one_batch_is_tried() -> None:
    assert sequential._Expectations(64, 16).worth() == 16
    assert sequential._Expectations(5, 16).worth() == 5
    assert sequential._Expectations(0, 16).worth() == 0


def test_expected_tokens_are_found_without_descent() -> None:
    assert spent(REPEATING, expected=16) < spent(REPEATING, expected=0)


def test_unexpected_tokens_cost_one_batch_of_candidates_and_no_more() -> None:
    few = SequentialSolver().candidates
    assert spent(OTHERS, expected=32) == spent(OTHERS, expected=0) + few * len(OTHERS)


def test_who_wants_no_expectations_pays_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Probe, "expected")
    spent(OTHERS, expected=0)


def test_a_sweep_is_in_the_order_of_expectation_once_that_was_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders: list[torch.Tensor | None] = []
    swept = sequential._Step.sweep
    monkeypatch.setattr(
        sequential._Step, "sweep", lambda self, order: (orders.append(order), swept(self, order))
    )
    problem = problem_of(REPEATING[:1])
    sequential.solve(problem, SequentialSolver())
    # No expectation was judged before position 1; then the token itself is expected first.
    assert orders[0] is orders[1] is None
    assert all(order is not None and int(order[0, 0]) == 7 for order in orders[2:])


def test_only_candidates_of_a_restricted_vocabulary_are_expected() -> None:
    problem = problem_of(REPEATING[:1])
    ids = torch.tensor([3, 7, 12, 40, 80, 81, 82])
    problem = replace(problem, decoder=replace(problem.decoder, candidates=ids))
    result = sequential.solve(problem, SequentialSolver())
    assert bool(torch.isin(result.top_ids, ids).all())
    assert result.top_ids[0, :, 0].tolist() == REPEATING[0]
