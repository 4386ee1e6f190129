"""Small models in the forms that repositories have them, for the tests of fetching."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hub_server import Fault, Hub
from tokinfo.io.atomic import SUMS
from tokinfo.io.errors import FetchError
from tokinfo.models.build import new_model
from tokinfo.models.checkpoint import quiet, read_config, read_decoder
from tokinfo.models.fetch.fetch import fetch
from tokinfo.study.sources import GgufSource, HubSource, LocalSource, TransformerSource
from tokinfo.text.tokenizer import train_tokenizer

BLOCKS = 5
TEXT = "some words of a text, and then others of it "
ID = "some/model"
SOURCE = HubSource(repository=ID, blocks=BLOCKS, n_ctx=32)
TOKEN = "hf_a_secret_of_mine"

Made = tuple[Path, dict[str, Tensor]]


def write_model(directory: Path, shard_size: str = "300KB") -> dict[str, Tensor]:
    """Write a Llama of five blocks in several shards; returns its decoder's weights."""
    directory.mkdir(parents=True)
    text = directory.parent / "text.txt"
    text.write_text(TEXT * 99)
    train_tokenizer(text, 270, directory)
    (directory / SUMS).unlink()  # as models from elsewhere are
    source = TransformerSource(d_model=64, blocks=BLOCKS, heads=4, n_ctx=32, tokenizer="t")
    model = new_model(source, 270, 0)
    with quiet():
        model.save_pretrained(directory, max_shard_size=shard_size)
    state: dict[str, Tensor] = model.base_model.state_dict()
    return state


def pickle_weights(directory: Path) -> None:
    """Put the weights of a directory into two files by `torch.save`, with an index."""
    from safetensors.torch import load_file

    shards = sorted(directory.glob("*.safetensors"))
    tensors = {name: value for shard in shards for name, value in load_file(shard).items()}
    names = sorted(tensors)
    halves = {
        "pytorch_model-00001-of-00002.bin": names[: len(names) // 2],
        "pytorch_model-00002-of-00002.bin": names[len(names) // 2 :],
    }
    for file, held in halves.items():
        torch.save({name: tensors[name] for name in held}, directory / file)
    weight_map = {name: file for file, held in halves.items() for name in held}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for path in (*shards, directory / "model.safetensors.index.json"):
        path.unlink(missing_ok=True)


def assert_holds(directory: Path, blocks: int, state: dict[str, Tensor]) -> None:
    """Assert that a directory is a model of ``blocks`` blocks with exactly these weights."""
    config = read_config(directory)
    assert (config.num_hidden_layers, config.tokinfo_blocks) == (BLOCKS, blocks)
    found = read_decoder(directory, config).state_dict()
    inside = {f"layers.{number}." for number in range(blocks)}
    wanted = [k for k in state if "layers." not in k or any(k.startswith(p) for p in inside)]
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], state[name]) for name in wanted)


def needed_bytes(state: dict[str, Tensor], blocks: int) -> int:
    """Bytes of the tensors of the embedding and the first blocks."""
    inside = tuple(f"layers.{number}." for number in range(blocks))
    chosen = [v for k, v in state.items() if "layers." not in k or k.startswith(inside)]
    return sum(value.numel() * value.element_size() for value in chosen)


def rewrite_header(path: Path, change: Any) -> None:
    """Replace the header of a safetensors file by what ``change`` makes of it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header), separators=(",", ":")).encode().ljust(length)
    path.write_bytes(content[:8] + text[:length] + content[8 + length :])


GGUF_NAMES = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}


def write_gguf(
    path: Path,
    model: Path,
    state: dict[str, Tensor],
    family: str = "llama",
    rotations: Tensor | None = None,
    more: Callable[[Any], None] | None = None,
) -> None:
    """Write a model of `write_model` as a GGUF file of float32 weights.

    ``rotations`` are factors of its rotary frequencies, as Llama 3.1 has them; ``more`` adds keys
    and tensors to the writer.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, family)
    writer.add_name("tiny")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(32)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(270)
    add_tokenizer(writer, model)
    for name, value in state.items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            if rest.startswith(("self_attn.q_proj", "self_attn.k_proj")):
                # Halves of a head's rotations lie side by side there, not behind each other.
                value = value.reshape(4, 2, 8, 64).transpose(1, 2).reshape(64, 64)
            writer.add_tensor(f"blk.{number}.{GGUF_NAMES[rest]}", value.numpy())
        else:
            writer.add_tensor(GGUF_NAMES[name], value.numpy())
    if rotations is not None:
        writer.add_tensor("rope_freqs.weight", rotations.numpy())
    if more is not None:
        more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, model: Path) -> None:
    """Add the tokenizer of a model's directory to a GGUF file."""
    bpe = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].__getitem__))
    writer.add_token_types([1] * len(bpe["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def shard_of(directory: Path, name: str) -> str:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    return str(index["weight_map"][name])


def left_over(directory: Path) -> list[str]:
    return [p.name for p in directory.rglob("*") if "partial" in p.name or "journal" in p.name]


def local(directory: Path, **changes: Any) -> LocalSource:
    return LocalSource(path=str(directory), **{"blocks": BLOCKS, "n_ctx": 32, **changes})


def refused(source: LocalSource | GgufSource, tmp_path: Path, blocks: int | None = 1) -> str:
    """Return the one line that fetching ends with; nothing may be left."""
    out = tmp_path / "out" / "model"
    with pytest.raises((FetchError, ValueError)) as caught:
        fetch(source, blocks, out, tmp_path / "state")
    assert list(out.parent.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def damage(server: Hub, directory: Path, name: str) -> tuple[str, int]:
    """Have a tensor arrive damaged; return its shard, and how many blocks need all of that."""
    shard = shard_of(directory, name)
    place, covered = covering(directory, shard, name)
    # Requested twice before its tensors come: the length of its header, and the header.
    server.faults[shard] = [Fault(), Fault(), *(Fault(flip=place) for _ in range(50))]
    return shard, covered


def covering(directory: Path, shard: str, name: str) -> tuple[int, int]:
    """Return the place of a tensor in its shard, and how many blocks need all of that shard."""
    content = (directory / shard).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    blocks = [int(key.split(".")[2]) for key in header if "layers." in key]
    return 8 + length + header[name]["data_offsets"][0], max(blocks) + 1
