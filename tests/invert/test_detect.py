"""Detection tells a token from others while further positions are unknown."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import VOCABULARY, tiny_llama, tiny_mixer, tiny_problem
from tokinfo.batches import Batcher
from tokinfo.invert.detect import Detected, Responses, _mahalanobis, combinations
from tokinfo.invert.joint import _Open, _Search
from tokinfo.invert.problem import Problem
from tokinfo.solvers import JointSolver

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def problem_of(family: str, mask: str = "3:") -> Problem:
    if family == "llama":
        model = tiny_llama(d_model=64)
        return tiny_problem(
            model.get_decoder(), model.get_input_embeddings().weight, [PROMPT], mask=mask
        )
    decoder = tiny_mixer(family)
    return tiny_problem(decoder, decoder.embed_tokens.weight, [PROMPT], mask=mask)


def responses_of(problem: Problem, ids: torch.Tensor, positions: range, seed: int = 0) -> Responses:
    vocabulary = problem.decoder.ids
    return Responses(
        problem,
        ids,
        dict.fromkeys(positions, vocabulary),
        Batcher(),
        torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("family", ["llama", "flat", "parallel"])
def test_a_single_unknown_token_is_ordered_as_by_the_forward_model(family: str) -> None:
    problem = problem_of(family)
    found = responses_of(problem, problem.batch.ids[0], range(1)).detect([0], VOCABULARY)[0]
    every = problem.batch.ids.repeat(VOCABULARY, 1)
    every[:, 0] = torch.arange(VOCABULARY)
    # Components are drawn at random where there are more than are compared: here there are not.
    away = (problem.probe(problem.decoder.embedding[every]) - problem.target)[:, 3:].flatten(1)
    squared = away.square().sum(1).double()
    assert found.tokens[0] == PROMPT[0]
    assert bool((squared[found.tokens].diff() >= -1e-4 * squared.mean()).all())


@pytest.mark.parametrize("family", ["flat", "expanded", "parallel"])
def test_three_hidden_tokens_of_a_mixer_are_each_the_likeliest_behind_random_ones(
    family: str,
) -> None:
    problem = problem_of(family)
    ids = problem.batch.ids[0].clone()
    ids[:3] = torch.tensor([77, 150, 201])
    found = responses_of(problem, ids, range(3)).detect([0, 1, 2], 8)
    assert [int(found[position].tokens[0]) for position in range(3)] == PROMPT[:3]
    tried = combinations(ids, found, 16)
    assert tried[0].tolist() == PROMPT


def test_what_cannot_reach_a_visible_position_is_as_likely_as_anything() -> None:
    problem = problem_of("llama", mask=":2")
    found = responses_of(problem, problem.batch.ids[0], range(8)).detect([0, 4], VOCABULARY)
    assert found[0].tokens[0] == PROMPT[0]
    assert float(found[4].score.max() - found[4].score.min()) < 1e-6


def test_the_nuisance_is_left_out_of_the_comparison() -> None:
    """Along what the unknown others move, distance counts for little; across it, for all."""
    drawn = torch.randn(4096, 2, generator=torch.Generator().manual_seed(0))
    nuisance = drawn @ torch.tensor([[30.0, 30.0], [0.1, -0.1]]) + torch.tensor([5.0, 0.0])
    along, across = torch.tensor([[25.0, 20.0]]), torch.tensor([[25.0, -20.0]])
    assert _mahalanobis(along, nuisance) < 0.1 * _mahalanobis(across, nuisance)
    # Against the formula written out in float64, with the ridge on the correlations.
    wide = nuisance.double()
    scale, mean = wide.std(0), wide.mean(0)
    correlation = 0.98 * torch.corrcoef(wide.T) + 0.02 * torch.eye(2)
    left = ((across.double() - mean) / scale)[0]
    expected = float(left @ torch.linalg.solve(correlation.double(), left))
    assert float(_mahalanobis(across, nuisance)) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("scores", [[-0.01, -5.0], [-2.0, -2.5]])
def test_a_search_ends_where_every_token_is_settled(scores: list[float]) -> None:
    """Sure of the last token or not: there is nothing left to detect."""
    problem = problem_of("flat")
    search = _Search(problem, JointSolver(), Batcher(), problem.batch.ids[0, :, None].repeat(1, 5))
    found = {5: Detected(torch.tensor([9, 8]), torch.tensor(scores, dtype=torch.float64))}
    assert search._settled(_Open(problem.batch.ids[0], (5,)), found) == []
    # With another position open, the likeliest tokens are settled and it stays.
    both = found | {6: Detected(torch.tensor([1, 2]), torch.tensor([-9.0, -9.5]))}
    children = search._settled(_Open(problem.batch.ids[0], (5, 6)), both)
    assert [child.unknown for child in children] == [(6,)] * (1 if scores[0] > -1 else 2)


@given(st.lists(st.lists(st.integers(-50, 0), min_size=1, max_size=4), min_size=1, max_size=4))
def test_combinations_are_the_likeliest_of_all(scores: list[list[int]]) -> None:
    detected = {
        position: Detected(
            10 * position + torch.arange(len(row)),
            torch.tensor(sorted(row, reverse=True), dtype=torch.float64),
        )
        for position, row in enumerate(scores)
    }
    ids = torch.full((len(scores) + 1,), 99)
    found = combinations(ids, detected, 5)
    every = sorted(
        (
            sum(choice)
            for choice in itertools.product(*(d.score.tolist() for d in detected.values()))
        ),
        reverse=True,
    )
    got = [
        sum(float(d.score[d.tokens == row[position]][0]) for position, d in detected.items())
        for row in found
    ]
    assert got == every[:5]
    assert bool((found[:, -1] == 99).all())
    assert len({tuple(row.tolist()) for row in found}) == len(found)
