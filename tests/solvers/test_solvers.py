"""Descent solvers equal independent implementations, and batches change nothing."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import get_args

import pytest
import torch

from tests.tiny import tiny_llama, tiny_mixer, tiny_problem, true_ids
from tokinfo.solvers import adam, chapter
from tokinfo.solvers.problem import Problem, Result, SolverError
from tokinfo.solvers.run import run
from tokinfo.study.solvers import AdamSolver, ChapterSolver, Solver

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]
TRUE = true_ids(PROMPTS)


def mixer_problem(mask: str = ":", **settings: object) -> Problem:
    mixer = tiny_mixer()
    return tiny_problem(mixer, mixer.embed_tokens.weight, PROMPTS, mask=mask, **settings)


def llama_problem(mask: str = ":", **settings: object) -> Problem:
    model = tiny_llama(scale=0.2)
    return tiny_problem(
        model.get_decoder(), model.get_input_embeddings().weight, PROMPTS, mask=mask, **settings
    )


def test_every_kind_of_solver_is_a_module_that_solves() -> None:
    for settings in get_args(get_args(Solver)[0]):
        kind = settings.model_fields["kind"].default
        assert callable(import_module(f"tokinfo.solvers.{kind}").solve)


def test_chapter_equals_the_published_loop_written_out() -> None:
    problem = mixer_problem("1:").rows(torch.tensor([0]))
    mixer = problem.probe.decoder
    x = problem.start(0)
    target = mixer.blocks[0](mixer.embed_tokens(torch.tensor([PROMPTS[0]])))
    x = x[:, :5]
    for step in range(30):
        x = x.detach().requires_grad_(True)
        loss = (mixer.blocks[0](x) - target)[:, 1:].abs().sum()
        loss.backward()
        x = x - (0.02 + (0.002 - 0.02) * step / 29) * x.grad
    result = chapter.solve(problem, ChapterSolver(steps=30))
    expected = problem.decoder.top(x.detach())
    assert torch.equal(result.top_ids[:, :5], expected)
    final = (mixer.blocks[0](x) - target)[:, 1:].abs().sum().detach()
    assert float(result.loss) == pytest.approx(final.item(), rel=1e-4)


@pytest.mark.parametrize("parametrisation", ["embedding", "vocabulary"])
def test_adam_equals_torchs_own_adam(parametrisation: str) -> None:
    problem = llama_problem("1:", parametrisation=parametrisation).rows(torch.tensor([0]))
    settings = AdamSolver(steps=20, tolerance=0, check_every=100)
    start, unit = adam._place(problem.start(0), problem)
    free = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=settings.learning_rate * unit)
    for step in range(20):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * unit * (1 - 0.98 * step / 19)
        optimiser.zero_grad()
        problem.loss(problem.embed(free)).sum().backward()
        optimiser.step()
    result = adam.solve(problem, settings)
    expected = float(problem.loss(problem.embed(free.detach())))
    assert float(result.loss) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("solve", [chapter.solve, adam.solve])
def test_a_prompt_alone_and_in_a_batch_descend_alike(solve: object) -> None:
    problem = mixer_problem()
    settings = (
        ChapterSolver(steps=40) if solve is chapter.solve else AdamSolver(steps=40, restarts=2)
    )
    together = solve(problem, settings)
    for row in range(len(PROMPTS)):
        alone = solve(problem.rows(torch.tensor([row])), settings)
        assert float(alone.loss) == pytest.approx(float(together.loss[row]), rel=1e-3)
        assert torch.equal(alone.restart, together.restart[row : row + 1])


def test_adam_recovers_a_fully_visible_prompt_and_stops_early() -> None:
    result = adam.solve(mixer_problem(), AdamSolver(steps=400, tolerance=0.05))
    for row, prompt in enumerate(PROMPTS):
        assert result.top_ids[row, : len(prompt), 0].tolist() == prompt
    assert int(result.steps.max()) < 400


def test_the_best_restart_is_kept() -> None:
    problem = llama_problem("2:").rows(torch.tensor([0, 2]))
    settings = AdamSolver(steps=15, restarts=3, tolerance=0)
    result = adam.solve(problem, settings)
    for row in range(2):
        losses = []
        for restart in range(3):
            one = problem.rows(torch.tensor([row]))
            moved = dataclasses.replace(settings_free(one, restart))
            losses.append(float(adam.solve(moved, AdamSolver(steps=15, tolerance=0)).loss))
        assert float(result.loss[row]) == pytest.approx(min(losses), rel=1e-3)
        assert int(result.restart[row]) == losses.index(min(losses))


def settings_free(problem: Problem, restart: int) -> Problem:
    """The same problem, whose first start is another problem's start number ``restart``."""

    class Shifted(Problem):
        def start(self, _: int) -> torch.Tensor:
            return Problem.start(self, restart)

    return Shifted(**{f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)})


def test_a_loss_that_is_no_number_names_the_prompt() -> None:
    problem = mixer_problem()
    with pytest.raises(SolverError, match=r"non-finite at step \d+ for prompt\(s\) \[0"):
        chapter.solve(problem, ChapterSolver(steps=50, learning_rate=1e38))


def test_a_batch_too_large_for_memory_is_halved_without_changing_results() -> None:
    problem = mixer_problem()
    settings = ChapterSolver(steps=5)
    sizes: list[int] = []

    def small(part: Problem, chosen: ChapterSolver, truth: torch.Tensor) -> Result:
        sizes.append(len(part.target))
        assert torch.equal(truth, TRUE[part.numbers])
        if len(part.target) > 1:
            raise MemoryError
        return chapter.solve(part, chosen)

    halved = run(problem, settings, TRUE, small)
    assert sizes[0] == 3
    assert sizes[-1] == 1
    whole = run(problem, settings, TRUE)
    assert halved.loss.tolist() == pytest.approx(whole.loss.tolist(), rel=1e-4)


def test_a_single_prompt_too_large_for_memory_says_so() -> None:
    def never(part: Problem, chosen: object, truth: torch.Tensor) -> Result:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(SolverError, match="single prompt"):
        run(mixer_problem(), ChapterSolver(), TRUE, never)


def test_other_errors_are_not_taken_for_memory() -> None:
    def broken(part: Problem, chosen: object, truth: torch.Tensor) -> Result:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(mixer_problem(), ChapterSolver(), TRUE, broken)


@pytest.mark.parametrize("solve", [chapter.solve, adam.solve])
def test_the_loss_curve_begins_and_ends_where_the_descent_does(solve: object) -> None:
    settings = ChapterSolver(steps=50) if solve is chapter.solve else AdamSolver(steps=50)
    result = solve(mixer_problem(), settings)
    for row, curve in enumerate(result.curve):
        assert len(curve) == len(result.curve_steps)
        assert curve[0] == pytest.approx(float(result.first_loss[row]))
        assert curve[-1] == pytest.approx(float(result.loss[row]), rel=0.2)
    assert result.curve_steps[0] == 0
    assert result.curve_steps[-1] == 50
