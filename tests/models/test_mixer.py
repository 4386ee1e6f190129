"""Masked mixers: causal whatever their form, exact on short prompts, the same in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tokinfo.models.build import new_model
from tokinfo.models.mixer import MaskedConvolution, MixerSpec, MixerStack, inner_times
from tokinfo.models.modeling_mixer import MixerForCausalLM, MixerModel
from tokinfo.study.sources import Built, MixerSource, TransformerSource

N, D, V = 10, 12, 50
FORMS: list[dict[str, Any]] = [
    {"form": "flat"},
    *({"form": "expanded", "expansion": e} for e in (0.3, 0.5, 1.0, 1.5, 2.0, 3.0)),
    *({"form": "parallel", "kernels": k} for k in (1, 2, 3)),
]


def make(form: dict[str, Any], blocks: int = 2) -> MixerStack:
    torch.manual_seed(0)
    return MixerStack(MixerSpec(V, D, blocks, N, **form)).eval()


def source(form: dict[str, Any]) -> MixerSource:
    return MixerSource(d_model=D, blocks=2, n_ctx=N, tokenizer="t", **form)


each_form = pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(map(str, f.values())))


@each_form
def test_a_later_token_never_changes_an_earlier_position(form: dict[str, Any]) -> None:
    stack = make(form)
    x = torch.randn(3, N, D)
    before = stack(inputs_embeds=x).last_hidden_state
    for position in range(1, N):
        changed = x.clone()
        changed[:, position] += 5.0
        after = stack(inputs_embeds=changed).last_hidden_state
        assert torch.equal(before[:, :position], after[:, :position])
        assert not torch.equal(before[:, position], after[:, position])


@each_form
def test_information_does_flow_from_earlier_positions(form: dict[str, Any]) -> None:
    stack = make(form)
    x = torch.randn(1, N, D)
    changed = x.clone()
    # Not by a constant: the norm in front of the convolution takes that away.
    changed[:, 0] = torch.randn(D)
    before, after = stack(inputs_embeds=x), stack(inputs_embeds=changed)
    # With fewer inner positions than positions, each still reads those up to its position.
    moved = (before.last_hidden_state - after.last_hidden_state).abs().amax(-1)[0]
    assert (moved > 1e-5).all()


@each_form
def test_a_short_prompt_equals_the_start_of_a_padded_one(form: dict[str, Any]) -> None:
    stack = make(form)
    ids = torch.randint(V, (2, N))
    padded = stack(input_ids=ids).last_hidden_state
    for length in range(1, N):
        short = stack(input_ids=ids[:, :length]).last_hidden_state
        torch.testing.assert_close(short, padded[:, :length], rtol=1e-5, atol=1e-6)


@each_form
def test_training_and_frozen_weights_give_the_same_and_masked_ones_no_gradient(
    form: dict[str, Any],
) -> None:
    stack = make(form)
    x = torch.randn(2, 7, D)
    trained = stack(inputs_embeds=x).last_hidden_state
    trained.square().sum().backward()
    for module in stack.modules():
        if isinstance(module, MaskedConvolution):
            assert module.weight.grad is not None
            times_in, times_out = torch.tensor(module.times_in), torch.tensor(module.times_out)
            hidden = times_in[None, :] > times_out[:, None]
            assert (module.weight.grad[hidden] == 0).all()
    stack.requires_grad_(False)
    assert torch.equal(stack(inputs_embeds=x).last_hidden_state, trained)


def test_a_frozen_weight_that_changes_is_masked_again() -> None:
    stack = make({"form": "flat"}).requires_grad_(False)
    x = torch.randn(1, 5, D)
    before = stack(inputs_embeds=x).last_hidden_state
    for block in stack.blocks:
        nn.init.normal_(block.mixing.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(before, stack(inputs_embeds=x).last_hidden_state)


@pytest.mark.parametrize("expansion", [0.05, 0.5, 1.0, 1.3, 4.0])
def test_inner_positions_are_ascending_and_start_at_the_first(expansion: float) -> None:
    times = inner_times(N, expansion)
    assert len(times) == max(1, round(expansion * N))
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] < N


def test_an_expansion_of_one_is_lower_triangular_as_published() -> None:
    mixing = make({"form": "expanded", "expansion": 1.0}).blocks[0].mixing
    for layer in (mixing.expand, mixing.contract):  # type: ignore[union-attr]
        assert torch.equal(layer.leading(N)[0], layer.weight.tril())  # type: ignore[union-attr, operator]


def test_the_flat_mixer_is_the_published_convolution() -> None:
    mixing = make({"form": "flat"}).blocks[0].mixing
    x = torch.randn(2, N, D)
    published = nn.functional.conv1d(x, mixing.weight.tril()[:, :, None], mixing.bias)  # type: ignore[operator, union-attr, arg-type]
    torch.testing.assert_close(mixing(x), published, rtol=1e-5, atol=1e-6)


def test_convolutions_start_as_pytorch_starts_them() -> None:
    ours = MaskedConvolution(range(64), range(64))
    theirs = nn.Conv1d(64, 64, 1)
    assert ours.weight.abs().max() <= 1 / 8
    assert ours.bias.abs().max() <= 1 / 8
    assert ours.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=0.05)


def test_a_parallel_mixer_is_the_sum_of_its_kernels() -> None:
    mixing = make({"form": "parallel", "kernels": 3}).blocks[0].mixing
    x = torch.randn(2, 6, D)
    total = sum(kernel(x, 6) for kernel in mixing.kernels.values())  # type: ignore[union-attr]
    torch.testing.assert_close(mixing(x), total, rtol=1e-5, atol=1e-6)


def test_a_sequence_beyond_n_ctx_and_missing_inputs_are_errors() -> None:
    stack = make({"form": "flat"})
    with pytest.raises(ValueError, match="11 positions is longer than the n_ctx = 10"):
        stack(input_ids=torch.zeros(1, N + 1, dtype=torch.long))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        stack()
    with pytest.raises(ValueError, match="mixer form 'round'"):
        MixerSpec(V, D, 1, N, "round")


@each_form
def test_save_pretrained_round_trips_exactly_and_loads_into_the_bare_stack(
    form: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    model = new_model(source(form), V, 3).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(V, (2, 7))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, MixerForCausalLM)
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    model.base_model.save_pretrained(tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    assert isinstance(base, MixerModel)
    config = AutoConfig.from_pretrained(tmp_path / "base")
    assert config.max_position_embeddings == N
    stack = MixerStack(MixerSpec.from_config(config.to_dict())).eval()
    stack.load_state_dict(load_file(tmp_path / "base" / "model.safetensors"))
    expected = base(input_ids=ids, output_hidden_states=True)
    found = stack(input_ids=ids, output_hidden_states=True)
    assert len(found.hidden_states) == 3
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(one, other)


def test_generate_is_greedy_decoding_of_the_logits() -> None:
    model = new_model(source({"form": "flat"}), V, 0).eval()
    ids = torch.tensor([[4, 8, 15]])
    found = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    expected = ids
    for _ in range(5):
        logits = model(input_ids=expected).logits[:, -1:]
        expected = torch.cat([expected, logits.argmax(-1)], 1)
    assert torch.equal(found, expected)


def test_labels_give_the_next_token_loss() -> None:
    model = new_model(source({"form": "flat"}), V, 0)
    ids = torch.randint(V, (2, 6))
    out = model(input_ids=ids, labels=ids)
    expected = nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize(
    "made",
    [
        source({"form": "flat"}),
        TransformerSource(d_model=16, blocks=1, heads=2, n_ctx=8, tokenizer="t"),
    ],
    ids=["mixer", "transformer"],
)
def test_new_models_depend_on_the_seed_alone(made: Built) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = new_model(made, V, 7).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    second, other = new_model(made, V, 7).state_dict(), new_model(made, V, 8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_mixer_embedding_starts_at_unit_scale_as_pytorch_has_it() -> None:
    weight = new_model(source({"form": "flat"}), 1000, 0).get_input_embeddings().weight
    assert weight.std().item() == pytest.approx(1.0, rel=0.05)
