"""A sweep's nearest candidates are judged as the target was computed: alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from tests.tiny import VOCABULARY, tiny_llama, tiny_problem, true_ids
from tokinfo.probe.probe import Probe
from tokinfo.solvers import sweep
from tokinfo.solvers.problem import Problem
from tokinfo.study.sites import Site
from tokinfo.study.solvers import SweepSolver

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6, 8]]
TRUE = true_ids(PROMPTS)


class Crowded(Probe):
    """A probe whose rows are off, by as much everywhere, wherever a batch has several."""

    by: float

    def __call__(self, embeddings: Tensor, *given: Any, **named: Any) -> Tensor:
        found = super().__call__(embeddings, *given, **named)
        return found + self.by if len(embeddings) > 1 else found


def crowded(mask: str, floors: float) -> Problem:
    """A problem whose batches are off by so many floors, which the floors did not show."""
    model = tiny_llama(d_model=64)
    embedding = model.get_input_embeddings().weight
    problem = tiny_problem(model.get_decoder(), embedding, PROMPTS, mask=mask)
    probe = Crowded(model.get_decoder(), Site.parse("block.1"))
    visible = int(problem.layout.visible[1].sum())
    floor = problem.floor.max()
    probe.by = float(floors * floor) / (64 * visible)
    noise = replace(problem.noise, distance=floor.expand(len(PROMPTS)))
    return replace(problem, probe=probe, noise=noise)


@pytest.mark.parametrize("floors", [0.0, 3.0, 6.0])
def test_a_true_token_is_identifiable_whatever_batches_do_to_it(floors: float) -> None:
    problem = crowded("1:", floors)
    result = sweep.solve(problem, SweepSolver(), TRUE)
    for row, prompt in enumerate(PROMPTS):
        (found,) = result.identified[row].values()
        assert (found.rank, found.verdict) == (1, "identifiable")
        assert found.true_residual <= float(problem.floor[row])
        assert result.top_ids[row, 0, 0] == prompt[0]


def test_without_that_the_batch_would_exclude_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_MOST", 0)
    result = sweep.solve(crowded("1:", 3.0), SweepSolver(), TRUE)
    assert [judged.verdict for row in result.identified for judged in row.values()] == [
        "excluded",
        "excluded",
    ]


def test_where_everything_explains_the_activations_nothing_is_told_apart() -> None:
    """Some candidates at the residual of their batch, some alone: not a bit may come of that."""
    result = sweep.solve(crowded(":2", 0.5), SweepSolver(), TRUE)
    for row in result.identified:
        for found in row.values():
            assert (found.verdict, found.candidates) == ("ambiguous", VOCABULARY)
            assert (found.bits_low, found.bits_high) == (0.0, 0.0)
