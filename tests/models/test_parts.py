"""Which tensors a part holds: found for families of every naming habit, and nothing more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tokinfo.io.errors import FetchError
from tokinfo.models.checkpoint import quiet, read_config, read_decoder, shorter
from tokinfo.models.fetch.local import LocalOrigin
from tokinfo.models.fetch.partial import write_blocks
from tokinfo.models.parts import EMBEDDING, block_file, sort_tensors

DEPTH = 3
WIDTHS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}
GATED = {**WIDTHS, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GATED),
    "mistral": ("mistral", GATED),
    "qwen2, tied": ("qwen2", {**GATED, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", {**GATED, "head_dim": 8}),
    "gpt2": ("gpt2", {"vocab_size": 64, "n_embd": 32, "n_layer": DEPTH, "n_head": 4}),
    "gpt_neox": ("gpt_neox", {**WIDTHS, "intermediate_size": 48}),
    "opt, narrow embedding": ("opt", {**WIDTHS, "ffn_dim": 48, "word_embed_proj_dim": 16}),
    "bloom": ("bloom", {"vocab_size": 64, "hidden_size": 32, "n_layer": DEPTH, "n_head": 4}),
    "phi": ("phi", {**WIDTHS, "intermediate_size": 48}),
    "mixtral": ("mixtral", {**GATED, "num_local_experts": 2}),
    "falcon": ("falcon", WIDTHS),
}


def save(family: str, directory: Path, **changes: Any) -> dict[str, Tensor]:
    """Save a tiny causal model; returns its decoder's weights."""
    kind, values = FAMILIES[family]
    config = CONFIG_MAPPING[kind](**values, **changes)
    torch.manual_seed(0)
    with quiet():
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # norms too: ones would look like any others
            torch.nn.init.normal_(parameter)
        model.save_pretrained(directory)
    state: dict[str, Tensor] = model.base_model.state_dict()
    return state


def rename(directory: Path, change: Any) -> None:
    file = directory / "model.safetensors"
    kept = {new: value for old, value in load_file(file).items() if (new := change(old))}
    save_file(kept, file, metadata={"format": "pt"})


def assert_cut(directory: Path, out: Path, state: dict[str, Tensor], blocks: int) -> None:
    """Assert that a cut decoder has exactly the full one's weights."""
    config = read_config(directory)
    out.mkdir()
    write_blocks(LocalOrigin(directory), config, blocks, out)
    shorter(config, blocks).save_pretrained(out)
    found = read_decoder(out, read_config(out)).state_dict()
    assert len(found) == sum(1 for name in state if _block(name) < blocks)
    assert all(torch.equal(found[name], state[name]) for name in found)


def _block(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embedding_and_first_blocks_of_a_family_are_a_model(
    family: str, tmp_path: Path
) -> None:
    state = save(family, tmp_path / "model")
    for blocks in (0, 1, 2):
        assert_cut(tmp_path / "model", tmp_path / str(blocks), state, blocks)
    held = {path.name for path in (tmp_path / "2").glob("*.safetensors")}
    assert held == {EMBEDDING, block_file(1), block_file(2)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt, narrow embedding"])
def test_nothing_that_the_decoder_does_not_have_is_taken(family: str, tmp_path: Path) -> None:
    state = save(family, tmp_path / "model", tie_word_embeddings=False)
    assert_cut(tmp_path / "model", tmp_path / "out", state, 1)
    held = [name for path in (tmp_path / "out").glob("*.safetensors") for name in load_file(path)]
    assert len(held) == sum(1 for name in state if _block(name) < 1)
    assert not [name for name in held if "lm_head" in name]


def test_names_without_the_models_prefix_are_found(tmp_path: Path) -> None:
    state = save("gpt2", tmp_path / "model")
    rename(tmp_path / "model", lambda name: name.removeprefix("transformer."))
    assert_cut(tmp_path / "model", tmp_path / "out", state, 1)


def test_masks_that_old_files_keep_in_every_block_are_left_there(tmp_path: Path) -> None:
    state = save("gpt2", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    old = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 64, 64) for n in range(DEPTH)}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    assert_cut(tmp_path / "model", tmp_path / "out", state, 1)
    held = load_file(tmp_path / "out" / block_file(1))
    assert "transformer.h.0.attn.bias" not in held


def test_an_embedding_stored_only_as_the_tied_head_is_found(tmp_path: Path) -> None:
    state = save("qwen2, tied", tmp_path / "model")
    change = {"model.embed_tokens.weight": "lm_head.weight"}
    rename(tmp_path / "model", lambda name: change.get(name, name))
    assert_cut(tmp_path / "model", tmp_path / "out", state, 1)
    assert "model.embed_tokens.weight" in load_file(tmp_path / "out" / EMBEDDING)


def test_of_two_numbered_lists_the_blocks_are_the_one_as_deep_as_the_model() -> None:
    config = CONFIG_MAPPING["llama"](**GATED)
    names = [f"model.layers.{n}.experts.{e}.w" for n in range(DEPTH) for e in range(9)]
    names += [f"vision.layers.{n}.w" for n in range(7)] + ["model.embed_tokens.weight"]
    parts = sort_tensors(config, names, "it")
    assert [len(block) for block in parts.blocks] == [9] * DEPTH
    with pytest.raises(FetchError, match="it: no list of 3 blocks among the names"):
        sort_tensors(config, names[:-18], "it")
