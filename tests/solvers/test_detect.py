"""Detection distinguishes a token from others while further positions are unknown."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import VOCABULARY, tiny_llama, tiny_mixer, tiny_problem
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.detect import (
    Detected,
    Responses,
    _mahalanobis,
    _tempered,
    combinations,
    nearest,
)
from tokinfo.solvers.problem import Problem

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def problem_of(family: str, mask: str = "3:") -> Problem:
    if family == "llama":
        model = tiny_llama(d_model=64)
        return tiny_problem(
            model.get_decoder(), model.get_input_embeddings().weight, [PROMPT], mask=mask
        )
    decoder = tiny_mixer(family)
    return tiny_problem(decoder, decoder.embed_tokens.weight, [PROMPT], mask=mask)


def responses_of(
    problem: Problem, ids: torch.Tensor, positions: range, near: int | None = None, seed: int = 0
) -> Responses:
    vocabulary = problem.decoder.ids
    return Responses(
        problem,
        ids,
        dict.fromkeys(positions, vocabulary),
        near,
        Batcher(),
        torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("family", ["llama", "flat", "parallel"])
def test_a_single_unknown_token_is_ordered_as_by_the_forward_model(family: str) -> None:
    problem = problem_of(family)
    found = responses_of(problem, torch.tensor(PROMPT), range(1)).detect([0], VOCABULARY)[0]
    every = torch.tensor([PROMPT]).repeat(VOCABULARY, 1)
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
    ids = torch.tensor(PROMPT)
    ids[:3] = torch.tensor([77, 150, 201])
    found = responses_of(problem, ids, range(3)).detect([0, 1, 2], 8)
    assert [int(found[position].tokens[0]) for position in range(3)] == PROMPT[:3]
    tried = combinations(ids, found, 16)
    assert tried[0].tolist() == PROMPT


def test_a_token_behind_right_stand_ins_explains_the_target() -> None:
    problem = problem_of("llama")
    ids = torch.tensor(PROMPT)
    ids[1] = 77
    responses = responses_of(problem, ids, range(3), near=1)
    assert responses.explain(1, 4)[0].tolist() == PROMPT
    assert len(responses.explain(1, 4)) == 4
    assert responses.evaluations == VOCABULARY, "explained again from the same responses"


def test_what_cannot_reach_a_visible_position_is_as_likely_as_anything() -> None:
    problem = problem_of("llama", mask=":2")
    found = responses_of(problem, torch.tensor(PROMPT), range(8)).detect([0, 4], VOCABULARY)
    assert found[0].tokens[0] == PROMPT[0]
    assert float(found[4].score.max() - found[4].score.min()) < 1e-6


@pytest.mark.parametrize("family", ["llama", "flat"])
def test_near_positions_judge_alone_whatever_stands_behind_them(family: str) -> None:
    """Wrong tokens behind the first visible position change nothing of the judgement."""
    problem = problem_of(family, mask="2:")
    ids = torch.tensor(PROMPT)
    ids[:2] = torch.tensor([77, 150])
    wrong = ids.clone()
    wrong[3:] = 7
    likeliest = []
    for one in (ids, wrong):
        responses = responses_of(problem, one, range(2), near=1)
        assert responses.judges[0].tolist() == responses.judges[1].tolist() == [2]
        found = responses.detect([0, 1], VOCABULARY)
        likeliest.append(torch.stack([found[0].score, found[1].score]))
    torch.testing.assert_close(*likeliest)


def test_the_nearest_visible_positions_are_those_a_token_reaches() -> None:
    problem = problem_of("llama", mask="1:6:2")
    assert nearest(problem, 0, 2).tolist() == [1, 3]
    assert nearest(problem, 2, 1).tolist() == [3]
    assert nearest(problem, 3, 4).tolist() == [3, 5]
    assert nearest(problem, 3, None).tolist() == [1, 3, 5]
    assert nearest(problem, 7, 1).tolist() == [5], "it reaches none"


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


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_judging_again_with_what_was_learned_finds_what_one_judgement_misses(seed: int) -> None:
    """Nothing known, every token of the prompt, in a Llama whose attention is sharp.

    What is drawn decides too, now and then: four draws are tried.
    """
    model = tiny_llama(d_model=64, seed=seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embed" not in name:
            weight.mul_(4)
    problem = tiny_problem(
        model.get_decoder(), model.get_input_embeddings().weight, [PROMPT], mask="3:"
    )
    ids = torch.tensor(PROMPT)
    ids[:3] = torch.tensor([77, 150, 201])
    everywhere = range(len(PROMPT))

    def whole(rounds: int) -> int:
        """Return after how many draws the likeliest tokens are the prompt."""
        drawn = (responses_of(problem, ids, everywhere, seed=draw) for draw in range(4))
        found = [responses.detect(everywhere, 1, rounds) for responses in drawn]
        return sum([int(one[p].tokens[0]) for p in everywhere] == PROMPT for one in found)

    assert whole(8) >= 2
    assert whole(1) == 0, "once is enough: this test proves nothing"


@given(
    st.lists(st.floats(-1000, 0), min_size=2, max_size=40),
    st.floats(1, 64),
)
def test_tempering_spreads_as_far_as_wanted_and_keeps_the_order(
    scores: list[float], spread: float
) -> None:
    score = torch.tensor(scores, dtype=torch.float64)
    found, plain = _tempered(score, spread), score.softmax(0)

    def perplexity(probabilities: torch.Tensor) -> float:
        return math.exp(float(torch.special.entr(probabilities).sum()))

    assert float(found.sum()) == pytest.approx(1)
    # As far as wanted, or as far as it goes; never less than it was; and no further than needed.
    assert perplexity(found) >= min(spread, 0.99 * len(scores)) - 1e-6
    assert perplexity(found) >= perplexity(plain) - 1e-6
    if perplexity(plain) >= spread:
        torch.testing.assert_close(found, plain)
    order = score.argsort()
    assert bool((found[order].diff() >= -1e-12).all())


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
