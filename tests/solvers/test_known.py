"""Known tokens are data of the problem: every solver has them in place, and none changes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.tiny import PROMPTS, VOCABULARY, problem_of, true_ids
from tokinfo.solvers import joint, sequential
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.run import run
from tokinfo.solvers.substitution import Substitution
from tokinfo.study.solvers import (
    AdamSolver,
    ChapterSolver,
    JointSolver,
    SequentialSolver,
    Solver,
    SweepSolver,
)

TRUE = true_ids(PROMPTS)
DESCENT = AdamSolver(steps=20)
BRIEF = {"descent": DESCENT, "rounds": 1, "restarts": 1, "detections": 1, "detection_rounds": 2}


def misled(problem: Problem) -> Problem:
    """The same problem with wrong tokens for known ones: a search would rather have others."""
    wrong = (problem.known + 17) % VOCABULARY
    return replace(problem, known=torch.where(problem.given, wrong, -1))


SEARCHES: list[tuple[Solver, dict[str, Any]]] = [
    (ChapterSolver(steps=20), {}),
    (ChapterSolver(steps=20), {"parametrisation": "vocabulary"}),
    (AdamSolver(steps=40, restarts=2), {}),
    (AdamSolver(steps=40, window=4), {"parametrisation": "vocabulary"}),
    (AdamSolver(steps=40, window=8, nearest_penalty=0.1, clamp=True, second_moment="row"), {}),
    (AdamSolver(steps=40, project="nearest", window=4), {}),
    (AdamSolver(steps=40, project="nearest"), {"parametrisation": "vocabulary"}),
    (ChapterSolver(steps=20), {"parametrisation": "mixture", "candidates": range(10)}),
    (AdamSolver(steps=40, window=4), {"parametrisation": "mixture", "candidates": range(10)}),
    (SequentialSolver(), {"mask": ":"}),
    (SequentialSolver(steps=1, check_every=1, attempts=1, expected=0, guesses=64), {"mask": ":"}),
    (JointSolver(**BRIEF), {}),
    (JointSolver(**BRIEF, leading=64), {"mask": ":"}),
]


@pytest.mark.parametrize("known", ["visible", "-2:", "0"])
@pytest.mark.parametrize("family", ["llama", "flat"])
@pytest.mark.parametrize(("solver", "settings"), SEARCHES)
def test_every_search_returns_the_known_tokens_right_or_wrong(
    solver: Solver, settings: dict[str, Any], family: str, known: str
) -> None:
    right = problem_of(family, **{"mask": "2:", "known": known} | settings)
    for problem in (right, misled(right)):
        found = run(problem, solver, TRUE).top_ids
        assert found.shape == (*TRUE.shape, 5)
        assert torch.equal(found[..., 0][problem.given], problem.known[problem.given])


@pytest.mark.parametrize("method", ["pseudo-inverse", "nearest"])
def test_a_known_token_need_not_be_among_the_candidates(method: str) -> None:
    problem = problem_of("flat", mask="1:", known="-1")
    decoder = replace(problem.decoder, candidates=torch.tensor([1, 2, 3, 4]), method=method)
    problem = replace(problem, decoder=decoder)
    mixed = replace(problem, parametrisation="mixture")
    for one, settings in (
        (problem, AdamSolver(steps=20)),
        (problem, AdamSolver(steps=20, project="nearest", window=4)),
        (mixed, AdamSolver(steps=20, window=4)),
        (mixed, ChapterSolver(steps=20)),
    ):
        found = run(one, settings, TRUE).top_ids
        assert torch.equal(found[..., 0][problem.given], problem.known[problem.given])
        assert int(found[..., 0][~problem.given].max()) <= 4


@pytest.mark.parametrize("parametrisation", ["embedding", "vocabulary"])
def test_a_known_tokens_embedding_is_in_place_and_passes_no_gradient_on(
    parametrisation: str,
) -> None:
    problem = problem_of(mask="1:", known="visible", parametrisation=parametrisation)
    free = problem.start(0).requires_grad_(True)
    embedded, given = problem.embed(free), problem.given
    assert torch.equal(embedded[given], problem.decoder.embedding[problem.known[given]])
    (gradient,) = torch.autograd.grad(problem.loss(embedded).sum(), free)
    assert not gradient[given].any()
    assert gradient[:, 0].any(-1).all()


def test_with_nothing_known_a_free_variable_is_as_it_was() -> None:
    problem = problem_of(mask="1:")
    free = problem.start(0)
    assert torch.equal(problem.embed(free), free)
    assert torch.equal(problem.decode(free), problem.decoder.top(free, 5))


@pytest.mark.parametrize("family", ["flat", "parallel"])
@pytest.mark.parametrize(("mask", "known"), [("1:", "1:"), ("-1", "1:"), ("3:", "visible")])
def test_a_known_suffix_helps_descent_to_find_what_is_hidden(
    family: str, mask: str, known: str
) -> None:
    assert found_of(AdamSolver(steps=60, window=8), family, mask, known) > 0.7
    assert found_of(AdamSolver(steps=60, window=8), family, mask, known, "none") < 0.4


@pytest.mark.parametrize("family", ["llama", "flat", "parallel"])
def test_a_known_suffix_lets_joint_find_a_system_prompt_from_its_last_activations(
    family: str,
) -> None:
    solver = JointSolver(**BRIEF, mixtures=False)
    assert found_of(solver, family, "-1", "3:") == 1
    assert found_of(solver, family, "-1", "3:", "none") < 0.9
    assert found_of(JointSolver(**BRIEF), family, "-1", "3:") == 1


def found_of(solver: Solver, family: str, mask: str, known: str, given: str = "") -> float:
    """The share that a search finds of the tokens that are hidden and not in ``known``."""
    wanted = problem_of(family, mask=mask, known=known)
    in_question = ~wanted.layout.visible & wanted.layout.scored & ~wanted.given
    problem = wanted if not given else problem_of(family, mask=mask, known=given)
    found = run(problem, solver, TRUE).top_ids[..., 0]
    return float((found == TRUE)[in_question].double().mean())


def test_joint_tries_no_other_token_at_a_known_position(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = misled(problem_of(mask="2:", known="-2:")).rows(torch.tensor([2]))
    tried: dict[int, set[int]] = {}
    found_by = Substitution._found

    def watched(self: Substitution, candidates: torch.Tensor) -> tuple[torch.Tensor, int]:
        tried.setdefault(self.position, set()).update(candidates.tolist())
        return found_by(self, candidates)

    monkeypatch.setattr(Substitution, "_found", watched)
    joint.solve(problem, JointSolver(**BRIEF))
    assert all(len(tried[position]) == VOCABULARY for position in range(4))
    known = problem.known[0].tolist()
    assert all(tried.get(position, set()) <= {known[position]} for position in (4, 5))


def test_joint_with_everything_known_has_nothing_to_do() -> None:
    """No study has such a cell; a control with such a prompt must still come to its end."""
    problem = problem_of(mask="2:", known=":")
    for one in (problem, misled(problem)):
        found = joint.solve(one, JointSolver(**BRIEF))
        assert torch.equal(found.top_ids[..., 0][one.given], one.known[one.given])


def test_sequential_spends_nothing_on_known_tokens() -> None:
    every = sequential.solve(problem_of(), SequentialSolver())
    some = sequential.solve(problem_of(known="2:"), SequentialSolver())
    assert torch.equal(some.top_ids[..., 0], every.top_ids[..., 0])
    assert bool((some.evaluations < every.evaluations).all())
    last = sequential.solve(problem_of(known="1:"), SequentialSolver())
    assert bool((last.evaluations <= VOCABULARY).all())


@pytest.mark.parametrize("positions", ["hidden", "all"])
def test_a_sweep_leaves_known_positions_out(positions: str) -> None:
    problem = problem_of("flat", mask="2:", known="1:4")
    result = run(problem, SweepSolver(positions=positions), TRUE)
    wanted = [{0} if positions == "hidden" else {0, *range(4, len(row))} for row in PROMPTS]
    assert [set(swept) for swept in result.identified] == wanted
    assert result.evaluations.tolist() == [VOCABULARY * len(row) for row in wanted]
    found = run(problem, JointSolver(**BRIEF), TRUE)
    assert [set(swept) for swept in found.identified] == [{0}] * 3
