"""The probe reads what the model computes, and nothing beyond the site is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.families import FAMILIES, tiny
from tests.tiny import tiny_llama, tiny_mixer
from tokinfo.models.structure import StructureError, find_block
from tokinfo.probe.probe import Probe
from tokinfo.study.sites import Site

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


def test_positions_see_later_tokens_without_a_causal_mask_alone() -> None:
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", ["attention", "mlp", "block"])
def test_hooks_are_gone_after_a_call(family: str, place: Any) -> None:
    model = tiny(family).base_model
    probe = Probe(model, Site(place, 1), residual=False)
    embeddings = model.get_input_embeddings()(IDS)
    probe(embeddings, prefix=probe.prefix(embeddings[:1]))
    assert all(
        not module._forward_hooks and not module._forward_pre_hooks for module in model.modules()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mlp_does_not_run_for_attention_in_front_of_it(family: str) -> None:
    model = tiny(family).base_model
    ran: list[nn.Module] = []
    with find_block(model, 1).mlp.register_forward_hook(lambda mlp, *_: ran.append(mlp)):
        Probe(model, Site("attention", 1))(model.get_input_embeddings()(IDS))
    assert ran == []


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
    with pytest.raises(StructureError, match="block 3 requested, 2 held"):
        Probe(tiny_mixer(), Site("block", 3))


# --- families beyond those of docs/families.md --------------------------------------------

SIZES = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def other(name: str, **settings: Any) -> nn.Module:
    """A tiny untrained decoder of a class that needs no row in the document."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    found: nn.Module = kind(kind.config_class(**{**SIZES, **settings}))
    return found.eval().requires_grad_(False)


def test_attention_is_read_as_the_block_scales_it() -> None:
    model = other("GraniteModel", residual_multiplier=0.25, initializer_range=0.2)
    embeddings, block, seen = torch.randn(2, 5, 32), model.layers[0], []
    with block.post_attention_layernorm.register_forward_pre_hook(lambda _, x: seen.append(x[0])):
        model(inputs_embeds=embeddings)
    found = Probe(model, Site("attention", 1))(embeddings)
    assert torch.equal(found, seen[0])
    alone = Probe(model, Site("attention", 1), residual=False)(embeddings)
    assert relative(alone, found - model.embedding_multiplier * embeddings) <= 1e-5


def test_an_attention_that_adds_the_residual_itself_is_read_as_it_is() -> None:
    model = other("BloomModel", initializer_range=0.2)
    embeddings, block, seen = torch.randn(2, 5, 32), model.h[1], []
    with block.post_attention_layernorm.register_forward_pre_hook(lambda _, x: seen.append(x[0])):
        model(inputs_embeds=embeddings)
    assert torch.equal(Probe(model, Site("attention", 2))(embeddings), seen[0])
    entering = Probe(model, Site("block", 1))(embeddings)
    alone = Probe(model, Site("attention", 2), residual=False)(embeddings)
    assert relative(alone, seen[0] - entering) <= 1e-4


@pytest.mark.parametrize(("name", "mlp"), [("BloomModel", "BloomMLP"), ("MptModel", "MptMLP")])
def test_an_mlp_that_adds_the_residual_itself_is_refused(name: str, mlp: str) -> None:
    model = other(name)
    with pytest.raises(StructureError, match=f"{mlp}: is given the residual stream"):
        Probe(model, Site("mlp", 1))(torch.randn(1, 4, model.config.hidden_size))


HYBRID = {
    "MambaModel": {"state_size": 4},
    "Qwen3_5TextModel": {
        **{"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
        **{"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2},
        **{"linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    },
    # Keys and values are there, and a state beside them in the same block.
    "FalconH1Model": {
        **{"intermediate_size": 48, "num_key_value_heads": 2, "mamba_d_ssm": 32},
        **{"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    },
}


@pytest.mark.parametrize("name", HYBRID)
def test_a_block_that_needs_more_than_keys_and_values_sees_the_prefix_again(name: str) -> None:
    model = other(name, **HYBRID[name])
    embeddings = torch.randn(3, 6, 32)
    embeddings[:, :3] = embeddings[:1, :3]
    probe = Probe(model, Site("block", 2))
    whole, prefix = probe(embeddings), probe.prefix(embeddings[:1, :3])
    assert prefix.again is not None
    assert relative(prefix.activations, whole[:1, :3]) <= 1e-5
    assert relative(probe(embeddings[:, 3:], prefix=prefix), whole[:, 3:]) <= 1e-5
    rows = prefix.rows(torch.tensor([0, 0]))
    assert relative(probe(embeddings[1:, 3:], prefix=rows), whole[1:, 3:]) <= 1e-5


def test_a_block_that_hands_on_no_vector_for_each_position_is_refused() -> None:
    model = other("XLNetModel", d_inner=48, d_head=8)
    with pytest.raises(StructureError, match=r"shape \[5, 2, 32\] for 2 rows of 5 positions"):
        Probe(model, Site("block", 1))(torch.randn(2, 5, 32))


@pytest.mark.parametrize("kind", ["attention", "mixer"])
def test_keys_and_values_are_computed_once_where_they_are_all_that_is_needed(kind: str) -> None:
    decoder = tiny_mixer() if kind == "mixer" else tiny_llama(scale=0.2).base_model
    prefix = Probe(decoder, Site("block", 2)).prefix(torch.randn(1, 3, 32))  # type: ignore[arg-type]
    assert prefix.again is None
    assert len(prefix.layers) == 2


def test_a_state_space_model_has_no_site_at_attention() -> None:
    model = other("MambaModel", state_size=4)
    with pytest.raises(StructureError, match="0 sub-modules look like self-attention"):
        Probe(model, Site("attention", 1))


def test_a_decoder_that_stays_causal_is_refused_an_acausal_probe() -> None:
    neo = other(
        "GPTNeoModel", attention_types=[[["global", "local"], 1]], num_heads=4, num_layers=2
    )
    for decoder in (neo, tiny_mixer()):
        with pytest.raises(StructureError, match="first position does not see the second"):
            Probe(decoder, Site("block", 1), causal=False)
        Probe(decoder, Site("block", 1))
    with pytest.raises(StructureError, match="linear_attention takes no mask of which"):
        Probe(other("MambaModel", state_size=4), Site("block", 1), causal=False)
