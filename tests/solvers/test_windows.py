"""Windows of candidates: what the forward model says goes, and no row ends worse for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import VOCABULARY, tiny_llama, tiny_mixer, tiny_problem, true_ids
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.windows import check

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]
TRUE = true_ids(PROMPTS)


def llama_problem(mask: str = ":") -> Problem:
    model = tiny_llama(scale=0.2)
    return tiny_problem(
        model.get_decoder(), model.get_input_embeddings().weight, PROMPTS, mask=mask
    )


def lists_with_truth_at(problem: Problem, rank: int, window: int) -> Tensor:
    """Lists [row, position, window] of wrong tokens, the true one at ``rank``."""
    generator = torch.Generator().manual_seed(0)
    true = TRUE[problem.numbers]
    lists = torch.randint(VOCABULARY - 1, (*true.shape, window), generator=generator)
    lists = torch.where(lists >= true[..., None], lists + 1, lists)  # any token but the true one
    lists[..., rank] = true
    return lists


@pytest.mark.parametrize("mask", [":", "1:", "2:", "-1", ":2"])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_true_token_that_is_not_ranked_first_is_found(mask: str, rank: int) -> None:
    problem = llama_problem(mask)
    scored = problem.layout.scored
    lists = lists_with_truth_at(problem, rank, 4)
    if mask == ":":
        found = check(problem, lists, Batcher())
        assert torch.equal(found.ids[scored], TRUE[scored])
        assert bool((found.loss <= problem.floor).all())
    # One position in doubt, the others known: what is visible of it decides.
    for position in range(3):
        sure = TRUE[..., None].repeat(1, 1, 4)
        sure[:, position] = lists[:, position]
        found = check(problem, sure, Batcher())
        reached = scored[:, position] & problem.layout.visible[:, position:].any(1)
        assert torch.equal(found.ids[reached, position], TRUE[reached, position])
        unreached = ~reached & scored[:, position]
        assert torch.equal(found.ids[unreached, position], lists[unreached, position, 0])


def test_the_plain_decode_misses_what_the_window_finds() -> None:
    problem = llama_problem()
    plain = lists_with_truth_at(problem, 1, 4)[..., :1]
    found = check(problem, plain, Batcher())
    assert not bool((found.ids == TRUE)[problem.layout.scored].any())


def test_a_candidate_at_a_visible_position_is_not_judged_by_later_ones() -> None:
    problem = llama_problem().rows(torch.tensor([0]))
    lists = lists_with_truth_at(problem, 1, 2)
    ids = lists[0, :, 0].clone()
    for position in range(5):
        losses = []
        for token in lists[0, position].tolist():
            ids[position] = token
            activations = problem.probe(problem.decoder.embedding[ids[None, : position + 1]])
            losses.append(float((activations - problem.target[:, : position + 1]).abs().sum()))
        ids[position] = lists[0, position, losses.index(min(losses))]
    assert torch.equal(check(problem, lists, Batcher()).ids[0, :5], ids[:5])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([":", "1:", "3:"]), st.integers(1, 5))
def test_no_row_ends_further_from_its_target_than_its_plain_decode(
    seed: int, mask: str, window: int
) -> None:
    problem = llama_problem(mask) if mask != "3:" else llama_problem("2:")
    shape = (*TRUE.shape, window)
    lists = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
    found = check(problem, lists, Batcher())
    plain = torch.where(problem.layout.scored, lists[..., 0], TRUE)
    assert bool((found.loss <= problem.token_loss(plain) * (1 + 1e-5)).all())
    torch.testing.assert_close(found.loss, problem.token_loss(found.ids))


def test_every_forward_pass_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = llama_problem("2:")
    passes = [0, 0, 0]

    def counted(self: Problem, ids: Tensor) -> Tensor:
        for number in self.numbers.tolist():
            passes[number] += 1
        return original(self, ids)

    original = Problem.token_loss
    monkeypatch.setattr(Problem, "token_loss", counted)
    found = check(problem, lists_with_truth_at(problem, 1, 4), Batcher())
    assert found.evaluations.tolist() == passes
    assert passes == [5 * 4 + 2, 3 * 4 + 2, 6 * 4 + 2]


def test_a_row_that_is_explained_already_is_not_checked() -> None:
    problem = llama_problem("1:")
    lists = lists_with_truth_at(problem, 1, 4)
    lists[1] = lists_with_truth_at(problem, 0, 4)[1]
    found = check(problem, lists, Batcher())
    assert torch.equal(found.ids[1, :3], TRUE[1, :3])
    assert found.evaluations[1] == 1
    assert bool((found.evaluations[[0, 2]] > 5 * 4).all())


def test_a_row_alone_finds_what_it_finds_among_others() -> None:
    mixer = tiny_mixer()
    problem = tiny_problem(mixer, mixer.embed_tokens.weight, PROMPTS, mask="1:")
    lists = lists_with_truth_at(problem, 2, 6)
    together = check(problem, lists, Batcher())
    for row in range(len(PROMPTS)):
        index = torch.tensor([row])
        alone = check(problem.rows(index), lists[index], Batcher(size=1, limit=2))
        assert torch.equal(alone.ids, together.ids[index])
        assert torch.equal(alone.evaluations, together.evaluations[index])
