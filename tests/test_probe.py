"""The probe reads what the model computes, and nothing beyond the site is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tiny import tiny_llama, tiny_mixer
from tokinfo.models.structure import StructureError
from tokinfo.probe import Probe
from tokinfo.sites import Site

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("number", [1, 2])
def test_block_sites_equal_transformers_own_hidden_states(number: int) -> None:
    model = tiny_llama(blocks=3)
    hidden = model(input_ids=IDS, output_hidden_states=True).hidden_states
    found = Probe(model.get_decoder(), Site("block", number))(
        model.get_input_embeddings().weight[IDS]
    )
    assert relative(found, hidden[number]) <= 1e-5


def test_the_last_block_is_read_before_the_final_norm() -> None:
    model = tiny_llama(blocks=3)
    normed = model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
    found = Probe(model.get_decoder(), Site("block", 3))(model.get_input_embeddings().weight[IDS])
    assert relative(model.model.norm(found), normed) <= 1e-5


def test_sub_layer_sites_equal_the_block_computed_by_hand() -> None:
    model = tiny_llama(blocks=2)
    embeddings = model.get_input_embeddings().weight[IDS]
    decoder = model.get_decoder()
    block = decoder.layers[1]
    entering = Probe(decoder, Site("block", 1))(embeddings)
    rotary = decoder.rotary_emb(entering, torch.arange(5)[None])
    attended, _ = block.self_attn(block.input_layernorm(entering), rotary, None)
    after = entering + attended
    mlp = block.mlp(block.post_attention_layernorm(after))
    assert relative(Probe(decoder, Site("attention", 2))(embeddings), after) <= 1e-5
    assert relative(Probe(decoder, Site("mlp", 2))(embeddings), mlp) <= 1e-5
    assert relative(Probe(decoder, Site("block", 2))(embeddings), after + mlp) <= 1e-5


def test_without_the_residual_only_attention_output_goes_on() -> None:
    model = tiny_llama(blocks=2)
    embeddings = model.get_input_embeddings().weight[IDS]
    decoder = model.get_decoder()
    block = decoder.layers[1]
    entering = Probe(decoder, Site("block", 1))(embeddings)
    rotary = decoder.rotary_emb(entering, torch.arange(5)[None])
    attended, _ = block.self_attn(block.input_layernorm(entering), rotary, None)
    expected = attended + block.mlp(block.post_attention_layernorm(attended))
    for site, right in ((Site("attention", 2), attended), (Site("block", 2), expected)):
        assert relative(Probe(decoder, site, residual=False)(embeddings), right) <= 1e-5


@pytest.mark.parametrize("form", ["flat", "expanded", "parallel"])
def test_mixer_sites_equal_the_block_computed_by_hand(form: str) -> None:
    mixer = tiny_mixer(form)
    x = mixer.embed_tokens(IDS)
    for block in mixer.blocks[:1]:
        mixed = x + block.mixing(block.mixing_norm(x))
        out = mixed + block.mlp(block.mlp_norm(mixed))
    embeddings = mixer.embed_tokens(IDS)
    assert relative(Probe(mixer, Site("attention", 1))(embeddings), mixed) <= 1e-5
    assert relative(Probe(mixer, Site("block", 1))(embeddings), out) <= 1e-5
    bare = block.mixing(block.mixing_norm(x))
    expected = bare + block.mlp(block.mlp_norm(bare))
    assert relative(Probe(mixer, Site("block", 1), residual=False)(embeddings), expected) <= 1e-5


def test_a_causal_probe_hides_later_tokens_and_an_acausal_one_shows_them() -> None:
    model = tiny_llama()
    matrix = model.get_input_embeddings().weight
    changed = IDS.clone()
    changed[:, -1] = 0
    for causal in (True, False):
        probe = Probe(model.get_decoder(), Site("block", 1), causal=causal)
        same = torch.equal(probe(matrix[IDS])[:, :-1], probe(matrix[changed])[:, :-1])
        assert same is causal


def test_padding_is_invisible_without_a_causal_mask() -> None:
    model = tiny_llama()
    matrix = model.get_input_embeddings().weight
    probe = Probe(model.get_decoder(), Site("block", 2), causal=False)
    short = probe(matrix[IDS[:1, :3]])
    padded = probe(matrix[IDS], torch.tensor([3, 5]))
    assert relative(padded[:1, :3], short) <= 1e-5


def test_nothing_beyond_the_site_is_computed() -> None:
    model = tiny_llama(blocks=3)
    ran: list[int] = []
    for number, block in enumerate(model.model.layers, start=1):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    Probe(model.get_decoder(), Site("block", 2))(model.get_input_embeddings().weight[IDS])
    assert ran == [1, 2]


def test_hooks_are_gone_after_a_call() -> None:
    mixer = tiny_mixer()
    Probe(mixer, Site("block", 1), residual=False)(mixer.embed_tokens(IDS))
    assert all(
        not module._forward_hooks and not module._forward_pre_hooks for module in mixer.modules()
    )


def test_the_gradient_reaches_the_embeddings_only() -> None:
    model = tiny_llama()
    free = torch.randn(1, 4, 32, requires_grad=True)
    Probe(model.get_decoder(), Site("block", 2))(free).sum().backward()
    assert free.grad is not None
    assert bool(free.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_embedding_site_is_the_input_itself() -> None:
    x = torch.randn(1, 3, 8)
    assert Probe(nn.Identity(), Site("embedding", 0))(x) is x


def test_an_unknown_structure_is_named() -> None:
    with pytest.raises(StructureError, match="no list of decoder blocks"):
        Probe(nn.Linear(2, 2), Site("block", 1))
    with pytest.raises(StructureError, match="block 3 asked for, 2 held"):
        Probe(tiny_mixer(), Site("block", 3))
