"""Pretrained models on this machine: what is taken of them, and what is refused in one line."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from tests.models.fetch.hub_models import (
    BLOCKS,
    Made,
    assert_holds,
    local,
    pickle_weights,
    refused,
    rewrite_header,
)
from tokinfo.cli.app import app
from tokinfo.io.atomic import files_of
from tokinfo.io.errors import FetchError
from tokinfo.models.checkpoint import load, read_config
from tokinfo.models.fetch.fetch import check_config, fetch
from tokinfo.models.preparing import prepare
from tokinfo.study.sources import Model, WheelSource
from tokinfo.text.tokenizer import load_tokenizer


@pytest.fixture
def copy(model: Made, tmp_path: Path) -> Path:
    """A copy of the model that a test may spoil."""
    return Path(shutil.copytree(model[0], tmp_path / "copy"))


def test_a_part_of_a_local_model_is_a_model_without_other_files(
    model: Made, copy: Path, tmp_path: Path
) -> None:
    (copy / "modeling_evil.py").write_text("raise SystemExit")
    fetch(local(copy), 2, tmp_path / "out", tmp_path)
    assert_holds(tmp_path / "out", 2, model[1])
    assert files_of(tmp_path / "out").keys() == {
        "block-0001.safetensors",
        "block-0002.safetensors",
        "config.json",
        "embedding.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize("quantization", ["float32", "bfloat16", "int8"])
def test_a_checkpoint_of_a_part_is_that_of_the_whole_and_knows_the_full_depth(
    model: Made, tmp_path: Path, quantization: str
) -> None:
    probed = Model.model_validate({"source": "x", "quantization": quantization})
    fetch(local(model[0]), 2, tmp_path / "part", tmp_path)
    prepare(tmp_path / "part", probed, 2, tmp_path / "of-part")
    prepare(model[0], probed, 2, tmp_path / "of-whole")
    part, whole = load(tmp_path / "of-part"), load(tmp_path / "of-whole")
    assert part.facts.depth == whole.facts.depth == BLOCKS
    one, other = part.decoder.state_dict(), whole.decoder.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_chat_template_comes_with_the_tokenizer(copy: Path, tmp_path: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    fetch(local(copy), 1, tmp_path / "part", tmp_path)
    prepare(tmp_path / "part", Model(source="x"), 1, tmp_path / "checkpoint")
    template = load(tmp_path / "checkpoint").template
    assert template is not None
    assert template.render([{"role": "user", "content": "x"}]).text == "x<|endoftext|>"


def test_an_untrained_twin_is_made_from_the_configuration_alone(
    model: Made, tmp_path: Path
) -> None:
    probed = Model(source="x", state="untrained", seed=3)
    fetch(local(model[0]), None, tmp_path / "config", tmp_path)
    for origin, out in ((tmp_path / "config", "one"), (model[0], "other")):
        prepare(origin, probed, 2, tmp_path / out)
    one, other = load(tmp_path / "one"), load(tmp_path / "other")
    assert one.facts.depth == BLOCKS
    assert torch.equal(one.embedding, other.embedding)
    assert not torch.equal(one.embedding, model[1]["embed_tokens.weight"])


def test_the_configuration_stays_that_of_the_whole_model(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    kinds = ["full_attention", "sliding_attention"] * 2 + ["full_attention"]
    config |= {"model_type": "qwen2", "layer_types": kinds, "use_sliding_window": True}
    (copy / "config.json").write_text(json.dumps(config))
    fetch(local(copy), None, tmp_path / "whole", tmp_path)
    assert read_config(tmp_path / "whole").layer_types == kinds
    fetch(local(copy), 2, tmp_path / "out", tmp_path)
    assert read_config(tmp_path / "out").layer_types == kinds


def test_pickled_weights_are_read_as_plain_data(model: Made, copy: Path, tmp_path: Path) -> None:
    pickle_weights(copy)
    fetch(local(copy), 1, tmp_path / "out", tmp_path)
    assert_holds(tmp_path / "out", 1, model[1])


def test_shards_without_an_index_are_found(model: Made, copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors.index.json").unlink()
    fetch(local(copy), 1, tmp_path / "out", tmp_path)
    assert_holds(tmp_path / "out", 1, model[1])


def test_a_single_file_stands_before_an_older_index_as_in_transformers(
    model: Made, copy: Path, tmp_path: Path
) -> None:
    shards = sorted(copy.glob("*.safetensors"))
    stored = {name: value for file in shards for name, value in load_file(file).items()}
    newer = {name: 2 * value for name, value in stored.items()}
    save_file(newer, copy / "model.safetensors", metadata={"format": "pt"})
    theirs = AutoModel.from_pretrained(copy).state_dict()
    fetch(local(copy), 2, tmp_path / "out", tmp_path)
    assert_holds(tmp_path / "out", 2, theirs)
    # A directory that is prepared as it is, and parity, go another way to the same files.
    prepare(copy, Model(source="s"), 2, tmp_path / "cut")
    assert_holds(tmp_path / "cut", 2, theirs)
    result = CliRunner().invoke(app, ["parity", str(copy)])
    assert result.exit_code == 0, result.output


def test_blocks_stored_behind_the_last_one_are_left_there_as_in_transformers(
    model: Made, copy: Path, tmp_path: Path
) -> None:
    """A block for multi-token prediction lies in the list of blocks, one number further."""
    shards = sorted(copy.glob("*.safetensors"))
    stored = {name: value for file in shards for name, value in load_file(file).items()}
    last = {name: value for name, value in stored.items() if f".layers.{BLOCKS - 1}." in name}
    old, new = f".{BLOCKS - 1}.", f".{BLOCKS}."
    further = {name.replace(old, new): 2 * value for name, value in last.items()}
    further[f"model.layers{new}eh_proj.weight"] = torch.ones(64, 128)
    save_file(stored | further, copy / "model.safetensors", metadata={"format": "pt"})
    fetch(local(copy), BLOCKS, tmp_path / "out", tmp_path)
    assert_holds(tmp_path / "out", BLOCKS, model[1])
    held = [name for file in (tmp_path / "out").glob("*.safetensors") for name in load_file(file)]
    assert not [name for name in held if f".layers{new}" in name]
    prepare(copy, Model(source="s"), BLOCKS, tmp_path / "cut")
    assert_holds(tmp_path / "cut", BLOCKS, model[1])


@pytest.mark.parametrize("space", [False, True])
def test_a_space_in_front_of_a_text_is_put_there_where_autotokenizer_does(
    space: bool, copy: Path, tmp_path: Path
) -> None:
    """Whatever tokenizer.json says of it: here, the opposite."""
    words = load_tokenizer(copy)
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=not space)
    words.save(str(copy / "tokenizer.json"))
    said = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": space}
    (copy / "tokenizer_config.json").write_text(json.dumps(said))
    theirs = AutoTokenizer.from_pretrained(copy)("some words").input_ids
    assert theirs != words.encode("some words").ids
    fetch(local(copy), None, tmp_path / "out", tmp_path)
    assert load_tokenizer(tmp_path / "out").encode("some words").ids == theirs


def test_a_tokenizer_that_its_settings_do_not_change_is_copied(copy: Path, tmp_path: Path) -> None:
    said = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**said, "add_prefix_space": False}))
    fetch(local(copy), None, tmp_path / "out", tmp_path)
    written = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert written == (copy / "tokenizer.json").read_bytes()


def test_what_the_study_states_is_checked(model: Made, tmp_path: Path) -> None:
    line = refused(local(model[0], blocks=3), tmp_path)
    assert line.endswith("has 5 blocks, the study says blocks: 3")
    line = refused(local(model[0], n_ctx=2048), tmp_path)
    assert line.endswith("takes 32 positions, the study says n_ctx: 2048")


def test_a_config_without_a_limit_takes_any_n_ctx() -> None:
    from transformers import PretrainedConfig

    source = WheelSource(requirement="a==1", member="m.gguf", sha256="0" * 64, blocks=1, n_ctx=4096)
    check_config(PretrainedConfig(num_hidden_layers=1, vocab_size=9), source)


def test_directories_that_are_no_models_are_refused(copy: Path, tmp_path: Path) -> None:
    assert refused(local(tmp_path / "nowhere"), tmp_path).endswith("there is no such directory")
    for path in copy.glob("*.safetensors*"):
        path.unlink()
    assert "no weights: neither model.safetensors nor" in refused(local(copy), tmp_path)
    (copy / "config.json").write_text('{"model_type": "no-such-family"}')
    assert "its config.json cannot be used: " in refused(local(copy), tmp_path)
    (copy / "config.json").write_text("{")
    assert "its config.json cannot be used: " in refused(local(copy), tmp_path)
    (copy / "config.json").unlink()
    assert refused(local(copy), tmp_path).endswith("no config.json there")


def test_weights_that_are_stored_quantised_are_refused(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (copy / "config.json").write_text(json.dumps(config))
    assert "its weights are stored quantised (gptq); use" in refused(local(copy), tmp_path)


def test_a_model_with_code_is_refused_without_a_question_at_the_terminal(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    (copy / "config.json").write_text(json.dumps(config))
    trap = f"open({str(tmp_path / 'trap')!r}, 'w')"
    (copy / "configuration_mine.py").write_text(trap)

    def question(*_: object) -> str:
        raise AssertionError("a question at the terminal")

    monkeypatch.setattr("builtins.input", question)
    line = refused(local(copy), tmp_path)
    assert line.endswith("mine models come with code of their own, which is not run "
                         "(trust_remote_code)")  # fmt: skip
    assert not (tmp_path / "trap").exists()


def test_a_missing_shard_is_named(copy: Path, tmp_path: Path) -> None:
    shard = sorted(copy.glob("*.safetensors"))[1]
    shard.unlink()
    line = refused(local(copy), tmp_path)
    assert line.endswith(f"model.safetensors.index.json names {shard.name}, which is missing")


def test_an_index_that_names_a_tensor_no_shard_holds_is_refused(copy: Path, tmp_path: Path) -> None:
    index = copy / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    tensor = "model.layers.0.mlp.up_proj.weight"
    other = next(f for f in named["weight_map"].values() if f != named["weight_map"][tensor])
    named["weight_map"][tensor] = other
    index.write_text(json.dumps(named))
    assert f"says that {other} holds {tensor}; it does not" in refused(local(copy), tmp_path)
    index.write_text("[]")
    assert "is not an index of weights" in refused(local(copy), tmp_path)


def test_an_index_without_a_tensor_that_the_model_has_is_refused(
    copy: Path, tmp_path: Path
) -> None:
    index = copy / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    for name in list(named["weight_map"]):
        if "layers.3." in name:
            del named["weight_map"][name]
    index.write_text(json.dumps(named))
    assert "no list of 5 blocks among the names" in refused(local(copy), tmp_path)


def _longer(header: dict[str, Any]) -> dict[str, Any]:
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"][1] += 1
    return header


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:5]), id="cut short"),
        pytest.param(lambda path: path.write_bytes(b"\xff" * 64), id="impossible length"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:8] + b"x" * 4000), id="no JSON"
        ),
        pytest.param(lambda path: rewrite_header(path, _longer), id="wrong places"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-9]), id="cut at the end"),
    ],
)
def test_a_damaged_header_is_noticed_and_its_file_named(
    copy: Path, tmp_path: Path, damage: Any
) -> None:
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    shard = copy / index["weight_map"]["model.embed_tokens.weight"]
    damage(shard)
    line = refused(local(copy), tmp_path)
    assert re.search(rf"{shard.name}: (damaged safetensors header|not a safetensors file)", line)


def test_a_missing_tokenizer_is_named(copy: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    line = refused(local(copy), tmp_path, None)
    assert line.endswith("no way to make one: neither tokenizer.model nor vocab.json is there")
    (copy / "vocab.json").write_text("{")
    assert "no tokenizer.json and no way to make one: " in refused(local(copy), tmp_path, None)


def test_a_vocabulary_larger_than_the_embedding_is_refused(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 269}))
    line = refused(local(copy), tmp_path, None)
    assert line.endswith("the tokenizer has 270 tokens, the embedding 269 rows")


def test_a_full_disk_is_one_line_and_leaves_nothing(
    model: Made, small_disk: Path, tmp_path: Path
) -> None:
    with pytest.raises(FetchError, match=r"the disk is full; this file takes 0.3 MB"):
        fetch(local(model[0]), 5, small_disk / "out", tmp_path)
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_while_writing_is_one_line_and_leaves_nothing(
    model: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        if at > 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    assert "the disk is full" in refused(local(model[0]), tmp_path)
