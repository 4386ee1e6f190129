"""Fetching from a hub: only what is needed, resumed, verified, and refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import REPOSITORY
from tests.hub_server import COMMIT, Fault, Hub, hub
from tests.models.fetch.hub_models import (
    BLOCKS,
    assert_holds,
    needed_bytes,
    pickle_weights,
    write_model,
)
from tokinfo.io.errors import FetchError
from tokinfo.models.checkpoint import read_config
from tokinfo.models.fetch import partial, ranges
from tokinfo.models.fetch.fetch import fetch
from tokinfo.models.fetch.partial import held_tensors
from tokinfo.study.sources import HubSource

ID = "some/model"
SOURCE = HubSource(repository=ID, blocks=BLOCKS, n_ctx=32)
TOKEN = "hf_a_secret_of_mine"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    directory = tmp_path_factory.mktemp("hub") / "model"
    return directory, write_model(directory)


@pytest.fixture
def server(
    model: tuple[Path, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(ranges, "WAIT", 0.01)
    with hub() as running:
        running.repositories[ID] = model[0]
        url = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        yield running


@pytest.fixture
def copy(
    model: tuple[Path, dict[str, Tensor]], server: Hub, tmp_path: Path
) -> tuple[Path, dict[str, Tensor]]:
    """A copy of the model that a test may spoil, in the model's place on the hub."""
    directory = tmp_path / "copy"
    directory.mkdir()
    for path in model[0].iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    server.repositories[ID] = directory
    return directory, model[1]


def shard_of(directory: Path, name: str) -> str:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    return str(index["weight_map"][name])


def left_over(directory: Path) -> list[str]:
    return [p.name for p in directory.rglob("*") if "partial" in p.name or "journal" in p.name]


