"""A checkpoint computes what its whole model does; families of which that is not true are named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tokinfo.io.atomic import SUMS
from tokinfo.io.errors import FetchError, TokinfoError
from tokinfo.models import agreement
from tokinfo.models.agreement import check_cut
from tokinfo.models.build import random_model
from tokinfo.models.checkpoint import load, read_config, save_model
from tokinfo.models.fetch.fetch import fetch
from tokinfo.models.preparing import prepare
from tokinfo.models.structure import find_blocks
from tokinfo.probe.probe import Probe
from tokinfo.study.sites import Site
from tokinfo.study.sources import LocalSource, Model

V, DEPTH = 96, 4
IDS = torch.randint(V, (2, 9), generator=torch.Generator().manual_seed(0))
SHARED = {
    **{"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": DEPTH},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"initializer_range": 0.2, "pad_token_id": 0},
}
DIMENSIONS = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    # The residual is scaled by the depth of the model.
    "minicpm3": {
        **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16},
        **dict.fromkeys(DIMENSIONS, 8),
    },
    # Each block looks up the tokens themselves, and hands on four vectors for each.
    "gemma3n_text": {
        **{"intermediate_size": [48] * DEPTH, "num_kv_shared_layers": 2, "head_dim": 8},
        **{"vocab_size_per_layer_input": V, "hidden_size_per_layer_input": 8},
        **{"laurel_rank": 4, "activation_sparsity_pattern": None},
    },
    "gemma4_text": {
        **{"vocab_size_per_layer_input": V, "hidden_size_per_layer_input": 8},
        **{"num_kv_shared_layers": 0, "head_dim": 8, "global_head_dim": 8},
    },
    "ctrl": {"dff": 48},
    # It states a limit of -1 positions, which is none.
    "xlnet": {"d_inner": 48, "d_head": 8, "max_position_embeddings": None},
    # It has a causal model and no decoder of its own.
    "trocr": {"decoder_ffn_dim": 48},
}


def save(family: str, directory: Path, **more: Any) -> nn.Module:
    """Save a tiny model of a family with a tokenizer, and return it."""
    torch.manual_seed(0)
    settings = {**SHARED, **FAMILIES[family], **more}
    given = {name: value for name, value in settings.items() if value is not None}
    config = CONFIG_MAPPING[family](**given)
    model: Any = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for norm, values in model.named_parameters():
        if values.ndim == 1:
            nn.init.normal_(values, 1.0 if "norm" in norm else 0.0, 0.2)
    save_model(model, directory)
    words = tokenizers.models.WordLevel({f"w{n}": n for n in range(V)}, unk_token="w0")
    tokenizers.Tokenizer(words).save(str(directory / "tokenizer.json"))
    found: nn.Module = model
    return found


def state_behind(model: nn.Module, block: int) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, output_hidden_states=True).hidden_states[block]
    return found


@pytest.mark.parametrize("state", ["trained", "untrained"])
def test_depth_in_the_arithmetic_is_that_of_the_whole_model(state: Any, tmp_path: Path) -> None:
    whole = save("minicpm3", tmp_path / "full")
    if state == "untrained":
        whole = random_model(read_config(tmp_path / "full"), 3).eval()
    prepare(tmp_path / "full", Model(source="s", state=state, seed=3), 1, tmp_path / "cut")
    checkpoint = load(tmp_path / "cut")
    assert len(find_blocks(checkpoint.decoder)) == checkpoint.facts.blocks_kept == 1
    assert checkpoint.facts.depth == DEPTH
    with torch.no_grad():
        found = Probe(checkpoint.decoder, Site("block", 1))(checkpoint.embedding[IDS])
        torch.testing.assert_close(found, state_behind(whole, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantization", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gemma3n_text", "not one vector for each"),
        ("gemma4_text", "not run on embeddings"),
        ("ctrl", "writes into the embeddings"),
        ("xlnet", "(not one vector for each|does not run on embeddings)"),
        ("trocr", "no decoder can be built"),
    ],
)
def test_a_family_that_cannot_be_probed_on_embeddings_is_refused(
    family: str, reason: str, quantization: Any, tmp_path: Path
) -> None:
    save(family, tmp_path / "full")
    model = Model(source="s", quantization=quantization)
    with pytest.raises(TokinfoError, match=f"{family}.* {reason}") as caught:
        prepare(tmp_path / "full", model, 1, tmp_path / "cut")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cut").exists()


def test_a_checkpoint_that_computes_something_else_is_found(tmp_path: Path) -> None:
    save("minicpm3", tmp_path / "full")
    prepare(tmp_path / "full", Model(source="s"), 1, tmp_path / "cut")
    check_cut(tmp_path / "cut", tmp_path / "full", 1, "cut")
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    (tmp_path / "cut" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    (tmp_path / "cut" / SUMS).unlink()  # what differs is not what was written
    with pytest.raises(ValueError, match=r"cut: behind block 1, a minicpm3 .*differs"):
        check_cut(tmp_path / "cut", tmp_path / "full", 1, "cut")


def test_an_id_that_no_row_is_for_is_refused_by_name(tmp_path: Path) -> None:
    """Ids need not be consecutive: there are fewer tokens than rows here."""
    save("llama", tmp_path / "full")
    words = tokenizers.models.WordLevel({"a": 0, "b": 1, "far": V + 20}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(tmp_path / "full" / "tokenizer.json"))
    expected = rf"{{}}: the tokenizer's 'far' has the id {V + 20}, the embedding {V} rows"
    with pytest.raises(ValueError, match=expected.format("cut")):
        prepare(tmp_path / "full", Model(source="s"), 1, tmp_path / "cut")
    source = LocalSource(path=str(tmp_path / "full"), blocks=DEPTH, n_ctx=8)
    with pytest.raises(ValueError, match=expected.format("model .*full")):
        fetch(source, 1, tmp_path / "out", tmp_path / "state")


def test_a_field_that_the_family_does_not_allow_is_one_line_with_its_name(tmp_path: Path) -> None:
    save("llama", tmp_path / "full")
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    (tmp_path / "full" / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    with pytest.raises(
        FetchError, match=r"config\.json: cannot be used: .*hidden_size.*wide"
    ) as caught:
        prepare(tmp_path / "full", Model(source="s"), 1, tmp_path / "cut")
    assert "\n" not in str(caught.value)


def test_the_log_says_that_a_large_checkpoint_was_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save("llama", tmp_path / "full")
    monkeypatch.setattr(agreement, "COMPARED_MB", 0)
    with caplog.at_level(logging.INFO):
        prepare(tmp_path / "full", Model(source="s"), 1, tmp_path / "cut")
    assert "cut: 0.0 GB, not compared with the whole model" in caplog.text
