"""The settings of `adam`: off they change nothing, on they do what their names say."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_llama, tiny_mixer, tiny_problem
from tokinfo.solvers import adam
from tokinfo.solvers.problem import Problem, Result
from tokinfo.solvers.vocabulary import Vocabulary
from tokinfo.study.solvers import AdamSolver

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]
SETTINGS: dict[str, dict[str, object]] = {
    "penalty": {"nearest_penalty": 0.3},
    "clamp": {"clamp": True},
    "project": {"project": "nearest"},
    "window": {"window": 6},
    "together": {"nearest_penalty": 0.3, "clamp": True, "project": "nearest", "window": 6},
}


def llama_problem(mask: str = "1:", **settings: object) -> Problem:
    model = tiny_llama(scale=0.2)
    return tiny_problem(
        model.get_decoder(), model.get_input_embeddings().weight, PROMPTS, mask=mask, **settings
    )


def mixer_problem(mask: str = ":", **settings: object) -> Problem:
    mixer = tiny_mixer()
    return tiny_problem(mixer, mixer.embed_tokens.weight, PROMPTS, mask=mask, **settings)


def watched(problem: Problem) -> tuple[Problem, list[Tensor]]:
    """The same problem, and every free variable that its model was run on."""
    seen: list[Tensor] = []

    class Watched(Problem):
        def embed(self, free: Tensor) -> Tensor:
            seen.append(free.detach().clone())
            return super().embed(free)

    fields = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}
    return Watched(**fields), seen


def assert_same_bits(one: Result, other: Result) -> None:
    for field in dataclasses.fields(Result):
        left, right = getattr(one, field.name), getattr(other, field.name)
        same = torch.equal(left, right) if isinstance(left, Tensor) else left == right
        assert same, field.name


@pytest.mark.parametrize("parametrisation", ["embedding", "vocabulary"])
@pytest.mark.parametrize("second_moment", ["component", "row"])
def test_by_default_every_step_is_that_of_adam_written_out(
    parametrisation: str, second_moment: str
) -> None:
    problem, seen = watched(llama_problem(parametrisation=parametrisation))
    settings = AdamSolver(steps=12, check_every=6, tolerance=0, second_moment=second_moment)
    result = adam.solve(problem, settings)
    free, unit = adam._place(problem.start(0), problem)
    mean = square = torch.zeros_like(free)
    expected = [free]
    for step in range(12):
        free.requires_grad_(True)
        (gradient,) = torch.autograd.grad(problem.loss(Problem.embed(problem, free)).sum(), free)
        mean = 0.9 * mean + (1 - 0.9) * gradient
        squared = gradient.square()
        if second_moment == "row":
            squared = squared.mean((1, 2), keepdim=True).expand_as(gradient)
        square = 0.999 * square + (1 - 0.999) * squared
        rate = 0.2 * unit * (1 - (1 - 0.02) * (step / 11))
        first, second = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        free = free.detach() - rate * first / (second.sqrt() + 1e-8)
        expected.append(free)
    assert len(seen) == len(expected)
    assert all(map(torch.equal, seen, expected))
    assert torch.equal(result.top_ids, problem.decode(free))
    assert torch.equal(result.loss, problem.loss(Problem.embed(problem, free)))
    assert result.evaluations.tolist() == [13, 13, 13]


def test_settings_that_are_written_out_as_their_defaults_change_no_bit() -> None:
    plain = AdamSolver(steps=20, restarts=2)
    written = AdamSolver(
        steps=20, restarts=2, nearest_penalty=0, clamp=False, project="none", window=1
    )
    assert_same_bits(adam.solve(llama_problem(), plain), adam.solve(llama_problem(), written))


# --- the penalty --------------------------------------------------------------------------


def test_the_penalty_counts_in_units_of_the_first_loss() -> None:
    problem = llama_problem()
    settings = AdamSolver(steps=1, second_moment="row", nearest_penalty=0.7)
    watched_problem, seen = watched(problem)
    result = adam.solve(watched_problem, settings)
    free, unit = adam._place(problem.start(0), problem)
    free.requires_grad_(True)
    vocabulary = Vocabulary(problem)
    away = vocabulary.away(free, vocabulary.nearest(free), problem.layout.seen)
    loss = problem.loss(free)
    (gradient,) = torch.autograd.grad((loss + 0.7 * loss.detach() * away).sum(), free)
    # The first step of Adam with one scale a row: the gradient over its root mean square.
    size = gradient.square().mean((1, 2), keepdim=True).sqrt()
    expected = free.detach() - 0.2 * unit * gradient / size
    torch.testing.assert_close(seen[-1], expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(result.first_loss, loss.detach())


def test_a_penalty_ends_nearer_to_the_tokens() -> None:
    problem = llama_problem()
    vocabulary = Vocabulary(problem)

    def away(weight: float) -> Tensor:
        watching, seen = watched(problem)
        adam.solve(watching, AdamSolver(steps=60, tolerance=0, nearest_penalty=weight))
        return vocabulary.away(seen[-1], vocabulary.nearest(seen[-1]), problem.layout.seen)

    assert bool((away(1.0) < 0.5 * away(0.0)).all())


# --- the box ------------------------------------------------------------------------------


@pytest.mark.parametrize("parametrisation", ["embedding", "vocabulary"])
def test_the_clamp_keeps_every_component_in_its_range_over_the_vocabulary(
    parametrisation: str,
) -> None:
    problem = llama_problem(parametrisation=parametrisation)
    lowest, highest = torch.tensor(0.0), torch.tensor(1.0)
    if parametrisation == "embedding":
        matrix = problem.decoder.embedding
        lowest, highest = matrix.min(0).values, matrix.max(0).values

    def outside(clamp: bool) -> bool:
        watching, seen = watched(problem)
        adam.solve(watching, AdamSolver(steps=30, learning_rate=2.0, tolerance=0, clamp=clamp))
        return any(bool(((free < lowest) | (free > highest)).any()) for free in seen[1:])

    assert outside(clamp=False)
    assert not outside(clamp=True)


# --- projection ---------------------------------------------------------------------------


def test_a_projected_row_ends_with_the_best_tokens_it_met() -> None:
    problem = llama_problem()
    vocabulary = Vocabulary(problem)
    watching, seen = watched(problem)
    result = adam.solve(watching, AdamSolver(steps=40, tolerance=0, project="nearest"))
    met = [vocabulary.nearest(free) for free in seen]
    losses = torch.stack([problem.token_loss(ids) for ids in met])
    torch.testing.assert_close(result.loss, losses.min(0).values)
    scored = problem.layout.scored
    for row, step in enumerate(losses.argmin(0).tolist()):
        found = result.top_ids[row, :, 0]
        assert torch.equal(found[scored[row]], met[step][row][scored[row]])
    assert bool((losses.argmin(0) < 40).any()), "the last step was the best of every row"


def test_a_projected_row_stops_when_its_tokens_explain_the_target() -> None:
    problem = mixer_problem("1:")
    result = adam.solve(problem, AdamSolver(steps=400, check_every=10, project="nearest"))
    certified = result.loss <= problem.floor
    assert bool(certified.any())
    assert bool((result.steps[certified] < 400).all())
    assert torch.equal(result.evaluations, result.steps + 1)
    assert torch.equal(
        problem.token_loss(torch.where(problem.layout.scored, result.top_ids[..., 0], 0))[certified]
        <= problem.floor[certified],
        torch.ones(int(certified.sum()), dtype=torch.bool),
    )


# --- all of them --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_a_prompt_alone_and_in_a_batch_descend_alike(name: str) -> None:
    problem = mixer_problem("1:")
    settings = AdamSolver(steps=30, restarts=2, **SETTINGS[name])
    together = adam.solve(problem, settings)
    for row in range(len(PROMPTS)):
        alone = adam.solve(problem.rows(torch.tensor([row])), settings)
        assert float(alone.loss) == pytest.approx(float(together.loss[row]), rel=1e-3, abs=1e-4)
        assert torch.equal(alone.restart, together.restart[row : row + 1])
        assert torch.equal(alone.evaluations, together.evaluations[row : row + 1])
        scored = problem.layout.scored[row]
        assert torch.equal(alone.top_ids[0, scored, 0], together.top_ids[row, scored, 0])


def test_with_a_window_the_start_whose_tokens_explain_most_is_kept() -> None:
    problem = llama_problem()
    settings = AdamSolver(steps=15, restarts=4, window=3)
    result = adam.solve(problem, settings)
    loss = problem.token_loss(torch.where(problem.layout.scored, result.top_ids[..., 0], 0))
    others = [
        adam.solve(dataclasses.replace(problem, seed=problem.seed), settings.model_copy(update=u))
        for u in ({"restarts": 1}, {"restarts": 2}, {"restarts": 3})
    ]
    for fewer in others:
        ids = torch.where(problem.layout.scored, fewer.top_ids[..., 0], 0)
        assert bool((loss <= problem.token_loss(ids) * (1 + 1e-5)).all())
    assert bool((result.restart > 0).any())
