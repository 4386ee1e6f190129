"""A GGUF file is read as it says, by an independent reading; what is passed over is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import (
    GGMLQuantizationType,
    GGUFReader,
    GGUFWriter,
    RopeScalingType,
    dequantize,
    quantize,
)
from transformers import Gemma2Config

from tests.models.fetch.hub_models import BLOCKS, Made, add_tokenizer, refused, write_gguf
from tokinfo.io.errors import FetchError
from tokinfo.models.checkpoint import load
from tokinfo.models.fetch.fetch import fetch
from tokinfo.models.fetch.gguf_checks import check_gguf
from tokinfo.models.preparing import prepare
from tokinfo.probe.probe import Probe
from tokinfo.study.sites import Site
from tokinfo.study.sources import GgufSource, Model

WIDTH, HEADS, GROUPS, HEAD, INNER, V = 64, 4, 2, 16, 96, 270
IDS = torch.randint(V, (1, 9), generator=torch.Generator().manual_seed(0))


def source(path: Path) -> GgufSource:
    return GgufSource(path=str(path), blocks=BLOCKS, n_ctx=32)


# --- used -----------------------------------------------------------------------------------


def write_random(path: Path, architecture: str, model: Path) -> None:
    """Write random weights straight as GGUF has them; matrices in 8 bits, with qwen2's biases."""
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(3e-4)
    writer.add_rope_freq_base(500.0)
    writer.add_rope_dimension_count(HEAD)
    add_tokenizer(writer, model)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = random.normal(1.0 if len(shape) == 1 else 0.0, 0.3, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", V, WIDTH)
    add("output_norm.weight", WIDTH)
    for block in range(BLOCKS):
        for part, out in (("q", HEADS * HEAD), ("k", GROUPS * HEAD), ("v", GROUPS * HEAD)):
            add(f"blk.{block}.attn_{part}.weight", out, WIDTH)
            if architecture == "qwen2":
                add(f"blk.{block}.attn_{part}.bias", out)
        add(f"blk.{block}.attn_output.weight", WIDTH, HEADS * HEAD)
        add(f"blk.{block}.ffn_gate.weight", INNER, WIDTH)
        add(f"blk.{block}.ffn_up.weight", INNER, WIDTH)
        add(f"blk.{block}.ffn_down.weight", WIDTH, INNER)
        add(f"blk.{block}.attn_norm.weight", WIDTH)
        add(f"blk.{block}.ffn_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_independently(path: Path, blocks: int) -> np.ndarray[Any, Any]:
    """The activations behind some blocks, from the file's dequantised tensors and its keys."""
    reader = GGUFReader(path)
    tensors = {one.name: dequantize(one.data, one.tensor_type) for one in reader.tensors}
    architecture = reader.fields["general.architecture"].contents()
    key = {name: field.contents() for name, field in reader.fields.items()}.__getitem__

    def norm(x: Any, weight: Any) -> Any:
        epsilon = key(f"{architecture}.attention.layer_norm_rms_epsilon")
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight

    def rotate(x: Any) -> Any:
        """Pairs of llama are neighbours, those of others half a head apart."""
        count = key(f"{architecture}.rope.dimension_count")
        base = key(f"{architecture}.rope.freq_base")
        angle = np.arange(len(x))[:, None, None] / base ** (np.arange(0, count, 2) / count)
        if architecture == "llama":
            pairs = (slice(0, None, 2), slice(1, None, 2))
        else:
            pairs = (slice(0, count // 2), slice(count // 2, None))
        a, b = (x[..., pair] for pair in pairs)
        found = np.empty_like(x)
        found[..., pairs[0]] = a * np.cos(angle) - b * np.sin(angle)
        found[..., pairs[1]] = a * np.sin(angle) + b * np.cos(angle)
        return found

    heads = key(f"{architecture}.attention.head_count")
    groups = key(f"{architecture}.attention.head_count_kv")
    x = tensors["token_embd.weight"][IDS[0].numpy()].astype(np.float64)
    for block in range(blocks):

        def linear(x: Any, name: str, block: int = block) -> Any:
            bias = tensors.get(f"blk.{block}.{name}.bias", 0)
            return x @ tensors[f"blk.{block}.{name}.weight"].T + bias

        y = norm(x, tensors[f"blk.{block}.attn_norm.weight"])
        q = rotate(linear(y, "attn_q").reshape(len(x), heads, -1))
        k = rotate(linear(y, "attn_k").reshape(len(x), groups, -1))
        v = linear(y, "attn_v").reshape(len(x), groups, -1)
        k, v = (np.repeat(one, heads // groups, axis=1) for one in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + linear(np.einsum("hij,jhd->ihd", shares, v).reshape(len(x), -1), "attn_output")
        y = norm(x, tensors[f"blk.{block}.ffn_norm.weight"])
        gate = linear(y, "ffn_gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, "ffn_up"), "ffn_down")
    return np.asarray(x)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_activations_are_those_of_an_independent_reading_of_the_file(
    architecture: str, model: Made, tmp_path: Path
) -> None:
    write_random(tmp_path / "m.gguf", architecture, model[0])
    fetch(source(tmp_path / "m.gguf"), 2, tmp_path / "full", tmp_path / "state")
    prepare(tmp_path / "full", Model(source="s"), 2, tmp_path / "cut")
    checkpoint = load(tmp_path / "cut")
    found = Probe(checkpoint.decoder, Site("block", 2))(checkpoint.embedding[IDS])[0]
    expected = torch.from_numpy(read_independently(tmp_path / "m.gguf", 2))
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


# --- refused --------------------------------------------------------------------------------

KEYS: dict[str, Callable[[Any], None]] = {
    "llama.rope.scaling.type = linear": lambda w: w.add_rope_scaling_type(RopeScalingType.LINEAR),
    "llama.rope.scaling.factor = 4.0": lambda w: w.add_rope_scaling_factor(4.0),
    "llama.attention.causal = False": lambda w: w.add_causal_attention(False),
    "llama.attention.sliding_window = 8": lambda w: w.add_sliding_window(8),
    "llama.attention.key_length = 32": lambda w: w.add_key_length(32),
    "llama.expert_count = 8": lambda w: w.add_expert_count(8),
    "llama.residual_scale = 0.5": lambda w: w.add_residual_scale(0.5),
    "llama.attention.scale = 0.5": lambda w: w.add_attention_scale(0.5),
    "llama.a_key_of_tomorrow = 1": lambda w: w.add_uint32("llama.a_key_of_tomorrow", 1),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_passed_over_is_refused_by_name(
    key: str, model: Made, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", *model, more=KEYS[key])
    assert f"m.gguf: says {key}, which is not read" in refused(
        source(tmp_path / "m.gguf"), tmp_path
    )


def test_keys_that_say_what_is_so_anyway_are_no_hindrance(model: Made, tmp_path: Path) -> None:
    def more(writer: Any) -> None:
        writer.add_rope_scaling_type(RopeScalingType.NONE)
        writer.add_rope_freq_base(10000.0)
        writer.add_causal_attention(True)
        writer.add_key_length(16)
        writer.add_value_length(16)
        writer.add_expert_count(0)
        writer.add_sliding_window(32)
        writer.add_logit_scale(0.1)
        writer.add_uint32("split.count", 1)

    write_gguf(tmp_path / "m.gguf", *model, more=more)
    fetch(source(tmp_path / "m.gguf"), 1, tmp_path / "out", tmp_path / "state")


def test_a_scale_of_attention_that_files_do_not_state_is_not_guessed(tmp_path: Path) -> None:
    """llama.cpp knows it by the size of the model; transformers takes that of Gemma 2 2B and 9B."""
    writer = GGUFWriter(tmp_path / "m.gguf", "gemma2")
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    config = Gemma2Config(
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=HEAD, rms_norm_eps=1e-6
    )
    with pytest.raises(FetchError, match=r"query_pre_attn_scalar is 256 .* heads are of width 16"):
        check_gguf(tmp_path / "m.gguf", config, "m")


@pytest.mark.parametrize(
    "tensor",
    ["blk.1.attn_q.bias", "blk.4.ffn_down.bias", "blk.5.attn_norm.weight", "position_embd.weight"],
)
def test_a_tensor_that_has_no_place_is_refused_by_name(
    tensor: str, model: Made, tmp_path: Path
) -> None:
    write_gguf(
        tmp_path / "m.gguf",
        *model,
        more=lambda writer: writer.add_tensor(tensor, np.ones(64, np.float32)),
    )
    assert f"m.gguf: holds {tensor}, for which" in refused(source(tmp_path / "m.gguf"), tmp_path)


def test_the_output_head_has_no_place_and_needs_none(model: Made, tmp_path: Path) -> None:
    def more(writer: Any) -> None:
        writer.add_tensor("output.weight", np.ones((V, WIDTH), np.float32))
        writer.add_tensor("output.bias", np.ones(V, np.float32))

    write_gguf(tmp_path / "m.gguf", *model, more=more)
    fetch(source(tmp_path / "m.gguf"), 1, tmp_path / "out", tmp_path / "state")


def test_a_part_of_a_split_file_is_called_that(model: Made, tmp_path: Path) -> None:
    def more(writer: Any) -> None:
        writer.add_uint16("split.no", 1)
        writer.add_uint16("split.count", 3)

    write_gguf(tmp_path / "m.gguf", *model, more=more)
    assert "is file 2 of 3 of a split model" in refused(source(tmp_path / "m.gguf"), tmp_path)
