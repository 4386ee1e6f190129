"""By how much all other tokens at a position change the activations at each visible one."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import PROMPTS, problem_of, true_ids
from tokinfo.probe.noise import alone
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.sweep import solve
from tokinfo.study.solvers import SweepSolver


def brute_force(problem: Problem, ids: torch.Tensor, position: int) -> list[float | None]:
    """Every other token put there, one at a time, each prompt computed alone."""
    embedding = problem.decoder.embedding
    prompts = ids.repeat(len(embedding), 1)
    prompts[:, position] = torch.arange(len(embedding))
    seen = problem.layout.seen[:1].expand(len(prompts))
    found = alone(problem.probe, embedding, prompts, seen).double()
    target = problem.target[0].double()
    away = (found - target).norm(dim=-1) / target.norm(dim=-1)
    away[ids[position]] = torch.inf
    least = away.amin(0)[problem.layout.visible[0]].tolist()
    places = problem.layout.visible[0].nonzero()[:, 0].tolist()
    return [None if p < position else value for p, value in zip(places, least, strict=True)]


@pytest.mark.parametrize("family", ["llama", "flat"])
@pytest.mark.parametrize("mask", [":", "2:", ":2,4:"])
def test_it_is_what_brute_force_finds(family: str, mask: str) -> None:
    prompt = [[5, 3, 5, 8, 9, 7]]
    problem = problem_of(family, prompts=prompt, mask=mask, site="block.2")
    truth = true_ids(prompt)
    result = solve(problem, SweepSolver(positions="all"), truth)
    assert result.identified is not None
    for position, judged in result.identified[0].items():
        expected = brute_force(problem, truth[0], position)
        assert [v is None for v in judged.carried] == [v is None for v in expected]
        for found, wanted in zip(judged.carried, expected, strict=True):
            assert found is None or found == pytest.approx(wanted, rel=1e-3)


def test_at_the_embedding_a_token_is_carried_by_its_own_position_alone() -> None:
    """A closed form: the distance to the nearest other embedding."""
    problem = problem_of(prompts=[[5, 3, 5, 8]], mask=":", site="embedding")
    judged = solve(problem, SweepSolver(positions="all"), true_ids([[5, 3, 5, 8]])).identified
    assert judged is not None
    embedding = problem.decoder.embedding.double()
    apart = (embedding - embedding[3]).norm(dim=-1)
    apart[3] = torch.inf
    own = float(apart.min() / embedding[3].norm())
    assert judged[0][1].carried[1] == pytest.approx(own, rel=1e-5)
    assert judged[0][1].carried[2:] == (0.0, 0.0)


def test_prompts_of_a_batch_do_not_mix() -> None:
    together = solve(problem_of(mask="1:"), SweepSolver(), true_ids(PROMPTS)).identified
    assert together is not None
    for row, prompt in enumerate(PROMPTS):
        one = solve(problem_of(mask="1:", prompts=[prompt]), SweepSolver(), true_ids([prompt]))
        assert one.identified is not None
        assert together[row][0].carried == pytest.approx(one.identified[0][0].carried, rel=1e-4)
