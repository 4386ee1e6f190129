"""A search that is stopped returns what it has, and says which rows are not done."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import PROMPTS, problem_of, true_ids
from tokinfo.solvers import annealing, best, chapter, shortlists, watch
from tokinfo.solvers.problem import Problem, Result
from tokinfo.solvers.run import run
from tokinfo.solvers.watch import Watch, lines
from tokinfo.study.solvers import (
    AdamSolver,
    ChapterSolver,
    JointSolver,
    MixtureSolver,
    SequentialSolver,
    Solver,
    SweepSolver,
)

TRUE = true_ids(PROMPTS)
DESCENT = AdamSolver(steps=20, check_every=10, window=8)
JOINT = JointSolver(descent=DESCENT, rounds=1, detections=1, detection_rounds=2, leading=64)
MIXTURE = MixtureSolver(descent=DESCENT, rounds=1, steps=2, shortlist=8, leading=64)
CASES: dict[str, tuple[Solver, dict[str, Any]]] = {
    "chapter": (ChapterSolver(steps=20), {"mask": "1:", "known": "-1"}),
    "adam": (DESCENT.model_copy(update={"restarts": 2}), {"mask": "1:", "known": "-1"}),
    "sequential": (SequentialSolver(), {"site": "block.2", "known": "-1"}),
    "sweep": (SweepSolver(positions="all"), {"mask": "1:", "known": "-1"}),
    "joint": (JOINT, {"mask": "2:", "site": "block.2", "known": "-1"}),
    "joint, first block": (JOINT, {"mask": "2:", "known": "-1"}),
    "mixture": (MIXTURE, {"mask": "2:", "site": "block.2", "known": "-1"}),
    "mixture, first block": (MIXTURE, {"mask": "2:", "known": "-1"}),
    "mixture, mixer": (MIXTURE, {"family": "flat", "mask": "2:", "known": "-1"}),
}


pytestmark = pytest.mark.usefixtures("batches_of_one_size")


@pytest.fixture(autouse=True)
def _few_random_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "_PROMPTS", 128)
    monkeypatch.setattr(annealing, "_TIMES", 1)
    monkeypatch.setattr(shortlists, "_DETECTIONS", 2)


class Looks(Watch):
    """A watch that is interrupted when it has been looked at so often."""

    def __init__(self, stop: float = float("inf")) -> None:
        super().__init__()
        self.looks, self.stop = 0, stop

    def late(self, tried: int = 0) -> bool:
        self.looks += 1
        if self.looks >= self.stop:
            self.interrupt()
        return super().late(tried)


def whole(result: Result, problem: Problem) -> None:
    """Assert that a result is one, wherever its search was stopped."""
    ids = result.top_ids[..., 0]
    assert result.top_ids.shape == (*TRUE.shape, 5)
    assert len(result.stopped) == len(TRUE)
    if result.around == "true":  # it finds what it visits, and no prompt
        assert bool((ids[problem.given] < 0).all())
        assert bool(result.loss.isnan().all())
        return
    assert torch.equal(ids[problem.given], problem.known[problem.given])
    assert bool(result.loss.isfinite().all())


@pytest.mark.parametrize("kind", CASES)
def test_when_time_is_up_at_once_every_kind_returns_a_result(kind: str) -> None:
    solver, settings = CASES[kind]
    problem = problem_of(**settings)
    result = run(problem, solver.model_copy(update={"minutes": 1e-9}), TRUE)
    whole(result, problem)
    assert result.stopped == ["minutes"] * len(TRUE)
    if solver.kind in ("joint", "mixture", "sequential"):
        ids = result.top_ids[..., 0]
        torch.testing.assert_close(result.loss, problem.token_loss(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CASES)
def test_wherever_a_run_is_interrupted_rows_that_are_done_are_as_ever(kind: str) -> None:
    solver, settings = CASES[kind]
    problem = problem_of(**settings)
    counting = Looks()
    undisturbed = run(problem, solver, TRUE, watch=counting)
    assert undisturbed.stopped == [None] * len(TRUE)
    stopped = []
    for share in (0.02, 0.4, 0.8):
        result = run(problem, solver, TRUE, watch=Looks(1 + share * counting.looks))
        whole(result, problem)
        for row, why in enumerate(result.stopped):
            assert why in (None, "interrupted")
            length = int(problem.layout.seen[row])
            if why is None:
                same = result.top_ids[row, :length, 0] == undisturbed.top_ids[row, :length, 0]
                assert bool(same.all())
        stopped.append(len(TRUE) - result.stopped.count(None))
    assert stopped[0] == len(TRUE)
    assert min(stopped) >= 1


def test_a_sweep_that_is_stopped_keeps_what_it_judged_and_says_nothing_of_the_rest() -> None:
    solver, settings = SweepSolver(positions="all"), {"mask": "1:"}
    problem = problem_of(**settings)
    counting = Looks()
    every = run(problem, solver, TRUE, watch=counting).identified
    stopped = run(problem, solver, TRUE, watch=Looks(counting.looks // 2))
    judged = [(row, place) for row, places in enumerate(stopped.identified) for place in places]
    assert 0 < len(judged) < sum(map(len, every))
    assert all(stopped.identified[row][place] == every[row][place] for row, place in judged)
    for row, why in enumerate(stopped.stopped):
        assert (why is None) == (len(stopped.identified[row]) == len(every[row]))


def test_sweeps_around_found_prompts_are_left_out_when_time_is_up() -> None:
    problem = problem_of(**CASES["joint"][1])
    counting = Looks()
    whole_run = run(problem, JOINT, TRUE, watch=counting)
    searching = Looks()
    run(problem, JOINT.model_copy(update={"sweep_found": False}), TRUE, watch=searching)
    result = run(problem, JOINT, TRUE, watch=Looks(searching.looks + 1))
    assert counting.looks > searching.looks
    assert torch.equal(result.top_ids, whole_run.top_ids)
    assert result.identified == [{}] * len(TRUE)
    assert result.stopped == ["interrupted"] * len(TRUE)


def test_detection_of_a_mixture_is_interrupted_within(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(**CASES["mixture, mixer"][1]).rows(torch.tensor([0]))
    started: list[int] = []
    detect = shortlists.Responses.detect

    def interrupted(self: shortlists.Responses, *arguments: Any) -> Any:
        started.append(self.evaluations)
        self.problem.watch.interrupt()
        return detect(self, *arguments)

    monkeypatch.setattr(shortlists.Responses, "detect", interrupted)
    result = run(problem, MIXTURE, TRUE[:1])
    assert started == [0]
    assert result.stopped == ["interrupted"]
    assert int(result.steps) == 0, "no round was begun"


def test_time_is_that_of_all_batches_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    late: list[bool] = []

    def small(part: Problem, solver: ChapterSolver, truth: torch.Tensor) -> Result:
        if len(part.target) > 1:
            raise MemoryError
        clock[0] += 40
        late.append(part.watch.late())
        return chapter.solve(part, solver)

    solver = ChapterSolver(steps=5, minutes=1)
    result = run(problem_of(mask="1:"), solver, TRUE, small)
    assert late == [False, True, True]
    assert result.stopped == [None, "minutes", "minutes"]


def test_the_descent_of_another_search_has_no_time_of_its_own() -> None:
    for solver in (JointSolver, MixtureSolver):
        with pytest.raises(ValueError, match="minutes is set for a part of a search"):
            solver.model_validate({"descent": {"minutes": 1}})


def test_a_line_is_written_every_so_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    one = Watch(lines("joint"))
    one.begin(2)
    one.note(torch.tensor([20.0, 3.0]) / torch.tensor([2.0, 3.0]))
    for second in range(26):
        clock[0] = second
        one.late(1000)
    assert capsys.readouterr().err.splitlines() == [
        "joint: 0:10, 11,000 prompts tried, residual 10, 1:50 left",
        "joint: 0:20, 21,000 prompts tried, residual 10, 1:40 left",
    ]


def test_a_sweep_says_what_is_left() -> None:
    problem = problem_of(mask="2:")
    seen: list[float] = []
    run(problem, SweepSolver(), TRUE, watch=Watch(lambda one: seen.append(one.share or 0.0)))
    assert seen == sorted(seen)
    assert seen[-1] == 1
