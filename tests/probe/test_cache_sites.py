"""Keys and values, and the final norm, as sites: read as transformers itself has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.families import FAMILIES, tiny
from tests.tiny import problem_of, tiny_llama, tiny_mixer, true_ids
from tokinfo.models.structure import StructureError
from tokinfo.probe.probe import Probe
from tokinfo.solvers.sweep import solve
from tokinfo.study.sites import Site
from tokinfo.study.solvers import SweepSolver

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
CACHED = list(FAMILIES)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def own_cache(model: nn.Module, first: int, last: int) -> torch.Tensor:
    """The model's own cache of whole blocks, laid out as the site is."""
    decoder: Any = model
    with torch.no_grad():
        cache = transformers.DynamicCache()
        decoder(input_ids=IDS, past_key_values=cache, use_cache=True)
    parts = []
    for layer in cache.layers[first - 1 : last]:
        for states in (layer.keys, layer.values):
            parts.append(states.transpose(1, 2).reshape(*IDS.shape, -1))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("family", CACHED)
@pytest.mark.parametrize(("first", "last"), [(1, 1), (2, 2), (1, 2)])
def test_keys_and_values_are_those_of_the_models_own_cache(
    family: str, first: int, last: int
) -> None:
    model = tiny(family)
    decoder = model.base_model
    probe = Probe(decoder, Site("kv", last, first))
    embedded = decoder.get_input_embeddings()(IDS)
    with torch.no_grad():
        found = probe(embedded)
        prefix = probe.prefix(embedded[:, :2])
        after = probe(embedded[:, 2:], prefix=prefix)
    expected = own_cache(model, first, last)
    assert relative(found, expected) <= 1e-5
    assert relative(torch.cat([prefix.activations, after], 1), expected) <= 1e-4


def test_the_final_norm_is_the_last_hidden_state() -> None:
    model = tiny_llama(blocks=3)
    decoder = model.get_decoder()
    with torch.no_grad():
        normed = model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
        embedded = model.get_input_embeddings().weight[IDS]
        probe = Probe(decoder, Site("norm", 3))
        assert relative(probe(embedded), normed) <= 1e-5
        prefix = probe.prefix(embedded[:, :3])
        rest = probe(embedded[:, 3:], prefix=prefix)
    assert relative(torch.cat([prefix.activations, rest], 1), normed) <= 1e-5


def test_the_norm_of_a_mixer_is_its_output() -> None:
    mixer = tiny_mixer()
    embedded = mixer.embed_tokens.weight[IDS]
    with torch.no_grad():
        expected = mixer(inputs_embeds=embedded).last_hidden_state
        assert relative(Probe(mixer, Site("norm", 2))(embedded), expected) <= 1e-6


def test_gradients_reach_the_embeddings_through_keys_and_values() -> None:
    model = tiny_llama(blocks=3)
    embedded = model.get_input_embeddings().weight[IDS].clone().requires_grad_()
    Probe(model.get_decoder(), Site("kv", 3))(embedded)[:, -1].sum().backward()
    assert embedded.grad is not None
    assert (embedded.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("change", [{"causal": False}, {"residual": False}])
def test_what_has_no_cache_is_refused(change: dict[str, bool]) -> None:
    with pytest.raises(StructureError, match="keys and values"):
        Probe(tiny_llama().get_decoder(), Site("kv", 1), **change)
    with pytest.raises(StructureError, match="keys and values"):
        Probe(tiny_mixer(), Site("kv", 1))


_SHARED: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def keys_of_blocks_3_and_4_are_those_of_1_and_2() -> nn.Module:
    settings = {
        **{"head_dim": 8, "num_kv_shared_layers": 2, "altup_num_inputs": 2, "laurel_rank": 4},
        **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96},
        **{"layer_types": ["sliding_attention", "full_attention"] * 2},
        "activation_sparsity_pattern": [0.0] * 4,
    }
    return transformers.Gemma3nTextModel(transformers.Gemma3nTextConfig(**_SHARED, **settings))


def every_second_block_is_a_convolution() -> nn.Module:
    kinds = ["full_attention", "conv"] * 2
    return transformers.Lfm2Model(transformers.Lfm2Config(**_SHARED, layer_types=kinds))


def no_block_keeps_keys() -> nn.Module:
    settings = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 4}
    return transformers.MambaModel(transformers.MambaConfig(**settings))


@pytest.mark.parametrize(
    ("make", "sites"),
    [
        (keys_of_blocks_3_and_4_are_those_of_1_and_2, ("kv.4", "kv.1-3", "kv.1-4")),
        (every_second_block_is_a_convolution, ("kv.2", "kv.1-3")),
        (no_block_keeps_keys, ("kv.1", "kv.1-2")),
    ],
)
def test_blocks_without_keys_and_values_are_refused_not_left_out(
    make: Callable[[], nn.Module], sites: tuple[str, ...]
) -> None:
    decoder = make().eval()
    for site in sites:
        with pytest.raises(StructureError, match=rf"{site}: (has no cache|block . keeps no)"):
            Probe(decoder, Site.parse(site))


# --- what a cache says of the tokens whose entries were dropped -------------------------------

PROMPT = [[5, 3, 5, 8, 9, 7]]


def test_the_first_blocks_entries_say_nothing_of_other_tokens() -> None:
    problem = problem_of(prompts=PROMPT, mask=":2,4:", site="kv.1", llama={"d_model": 64})
    assert problem.independent.tolist() == [[False, False, True, True, False, False]]
    judged = solve(problem, SweepSolver(), true_ids(PROMPT)).identified
    assert judged is not None
    assert {one.verdict for one in judged[0].values()} == {"ambiguous"}
    assert {one.candidates for one in judged[0].values()} == {256}


@pytest.mark.parametrize("site", ["kv.2", "kv.1-2"])
def test_later_blocks_entries_still_hold_dropped_tokens(site: str) -> None:
    problem = problem_of(prompts=PROMPT, mask=":2,4:", site=site, llama={"d_model": 64})
    assert not problem.independent.any()
    judged = solve(problem, SweepSolver(), true_ids(PROMPT)).identified
    assert judged is not None
    assert set(judged[0]) == {2, 3}
    assert {one.verdict for one in judged[0].values()} == {"identifiable"}
