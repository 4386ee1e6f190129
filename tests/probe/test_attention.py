"""Attention taken apart and put together again is the model's own, or it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import FAMILIES, tiny
from tests.families import NOT_TAKEN_APART as WHY_NOT
from tests.tiny import tiny_llama, tiny_mixer
from tokinfo.models.structure import StructureError
from tokinfo.probe.attention import FirstAttention
from tokinfo.probe.probe import Probe
from tokinfo.study.sites import Site

SITES = ("attention.1", "mlp.1", "block.1")


def prompts(probe: Probe, positions: int = 9) -> Tensor:
    table = probe.decoder.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(1)
    return table[torch.randint(len(table), (2, positions), generator=generator)]


def put_together(attention: FirstAttention, embedded: Tensor) -> Tensor:
    attended = attention.attended(embedded)
    rows = zip(embedded, attended, strict=True)
    return torch.stack([attention.carried(row, heads) for row, heads in rows])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# --- families -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_put_together_is_the_plain_forward_or_is_refused(family: str) -> None:
    decoder = tiny(family).base_model
    before = decoder.config._attn_implementation
    for site in SITES:
        probe = Probe(decoder, Site.parse(site))
        why_not = WHY_NOT.get(family)
        if family == "GPT-NeoX" and site == "mlp.1":
            why_not = "does not act on mlp.1"  # it runs beside the MLP
        if why_not is not None:
            with pytest.raises(StructureError, match=why_not) as raised:
                FirstAttention(probe)
            assert type(decoder).__name__ in str(raised.value)
        else:
            embedded = prompts(probe)
            assert relative(put_together(FirstAttention(probe), embedded), probe(embedded)) <= 1e-5
    assert decoder.config._attn_implementation == before


@pytest.mark.parametrize("family", ["Mistral", "Phi-3", "Qwen2, sliding"])
def test_a_window_that_spans_the_prompts_is_taken_apart_and_named(family: str) -> None:
    window = 4 if family.startswith("Qwen2") else 16  # there the first block has none
    decoder = tiny(family, sliding_window=window).base_model
    for site in SITES:
        probe = Probe(decoder, Site.parse(site))
        attention, embedded = FirstAttention(probe), prompts(probe)
        assert attention.reach == window
        assert relative(put_together(attention, embedded), probe(embedded)) <= 1e-5


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in WHY_NOT])
def test_single_tokens_have_the_queries_keys_and_values_of_the_prompt(family: str) -> None:
    """Attention made of them, position by position, is what the prompt's returned."""
    probe = Probe(tiny(family).base_model, Site("block", 1))
    attention, embedded = FirstAttention(probe), prompts(probe)[0]
    order = torch.tensor([4, 8, 0, 2, 6, 1, 3, 7, 5])
    parts = attention.parts(embedded[order], order)
    back = order.argsort()
    queries, keys, values = parts.queries[back], parts.keys[back], parts.values[back]
    share = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
    scores = torch.einsum("jhd,ihd->hji", queries, keys)
    scores.masked_fill_(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
    found = torch.einsum("hji,ihd->jhd", scores.softmax(-1), values)
    assert relative(found, attention.attended(embedded[None])[0]) <= 1e-5


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["embedding", "attention.2", "mlp.2", "block.2"])
def test_other_sites_are_refused(site: str) -> None:
    probe = Probe(tiny_llama().get_decoder(), Site.parse(site))
    with pytest.raises(StructureError, match="no site of the first block's causal attention"):
        FirstAttention(probe)


@pytest.mark.parametrize("settings", [{"causal": False}, {"residual": False}])
@pytest.mark.parametrize("site", ["attention.1", "block.1"])
def test_no_causal_mask_and_no_residual_are_refused(settings: dict[str, bool], site: str) -> None:
    probe = Probe(tiny_llama().get_decoder(), Site.parse(site), **settings)
    with pytest.raises(StructureError, match="no site of the first block's causal attention"):
        FirstAttention(probe)


@pytest.mark.parametrize("form", ["flat", "expanded", "parallel"])
def test_mixers_are_refused(form: str) -> None:
    with pytest.raises(StructureError, match="MixerStack"):
        FirstAttention(Probe(tiny_mixer(form), Site("block", 1)))


# --- the model is left as it was ------------------------------------------------------------


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("where", ["hook", "attend"])
def test_the_models_own_attention_is_back_after_an_exception(
    where: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny_llama().get_decoder()
    decoder.config._attn_implementation = implementation
    probe = Probe(decoder, Site("block", 1))
    attention, embedded = FirstAttention(probe), prompts(probe)
    expected = probe(embedded)

    def broken(*_: Any) -> None:
        raise Broken

    with monkeypatch.context() as patched:
        if where == "hook":
            hook = decoder.layers[0].self_attn.register_forward_pre_hook(broken)
        else:
            patched.setattr("tokinfo.probe.attention._mean", broken)
        with pytest.raises(Broken):
            attention.attended(embedded)
        if where == "hook":
            hook.remove()
    assert decoder.config._attn_implementation == implementation
    assert torch.equal(probe(embedded), expected)
    assert relative(put_together(attention, embedded), expected) <= 1e-5


def test_the_gradient_reaches_what_attention_returned() -> None:
    probe = Probe(
        tiny_llama(scale=0.2).get_decoder().double(), Site("block", 1), dtype=torch.double
    )
    attention, embedded = FirstAttention(probe), prompts(probe)[0, :3]
    attended = attention.attended(embedded[None])[0].requires_grad_(True)
    # Llama's norms compute in float32 whatever they are given: hence the long step.
    assert torch.autograd.gradcheck(
        lambda heads: attention.carried(embedded, heads), attended, eps=1e-3, atol=2e-3, rtol=1e-3
    )