# --- what is fetched ----------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_only_the_embedding_and_the_blocks_asked_for_cross_the_wire(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path, blocks: int
) -> None:
    fetch(SOURCE, blocks, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", blocks, model[1])
    assert server.weights_sent() <= 1.05 * needed_bytes(model[1], blocks)


def test_a_part_that_was_cut_afterwards_is_fetched_again(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    fetch(SOURCE, 2, tmp_path / "out", tmp_path / "state")
    part = tmp_path / "out" / "block-0002.safetensors"
    with part.open("r+b") as file:  # the same file as the one that is kept for other depths
        file.truncate(part.stat().st_size - 100)
    shutil.rmtree(tmp_path / "out")
    server.forget()
    fetch(SOURCE, 2, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 2, model[1])
    second = needed_bytes(model[1], 2) - needed_bytes(model[1], 1)
    assert second <= server.weights_sent() <= 1.05 * second


def test_configuration_and_tokenizer_come_without_any_weights(server: Hub, tmp_path: Path) -> None:
    fetch(SOURCE, None, tmp_path / "out", tmp_path / "state")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert server.weights_sent() == 0
    assert read_config(tmp_path / "out").num_hidden_layers == BLOCKS


def test_more_blocks_fetch_only_those_that_are_missing(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    fetch(SOURCE, 2, tmp_path / "two", tmp_path / "state")
    server.forget()
    fetch(SOURCE, 3, tmp_path / "three", tmp_path / "state")
    assert_holds(tmp_path / "three", 3, model[1])
    third = needed_bytes(model[1], 3) - needed_bytes(model[1], 2)
    assert third <= server.weights_sent() <= 1.05 * third
    server.forget()
    fetch(SOURCE, 1, tmp_path / "one", tmp_path / "state")
    assert_holds(tmp_path / "one", 1, model[1])
    assert server.requests == []


def test_jobs_for_several_depths_at_once_fetch_what_they_share_once(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    def job(blocks: int) -> None:
        fetch(SOURCE, blocks, tmp_path / str(blocks), tmp_path / "state")

    with ThreadPoolExecutor() as pool:
        list(pool.map(job, (1, 2, 3)))
    for blocks in (1, 2, 3):
        assert_holds(tmp_path / str(blocks), blocks, model[1])
    asked = [path for _, path, _, _ in server.requests]
    assert len([path for path in asked if "/revision/" in path]) == 1
    assert server.weights_sent() <= 1.05 * needed_bytes(model[1], 3)


def test_a_file_that_jobs_hold_at_once_is_read_for_its_hash_by_one_of_them(
    server: Hub,
    model: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest, read, another = partial._digest, [], Event()

    def wait_for_another(origin: partial.Origin, cache: Path, file: str, *rest: Any) -> str:
        if file in read:
            another.set()
        read.append(file)
        another.wait(0.1)
        return digest(origin, cache, file, *rest)

    monkeypatch.setattr(partial, "_digest", wait_for_another)
    with ThreadPoolExecutor() as pool:
        outs = [tmp_path / name for name in ("one", "other")]
        list(pool.map(lambda out: fetch(SOURCE, 3, out, tmp_path / "state"), outs))
    for out in outs:
        assert_holds(out, 3, model[1])
    assert read
    assert len(read) == len(set(read))


def test_what_one_job_finds_damaged_no_other_takes(
    server: Hub,
    model: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard, covered = _damage(server, model[0], "model.layers.1.mlp.up_proj.weight")
    verify, both = partial._verify, Barrier(2)

    def verify_at_once(*arguments: Any) -> None:
        both.wait(30)
        verify(*arguments)

    monkeypatch.setattr(partial, "_verify", verify_at_once)

    def refused(name: str) -> str:
        with pytest.raises(FetchError) as error:
            fetch(SOURCE, covered, tmp_path / name, tmp_path / "state")
        return str(error.value)

    with ThreadPoolExecutor() as pool:
        told = sorted(pool.map(refused, ("one", "other")))
    assert f"{shard} arrived damaged (hash " in told[0]
    assert f"{shard} arrived damaged, as another job found; run again" in told[1]
    assert not (tmp_path / "one").exists()
    assert not (tmp_path / "other").exists()
    assert left_over(tmp_path) == []


def test_what_another_job_takes_away_before_it_is_linked_is_one_line(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_away(_: partial.Origin, cache: Path, *__: Any) -> None:
        (cache / "block-0001.safetensors").unlink()

    monkeypatch.setattr(partial, "_verify", take_away)
    with pytest.raises(FetchError, match="arrived damaged, as another job found; run again"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert not (tmp_path / "out").exists()


def test_a_smaller_depth_that_holds_a_damaged_part_cannot_be_read(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Of its own few bytes of the file nothing could be said; the larger depth finds out."""
    weights = json.loads((model[0] / "model.safetensors.index.json").read_text())["weight_map"]
    for name, shard in weights.items():
        if "layers." not in name:
            continue
        depth = int(name.split(".")[2]) + 1
        if _covering(model[0], shard, name)[1] > depth:
            break
    else:
        pytest.fail("no shard with tensors of two blocks")
    shard, covered = _damage(server, model[0], name)
    fetch(SOURCE, depth, tmp_path / "one", tmp_path / "state")
    server.faults.clear()
    part = next(p for p in (tmp_path / "one").glob("*.safetensors") if name in _names(p))
    with pytest.raises(FetchError, match=rf"{shard} arrived damaged"):
        fetch(SOURCE, covered, tmp_path / "out", tmp_path / "state")
    assert held_tensors(part) is None
    fetch(SOURCE, covered, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", covered, model[1])


def test_a_part_that_comes_again_is_held_to_the_hash_again(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    shard = shard_of(model[0], name)
    place, covered = _covering(model[0], shard, name)
    fetch(SOURCE, covered, tmp_path / "out", tmp_path / "state")
    part = next(p for p in (tmp_path / "out").glob("*.safetensors") if name in _names(p))
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size - 100)
    server.faults[shard] = [Fault(flip=place) for _ in range(50)]
    with pytest.raises(FetchError, match=rf"{shard} arrived damaged"):
        fetch(SOURCE, covered, tmp_path / "again", tmp_path / "state")
    server.faults.clear()
    fetch(SOURCE, covered, tmp_path / "again", tmp_path / "state")
    assert_holds(tmp_path / "again", covered, model[1])


def _names(part: Path) -> set[str]:
    return held_tensors(part) or set()


def test_parts_of_several_depths_are_one_file_on_the_disk(server: Hub, tmp_path: Path) -> None:
    for blocks in (1, 2):
        fetch(SOURCE, blocks, tmp_path / str(blocks), tmp_path / "state")
    one, two = (tmp_path / depth / "block-0001.safetensors" for depth in "12")
    assert one.stat().st_ino == two.stat().st_ino


def test_parts_are_copied_where_links_cannot_be(
    server: Hub,
    model: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])


def test_the_commit_is_pinned_and_stays_when_the_branch_moves(server: Hub, tmp_path: Path) -> None:
    fetch(SOURCE, None, tmp_path / "a", tmp_path / "state")
    assert read_config(tmp_path / "a").tokinfo_commit == COMMIT
    server.commits[ID] = "f" * 40
    fetch(SOURCE, None, tmp_path / "b", tmp_path / "state")
    assert read_config(tmp_path / "b").tokinfo_commit == COMMIT
    fetch(SOURCE, None, tmp_path / "c", tmp_path / "other")
    assert read_config(tmp_path / "c").tokinfo_commit == "f" * 40


def test_a_pinned_commit_that_cannot_be_read_is_named_and_does_not_move(
    server: Hub, tmp_path: Path
) -> None:
    fetch(SOURCE, None, tmp_path / "a", tmp_path / "state")
    (pin,) = (tmp_path / "state").rglob("revisions/*.json")
    pin.write_text(pin.read_text()[:50])
    with pytest.raises(ValueError, match=rf"{pin}: damaged or cut short .* `rm {pin}`"):
        fetch(SOURCE, None, tmp_path / "b", tmp_path / "state")


def test_one_unsharded_file_is_read_in_parts_too(server: Hub, tmp_path: Path) -> None:
    state = write_model(tmp_path / "whole", shard_size="1GB")
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    server.repositories[ID] = tmp_path / "whole"
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, state)
    assert server.weights_sent() <= 1.05 * needed_bytes(state, 1)
    server.forget()
    fetch(SOURCE, 0, tmp_path / "none", tmp_path / "state")
    assert server.requests == []


def test_a_server_without_ranges_sends_whole_shards_and_each_once(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    server.ranges = False
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])
    weights = {name: size for name, size in server.sent.items() if name.endswith("safetensors")}
    sizes = {path.name: path.stat().st_size for path in model[0].glob("*.safetensors")}
    probed = min(sizes, key=sizes.__getitem__)
    assert all(size <= sizes[name] * (2 if name == probed else 1) for name, size in weights.items())
    assert shard_of(model[0], "model.layers.2.mlp.up_proj.weight") not in weights


def test_pickled_weights_come_whole_and_with_a_warning(
    server: Hub,
    copy: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pickle_weights(copy[0])
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, copy[1])
    assert "no safetensors; reading whole files: pytorch_model-00001" in caplog.text


def test_pickled_code_is_refused_and_does_not_run(
    server: Hub, copy: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    import torch

    pickle_weights(copy[0])
    trap = tmp_path / "trap"
    bad = copy[0] / "pytorch_model-00001-of-00002.bin"
    torch.save({"x": _Trap(str(trap))}, bad)
    with pytest.raises(FetchError, match=r"00001-of-00002.bin is not a plain file of weights"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (self.path, 0o700)


# --- what goes wrong ----------------------------------------------------------------------


def test_after_a_cut_only_the_rest_is_fetched(
    server: Hub,
    model: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranges, "STEP", 1 << 14)
    shard = shard_of(model[0], "model.layers.0.mlp.up_proj.weight")
    # The two reads of the header pass, then no stream brings more than 50,000 bytes, then none.
    dead = [Fault(cut=0)] * ranges.ATTEMPTS * 3
    server.faults[shard] = [Fault(), Fault(), Fault(cut=50_000), *dead]
    with pytest.raises(FetchError, match="the connection broke off"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert not (tmp_path / "out").exists()
    first = server.weights_sent()
    assert first >= 50_000
    server.faults.clear()
    server.forget()
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])
    assert first + server.weights_sent() <= 1.05 * needed_bytes(model[1], 1)
    assert left_over(tmp_path) == []


def test_a_cut_is_taken_up_within_one_attempt(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    shard = shard_of(model[0], "model.layers.0.mlp.up_proj.weight")
    server.faults[shard] = [Fault(), Fault(), Fault(cut=50_000), Fault(cut=10)]
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])
    assert server.weights_sent() <= 1.05 * needed_bytes(model[1], 1)


def test_bytes_that_changed_on_the_disk_after_a_cut_are_noticed(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    shard = shard_of(model[0], "model.layers.0.mlp.up_proj.weight")
    dead = [Fault(cut=0)] * ranges.ATTEMPTS * 3
    server.faults[shard] = [Fault(), Fault(), Fault(cut=50_000), *dead]
    with pytest.raises(FetchError, match="broke off"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    server.faults.clear()
    (begun,) = (p for p in (tmp_path / "state").rglob(".*.partial") if p.stat().st_size > 50_000)
    content = bytearray(begun.read_bytes())
    place = next(place for place in range(len(content) // 2, 0, -1) if content[place])
    content[place] ^= 1
    begun.write_bytes(content)
    with pytest.raises(FetchError, match="the disk did not keep what arrived; run again"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])


@pytest.mark.parametrize("file", ["tokenizer.json", "SHARD"])
def test_a_wrong_byte_in_a_whole_file_never_becomes_a_model(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path, file: str
) -> None:
    server.ranges = False
    file = file.replace("SHARD", shard_of(model[0], "model.layers.0.mlp.up_proj.weight"))
    # A file may be asked for once more, to see whether the server has ranges.
    server.faults[file] = [Fault(flip=40), Fault(flip=40)]
    with pytest.raises(FetchError, match=rf"{file} arrived damaged .* the hub says"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == []
    server.faults.clear()
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])


def test_a_wrong_byte_in_ranges_is_noticed_when_they_make_a_whole_file(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """The hub's hash is of the whole file: with fewer of its bytes there is nothing to check."""
    shard, covered = _damage(server, model[0], "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(FetchError, match=rf"{shard} arrived damaged .* the hub says .* run again"):
        fetch(SOURCE, covered, tmp_path / "out", tmp_path / "state")
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == []
    server.faults.clear()
    fetch(SOURCE, covered, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", covered, model[1])
    verified = {path.name for path in (tmp_path / "state").rglob("verified/[!.]*")}
    assert shard in verified


def test_files_whose_every_tensor_has_come_are_held_to_the_hubs_hash_once(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    fetch(SOURCE, BLOCKS, tmp_path / "out", tmp_path / "state")
    verified = {path.name for path in (tmp_path / "state").rglob("verified/[!.]*")}
    shards = {path.name for path in model[0].glob("*.safetensors")}
    # All but those that hold the output head, which is never fetched.
    assert verified == shards - {shard_of(model[0], "lm_head.weight")}
    assert len(verified) > 2
    server.forget()
    fetch(SOURCE, BLOCKS, tmp_path / "again", tmp_path / "state")
    assert server.requests == []


def test_small_leftovers_of_a_file_are_fetched_for_its_hash(
    server: Hub, copy: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Old Llama repositories keep rotary frequencies in every block, which no model reads."""
    shards = sorted(copy[0].glob("*.safetensors"))
    index = json.loads((copy[0] / "model.safetensors.index.json").read_text())
    for number, path in enumerate(shards[:BLOCKS]):
        tensors = load_file(path)
        name = f"model.layers.{number}.self_attn.rotary_emb.inv_freq"
        save_file(tensors | {name: torch.ones(8)}, path, metadata={"format": "pt"})
        index["weight_map"][name] = path.name
    (copy[0] / "model.safetensors.index.json").write_text(json.dumps(index))
    fetch(SOURCE, BLOCKS, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", BLOCKS, copy[1])
    verified = {path.name for path in (tmp_path / "state").rglob("verified/[!.]*")}
    assert len(verified) == len(shards) - 1
    assert server.weights_sent() <= 1.05 * needed_bytes(copy[1], BLOCKS)


def _damage(server: Hub, directory: Path, name: str) -> tuple[str, int]:
    """Have a tensor arrive damaged; return its shard, and how many blocks need all of that."""
    shard = shard_of(directory, name)
    place, covered = _covering(directory, shard, name)
    # Asked for twice before its tensors come: the length of its header, and the header.
    server.faults[shard] = [Fault(), Fault(), *(Fault(flip=place) for _ in range(50))]
    return shard, covered


def _covering(directory: Path, shard: str, name: str) -> tuple[int, int]:
    """Return the place of a tensor in its shard, and how many blocks need all of that shard."""
    content = (directory / shard).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    blocks = [int(key.split(".")[2]) for key in header if "layers." in key]
    return 8 + length + header[name]["data_offsets"][0], max(blocks) + 1


def test_a_file_of_another_size_than_listed_never_becomes_a_model(
    server: Hub, copy: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    fetch(SOURCE, None, tmp_path / "config", tmp_path / "state")
    shard = copy[0] / shard_of(copy[0], "model.layers.0.mlp.up_proj.weight")
    shard.write_bytes(shard.read_bytes() + b"more")
    with pytest.raises(FetchError, match=r"asked for bytes 0-7/\d+, was sent bytes 0-7/\d+"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path, status: int
) -> None:
    shard = shard_of(model[0], "model.embed_tokens.weight")
    for name in ("revision", "config.json", shard):
        server.faults[name] = [Fault(status=status), Fault(status=status)]
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])


def test_a_hub_that_says_when_to_come_back_is_left_alone_until_then(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.faults["revision"] = [Fault(status=429, headers={"Retry-After": "7"})]
    fetch(SOURCE, None, tmp_path / "out", tmp_path / "state")
    assert max(waited) >= 7


def test_a_hub_that_stays_busy_is_given_up_in_one_line(server: Hub, tmp_path: Path) -> None:
    server.faults["revision"] = [Fault(status=503)] * 20
    with pytest.raises(FetchError, match=r"on the hub: the hub answers 503 again and again"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert len(server.requests) == 6


def test_refusals_end_at_once_and_say_what_to_do(server: Hub, tmp_path: Path) -> None:
    def refused(**changes: object) -> str:
        server.forget()
        with pytest.raises(FetchError) as caught:
            fetch(SOURCE.model_copy(update=changes), 1, tmp_path / "out", tmp_path / "state")
        assert len(server.requests) == 1
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "check the name" in refused(repository="some/mistake")
    assert "no revision 'v9'" in refused(revision="v9")
    server.token = TOKEN
    assert "set HF_TOKEN" in refused()
    server.gated = True
    licence = f"accept its licence at {server.endpoint}/{ID} and set HF_TOKEN"
    assert licence in refused()


def test_an_account_that_accepted_no_licence_is_told_to(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    server.token, server.gated = TOKEN, True
    with pytest.raises(FetchError, match="accept its licence at"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert len(server.requests) == 1


def test_a_token_opens_a_private_model_and_is_written_nowhere(
    server: Hub,
    model: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.token = TOKEN
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])
    at_cdn = [auth for _, path, _, auth in server.requests if path.startswith("/cdn/")]
    assert at_cdn
    assert set(at_cdn) == {None}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in caplog.text


def test_a_hub_that_is_not_there_is_one_line(
    tmp_path: Path, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"on the hub: http://127.0.0.1:9 cannot be reached: "):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")


def test_something_else_that_answers_for_the_hub_is_noticed(server: Hub, tmp_path: Path) -> None:
    server.faults["revision"] = [Fault(status=200)]
    with pytest.raises(FetchError, match="does not answer as a hub does"):
        fetch(SOURCE, None, tmp_path / "out", tmp_path / "state")


# --- the hub library's settings -----------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from tokinfo.models.fetch.fetch import fetch
from tokinfo.study.sources import HubSource

source = HubSource(repository="some/model", blocks=5, n_ctx=32)
for step in sys.argv[1:]:
    blocks, out, state = step.split(",")
    try:
        fetch(source, int(blocks), Path(out), Path(state))
    except Exception as error:
        print(error)
"""

SNAPSHOT = 'from huggingface_hub import snapshot_download; snapshot_download("some/model")'


def run(script: str, *steps: str, cwd: Path, **environment: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    path = str(REPOSITORY)
    done = subprocess.run(
        [sys.executable, "-c", script, *steps],
        cwd=cwd,
        env={**kept, "PYTHONPATH": path, "HF_HOME": str(cwd / "hf"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_hub_librarys_environment_is_respected(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    server.token = TOKEN
    online = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN}
    offline = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "1"}

    assert run(SCRIPT, "1,a,state", cwd=tmp_path, **online) == []
    assert_holds(tmp_path / "a", 1, model[1])
    server.forget()
    # What these results have already needs no hub; what they have not needs its cache.
    told = run(SCRIPT, "0,b,state", "2,c,state", "2,c,other", cwd=tmp_path, **offline)
    assert_holds(tmp_path / "b", 0, model[1])
    assert [line.split(" on the hub: ")[1].split(" (/")[0] for line in told] == [
        "offline (HF_HUB_OFFLINE), and not everything needed is at hand",
        "offline (HF_HUB_OFFLINE), and not in the hub's cache",
    ]
    assert server.requests == []

    run(SNAPSHOT, cwd=tmp_path, **online)
    server.forget()
    assert run(SCRIPT, "2,d,other", cwd=tmp_path, **offline) == []
    assert_holds(tmp_path / "d", 2, model[1])
    assert read_config(tmp_path / "d").tokinfo_commit == COMMIT
    assert server.requests == []
    # Online, too, a file in the hub's cache is not fetched again.
    assert run(SCRIPT, "2,e,third", cwd=tmp_path, **online) == []
    assert server.weights_sent() == 0
