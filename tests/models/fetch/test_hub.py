"""Fetching from a hub: only what is needed, once, and the same commit for every depth."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hub_server import COMMIT, Fault, Hub
from tests.io.test_damaged import cut, flip
from tests.models.fetch.hub_models import (
    BLOCKS,
    ID,
    SOURCE,
    assert_holds,
    covering,
    damage,
    left_over,
    needed_bytes,
    pickle_weights,
    shard_of,
    write_model,
)
from tokinfo.io.atomic import files_of
from tokinfo.io.errors import FetchError
from tokinfo.models.checkpoint import read_config
from tokinfo.models.fetch import partial
from tokinfo.models.fetch.fetch import fetch
from tokinfo.models.fetch.partial import held_tensors


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_only_the_embedding_and_the_blocks_wanted_cross_the_wire(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path, blocks: int
) -> None:
    fetch(SOURCE, blocks, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", blocks, model[1])
    assert server.weights_sent() <= 1.05 * needed_bytes(model[1], blocks)


@pytest.mark.parametrize("harm", [cut, flip])
def test_a_part_that_was_damaged_afterwards_is_fetched_again(
    server: Hub,
    model: tuple[Path, dict[str, Tensor]],
    harm: Callable[[Path, int], None],
    tmp_path: Path,
) -> None:
    fetch(SOURCE, 2, tmp_path / "out", tmp_path / "state")
    part = tmp_path / "out" / "block-0002.safetensors"
    harm(part, -100)  # the same file as the one that is kept for other depths
    shutil.rmtree(tmp_path / "out")
    server.forget()
    fetch(SOURCE, 2, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 2, model[1])
    second = needed_bytes(model[1], 2) - needed_bytes(model[1], 1)
    assert second <= server.weights_sent() <= 1.05 * second


def test_configuration_and_tokenizer_come_without_any_weights(server: Hub, tmp_path: Path) -> None:
    fetch(SOURCE, None, tmp_path / "out", tmp_path / "state")
    assert files_of(tmp_path / "out").keys() == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
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
    paths = [path for _, path, _, _ in server.requests]
    assert len([path for path in paths if "/revision/" in path]) == 1
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
    shard, covered = damage(server, model[0], "model.layers.1.mlp.up_proj.weight")
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
        errors = sorted(pool.map(refused, ("one", "other")))
    assert f"{shard} arrived damaged (hash " in errors[0]
    assert f"{shard} arrived damaged, as another job found; run again" in errors[1]
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
    """Its few bytes of the file cannot be checked; the larger depth finds the damage."""
    weights = json.loads((model[0] / "model.safetensors.index.json").read_text())["weight_map"]
    for name, shard in weights.items():
        if "layers." not in name:
            continue
        depth = int(name.split(".")[2]) + 1
        if covering(model[0], shard, name)[1] > depth:
            break
    else:
        pytest.fail("no shard with tensors of two blocks")
    shard, covered = damage(server, model[0], name)
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
    place, covered = covering(model[0], shard, name)
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
