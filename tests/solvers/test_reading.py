"""Visible tokens are read from their own activations, and what all prompts share is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.solvers.test_mixture import drawn, problem_of
from tests.tiny import VOCABULARY
from tokinfo.probe.streams import Entries, Streams
from tokinfo.solvers import best
from tokinfo.solvers.annealing import Start
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.best import Best
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.reading import read
from tokinfo.study.solvers import MixtureSolver

pytestmark = pytest.mark.usefixtures("batches_of_one_size")


@pytest.fixture(autouse=True)
def _few_random_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "_PROMPTS", 256)


def begun(problem: Problem, proposed: Tensor, leading: int | None = None) -> Best:
    settings = MixtureSolver(leading=leading)
    return Best(problem, settings, Batcher(watch=problem.watch), proposed)


def wrong(prompt: list[int]) -> Tensor:
    """Five tokens a position, none of them the true one."""
    tokens = torch.tensor(prompt)[:, None] + torch.arange(1, 6)
    return tokens % VOCABULARY


@pytest.mark.parametrize("site", ["block.2", "attention.2"])
@pytest.mark.parametrize("mask", ["-1:", "3:", "1::2", ":"])
def test_tokens_that_nothing_proposes_are_read_behind_hidden_ones(mask: str, site: str) -> None:
    (prompt,) = drawn(1, 6)
    problem = problem_of([prompt], mask=mask, site=site)
    held = begun(problem, wrong(prompt))
    read(held, Streams(problem.probe))
    seen = problem.layout.visible[0]
    assert held.ids[seen].tolist() == torch.tensor(prompt)[seen].tolist()
    assert held.evaluations >= VOCABULARY * int(seen.sum())


def test_a_token_beyond_the_leading_ones_is_read_where_descent_proposes_it() -> None:
    prompt = [7, 3, 200]
    problem = problem_of([prompt], mask="-1:", site="block.2")
    proposed = wrong(prompt)
    for right in (False, True):
        proposed[2, 4] = 200 if right else 201
        held = begun(problem, proposed, leading=64)
        read(held, Streams(problem.probe))
        assert (int(held.ids[2]) == 200) == right


def test_known_tokens_are_not_read() -> None:
    (prompt,) = drawn(1, 5)
    problem = problem_of([prompt], mask="2:", known="visible", site="block.2")
    held = begun(problem, wrong(prompt))
    before = held.evaluations
    read(held, Streams(problem.probe))
    assert held.ids[2:].tolist() == prompt[2:]
    assert held.evaluations == before


@pytest.mark.parametrize("mask", ["1:", "-1:"])
def test_whitened_prompts_vary_by_one_in_every_direction_but_the_smallest(mask: str) -> None:
    (prompt,) = drawn(1, 4)
    problem = problem_of([prompt], mask=mask, site="block.2")
    held = begun(problem, wrong(prompt))
    whiten = held.whitening(held.unknown, held.visible)
    prompts = held.drawn(1024)
    with torch.no_grad():
        made = problem.probe(held.embedding[prompts])[:, held.visible].flatten(1)
    spread = ((made - made.mean(0)) @ whiten).std(0)
    # The directions are those of other draws, in order of their variance.
    assert bool((spread[-16:] - 1).abs().max() < 0.5)
    assert bool((spread < 1.5).all())


def test_where_nothing_that_is_sought_is_seen_no_direction_counts() -> None:
    (prompt,) = drawn(1, 4)
    problem = problem_of([prompt], "flat", mask="1:", site="embedding")
    held = begun(problem, wrong(prompt))
    assert held.whitening(held.unknown, held.visible).abs().max() == 0


# --- what prompts share ---------------------------------------------------------------------


class Counted:
    """Computes entries whose keys name their tokens, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, tokens: Tensor) -> Entries:
        self.times += 1
        named = tokens.double()
        return Entries(torch.zeros_like(tokens), (named[None, None],), (named[None, :, None],))


def test_entries_that_nothing_sought_changes_are_computed_once_for_all_that_begin_alike() -> None:
    compute, start = Counted(), Start(VOCABULARY)
    every = torch.arange(0, VOCABULARY, 2)
    steps = [
        ([], every, 1),
        ([], every, 1),
        ([], torch.tensor([8, 2, 200]), 1),  # some of them, in any order
        ([5], every, 2),  # behind another token
        ([5], torch.tensor([3, 8]), 3),  # one that was not among them
        ([], torch.tensor([8, 2]), 4),
    ]
    for before, tokens, times in steps:
        found = start.entries(
            torch.tensor(before, dtype=torch.int64), tokens, lambda tokens=tokens: compute(tokens)
        )
        assert found.keys[0].flatten().tolist() == tokens.tolist()
        assert found.values[0].flatten().tolist() == tokens.tolist()
        assert compute.times == times
    assert start.held == 2
