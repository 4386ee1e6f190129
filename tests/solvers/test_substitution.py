"""Substitution equals one full forward per candidate, whatever was computed once."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaModel

from tests import tiny
from tests.tiny import VOCABULARY
from tokinfo.solvers import adam, sweep
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.substitution import Substitution
from tokinfo.study.solvers import AdamSolver, SweepSolver

PROMPT = [3, 1, 4, 1, 5, 9]


def problem_of(family: str, **settings: object) -> Problem:
    return tiny.problem_of(family, llama={"scale": 0.2}, prompts=[PROMPT], **settings)


@pytest.mark.parametrize("family", ["llama", "flat", "expanded", "parallel"])
@pytest.mark.parametrize("metric", ["l1", "l2", "cosine", "l1+cosine"])
@pytest.mark.parametrize("mask", [":", "2:", "-1"])
def test_residuals_equal_a_full_forward_of_every_candidate(
    family: str, metric: str, mask: str
) -> None:
    problem = problem_of(family, metric=metric, mask=mask, site="block.2")
    everything = torch.arange(VOCABULARY)
    for position in range(len(PROMPT)):
        around = problem.decoder.embedding[torch.tensor(PROMPT)]
        found = Substitution(problem, around, position).residuals(everything)
        ids = torch.tensor(PROMPT).repeat(VOCABULARY, 1)
        ids[:, position] = everything
        whole = torch.cat([problem.token_loss(row[None]) for row in ids])
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("site", ["attention.1", "mlp.2", "block.2"])
@pytest.mark.parametrize("family", ["llama", "flat", "expanded", "parallel"])
def test_a_prefix_gives_the_activations_of_the_whole(family: str, site: str) -> None:
    problem = problem_of(family, site=site)
    embedded = problem.decoder.embedding[torch.tensor([PROMPT, PROMPT[::-1]])]
    whole = problem.probe(embedded)
    for rows in (slice(None), slice(1)):
        prefix = problem.probe.prefix(embedded[rows, :3])
        later = problem.probe(embedded[rows, 3:], prefix=prefix)
        torch.testing.assert_close(prefix.activations, whole[rows, :3], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(later, whole[rows, 3:], rtol=1e-5, atol=1e-5)


def test_a_state_space_model_is_swept_and_descended_on() -> None:
    """It keeps no keys and values; floors, sweeps and descents are exact all the same."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    decoder = MambaModel(config).eval().requires_grad_(False)
    embedding = decoder.get_input_embeddings().weight
    problem = tiny.tiny_problem(decoder, embedding, [PROMPT], mask="3:", site="block.2")
    truth = tiny.true_ids([PROMPT])
    result = sweep.solve(problem, SweepSolver(), truth)
    assert result.identified is not None
    assert {place: one.rank for place, one in result.identified[0].items()} == {0: 1, 1: 1, 2: 1}
    assert adam.solve(problem, AdamSolver(steps=2)).top_ids.shape == (1, len(PROMPT), 5)


def test_an_acausal_probe_has_no_prefix() -> None:
    problem = problem_of("llama")
    problem.probe.causal = False
    with pytest.raises(ValueError, match="causal"):
        problem.probe.prefix(torch.zeros(1, 2, 32))
    residuals = Substitution(problem, torch.zeros(6, 32), 3).residuals(torch.arange(5))
    assert residuals.shape == (5,)


def test_batches_grow_while_it_pays_and_shrink_when_memory_ends() -> None:
    sizes: list[int] = []

    def double(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        if len(part) > 100:
            raise MemoryError
        return 2 * part

    items = torch.arange(1000)
    batcher = Batcher(size=64, limit=512)
    batcher._rate = 1e-9
    assert torch.equal(batcher.map(double, items), 2 * items)
    assert max(sizes) <= 512
    assert batcher.size <= 100


def test_a_row_too_large_for_memory_says_so() -> None:
    def never(part: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    with pytest.raises(MemoryError, match="single row"):
        Batcher().map(never, torch.arange(3))
