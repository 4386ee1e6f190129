"""The noise floor covers what the same prompt's activations really change by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import VOCABULARY, tiny_llama, tiny_mixer, tiny_problem, true_ids
from tokinfo.models.structure import StructureError
from tokinfo.probe.batch import make_batch
from tokinfo.probe.noise import Floor, alone, floor
from tokinfo.probe.probe import Prefix, Probe
from tokinfo.solvers import sweep
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.substitution import Substitution
from tokinfo.study.masks import Mask
from tokinfo.study.sites import Site
from tokinfo.study.solvers import SweepSolver

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6, 8], [5, 3, 5, 8, 9, 7]]


def problem_of(family: str, **settings: object) -> Problem:
    if family == "llama":
        model = tiny_llama(d_model=64, blocks=3)
        decoder, embedding = model.get_decoder(), model.get_input_embeddings().weight
    else:
        decoder = tiny_mixer(family, d_model=64, blocks=3)
        embedding = decoder.embed_tokens.weight
    return tiny_problem(decoder, embedding, PROMPTS, **settings)


@pytest.mark.parametrize("family", ["llama", "flat", "expanded", "parallel"])
@pytest.mark.parametrize("metric", ["l1", "l2", "cosine", "l1+cosine"])
@pytest.mark.parametrize("mask", [":", "1:", ":2"])
def test_the_true_prompt_stays_within_twice_the_floor_in_every_sweep(
    family: str, metric: str, mask: str
) -> None:
    problem = problem_of(family, metric=metric, mask=mask, site="block.3")
    everything = torch.arange(VOCABULARY)
    for row, prompt in enumerate(PROMPTS):
        one = problem.rows(torch.tensor([row]))
        around = one.decoder.embedding[torch.tensor(prompt)]
        for position, token in enumerate(prompt):
            true = Substitution(one, around, position).residuals(everything)[token]
            assert float(true) <= 2 * float(one.floor[0])


def test_the_floor_is_never_zero_and_in_the_metrics_units() -> None:
    floors = {metric: problem_of("flat", metric=metric).floor for metric in ("l1", "l2", "cosine")}
    for values in floors.values():
        assert bool((values > 0).all())
    scale = problem_of("flat").target.abs().sum((1, 2))
    assert bool((floors["l1"] < 1e-4 * scale).all())
    assert bool((floors["l2"] < floors["l1"]).all())
    assert bool((floors["cosine"] < 1e-4).all())


# --- what rounding does, and what it does not do -----------------------------------------------


class Large(Probe):
    """A probe that rounds otherwise in batches of more than 64 rows."""

    def __call__(self, embeddings: Tensor, *given: Any, **named: Any) -> Tensor:
        found = super().__call__(embeddings, *given, **named)
        return found * (1 + 5e-6) if len(embeddings) > 64 else found


class Meddling(Probe):
    """A probe in which each position sees a little of those behind it."""

    def __call__(self, embeddings: Tensor, *given: Any, **named: Any) -> Tensor:
        found = super().__call__(embeddings, *given, **named)
        return found + 0.05 * found.mean(1, keepdim=True)


class Forgetful(Probe):
    """A probe whose keys and values of leading positions are off by 1 %."""

    def prefix(self, embeddings: Tensor) -> Prefix:
        kept = super().prefix(embeddings)
        return Prefix(kept.activations, tuple((1.01 * k, v) for k, v in kept.layers))


def floor_of(kind: type[Probe], model: nn.Module, **settings: bool) -> tuple[Probe, Floor]:
    embedding = model.get_input_embeddings().weight
    batch = make_batch(PROMPTS, Mask("1:"), pad_id=0)
    probe = kind(model.get_decoder(), Site.parse("block.2"), **settings)
    target = alone(probe, embedding, batch.ids, batch.layout.seen)
    return probe, floor(probe, embedding, batch, target, "l1")


def test_a_true_token_is_identifiable_where_large_batches_round_otherwise() -> None:
    model = tiny_llama(d_model=64, blocks=3, scale=0.2)
    probe, noise = floor_of(Large, model)
    plain = floor_of(Probe, model)[1]
    assert bool((noise.distance > plain.distance).all())
    table = model.get_input_embeddings().weight
    problem = tiny_problem(model.get_decoder(), table, PROMPTS, mask="1:", site="block.2")
    # With the floor of small batches, too: what is near is computed again, alone.
    for held in (noise, plain):
        result = sweep.solve(
            replace(problem, probe=probe, noise=held), SweepSolver(), true_ids(PROMPTS)
        )
        for row in result.identified or ():
            assert [(x.rank, x.verdict) for x in row.values()] == [(1, "identifiable")]


def test_a_probe_whose_later_tokens_change_earlier_activations_is_refused() -> None:
    with pytest.raises(StructureError, match=r"block\.2.*causal"):
        floor_of(Meddling, tiny_llama(blocks=3))


def test_bidirectional_attention_is_refused_as_causal_and_has_a_floor_without() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        use_bidirectional_attention=True,
        initializer_range=0.2,
    )
    model = Gemma3ForCausalLM(config).eval().requires_grad_(False)
    with pytest.raises(StructureError, match=r"Gemma3.*causal"):
        floor_of(Probe, model)
    probe, noise = floor_of(Probe, model, causal=False)
    assert not probe.causal
    assert bool((noise.distance < 1).all())


def test_a_prefix_that_changes_activations_beyond_rounding_is_no_noise() -> None:
    with pytest.raises(StructureError, match="keys and values"):
        floor_of(Forgetful, tiny_llama(blocks=3, scale=0.2))
