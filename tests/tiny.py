"""Tiny models and problems, made in the test that needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tokinfo.models.mixer import MixerSpec, MixerStack
from tokinfo.probe.batch import make_batch
from tokinfo.probe.noise import alone, floor
from tokinfo.probe.probe import Probe
from tokinfo.solvers.decoding import Decoder, inverse_gram
from tokinfo.solvers.problem import Problem
from tokinfo.study.fields import MetricName, Parametrisation
from tokinfo.study.known import Known
from tokinfo.study.masks import Mask
from tokinfo.study.sites import Site
from tokinfo.study.solvers import MetricWeights

VOCABULARY = 256
CELL: Mapping[str, Any] = {
    **{"model": "m", "site": "block.1", "residual": True, "causal": True, "padding": "none"},
    **{"mask": "1:", "metric": "l1", "parametrisation": "embedding", "solver": "mine"},
    **{"prompts": "few", "seed": 0},
}
"""A cell, as a study writes it; tests change what they are about."""


def true_ids(prompts: list[list[int]]) -> torch.Tensor:
    """The truth about `tiny_problem`, which is no part of the problem."""
    return make_batch(prompts, Mask(":"), pad_id=0).ids


def tiny_llama(d_model: int = 32, blocks: int = 2, seed: int = 0, scale: float = 0.02) -> nn.Module:
    """An untrained Llama for causal language modelling, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=scale,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def in_double(decoder: nn.Module) -> nn.Module:
    """A Llama decoder in float64, without its norm's float32."""
    for path, norm in list(decoder.named_modules()):
        if isinstance(norm, LlamaRMSNorm):
            exact = nn.RMSNorm(len(norm.weight), norm.variance_epsilon)
            decoder.set_submodule(path, exact.requires_grad_(False))
    return decoder.double()


def tiny_mixer(
    form: str = "flat", d_model: int = 32, blocks: int = 2, n_ctx: int = 12, seed: int = 0
) -> MixerStack:
    """An untrained masked mixer (the decoder alone), in float32."""
    torch.manual_seed(seed)
    spec = MixerSpec(VOCABULARY, d_model, blocks, n_ctx, form)
    return MixerStack(spec).eval().requires_grad_(False)


def tiny_problem(
    decoder: nn.Module,
    embedding: torch.Tensor,
    prompts: list[list[int]],
    *,
    mask: str = ":",
    site: str = "block.1",
    metric: MetricName = "l1",
    parametrisation: Parametrisation = "embedding",
    seed: int = 0,
    known: str = "none",
    candidates: Sequence[int] | None = None,
) -> Problem:
    """The problem of explaining ``prompts`` from their visible activations."""
    batch = make_batch(prompts, Mask(mask), pad_id=0)
    probe = Probe(decoder, Site.parse(site))
    visible = batch.layout.visible[..., None]
    target = alone(probe, embedding, batch.ids, batch.layout.seen)
    given = torch.full_like(batch.ids, -1)
    for row, prompt in enumerate(prompts):
        for position in Known(known).positions(Mask(mask), len(prompt)):
            given[row, position] = prompt[position]
    return Problem(
        probe=probe,
        decoder=Decoder(
            embedding,
            inverse_gram(embedding),
            candidates=None if candidates is None else torch.tensor(sorted(candidates)),
        ),
        layout=batch.layout,
        known=given,
        target=target.masked_fill(~visible, 0),
        noise=floor(probe, embedding, batch, target, metric),
        metric=metric,
        weights=MetricWeights(),
        parametrisation=parametrisation,
        seed=seed,
        numbers=torch.arange(len(prompts)),
    )


PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6, 8], [5, 3, 5, 8, 9, 7]]


def problem_of(
    family: str = "llama", *, llama: Mapping[str, Any] | None = None, **settings: Any
) -> Problem:
    """The problem of `PROMPTS`, or of others, in a tiny Llama or a mixer of some form."""
    if family == "llama":
        model = tiny_llama(**(llama or {"d_model": 64}))
        decoder, embedding = model.get_decoder(), model.get_input_embeddings().weight
    else:
        decoder = tiny_mixer(family)
        embedding = decoder.embed_tokens.weight
    prompts = settings.pop("prompts", PROMPTS)
    return tiny_problem(decoder, embedding, prompts, **settings)
