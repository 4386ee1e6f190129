"""Fetching from a hub that fails: resumed, verified, and refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import REPOSITORY
from tests.hub_server import COMMIT, Fault, Hub
from tests.models.fetch.hub_models import (
    BLOCKS,
    ID,
    SOURCE,
    TOKEN,
    assert_holds,
    damage,
    left_over,
    needed_bytes,
    shard_of,
)
from tokinfo.io.errors import FetchError
from tokinfo.models.checkpoint import read_config
from tokinfo.models.fetch import ranges
from tokinfo.models.fetch.fetch import fetch


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
    # A file may be requested once more, to see whether the server has ranges.
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
    shard, covered = damage(server, model[0], "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(FetchError, match=rf"{shard} arrived damaged .* the hub says .* run again"):
        fetch(SOURCE, covered, tmp_path / "out", tmp_path / "state")
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == []
    server.faults.clear()
    fetch(SOURCE, covered, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", covered, model[1])
    verified = {path.name for path in (tmp_path / "state").rglob("verified/[!.]*")}
    assert shard in verified


def test_files_whose_every_tensor_has_come_are_checked_against_the_hubs_hash_once(
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


def test_a_file_of_another_size_than_listed_never_becomes_a_model(
    server: Hub, copy: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    fetch(SOURCE, None, tmp_path / "config", tmp_path / "state")
    shard = copy[0] / shard_of(copy[0], "model.layers.0.mlp.up_proj.weight")
    shard.write_bytes(shard.read_bytes() + b"more")
    with pytest.raises(FetchError, match=r"requested bytes 0-7/\d+, was sent bytes 0-7/\d+"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_tried_again(
    server: Hub, model: tuple[Path, dict[str, Tensor]], tmp_path: Path, status: int
) -> None:
    shard = shard_of(model[0], "model.embed_tokens.weight")
    for name in ("revision", "config.json", shard):
        server.faults[name] = [Fault(status=status), Fault(status=status)]
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])


def test_a_hub_that_sends_retry_after_is_left_alone_until_then(
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


def test_an_account_that_accepted_no_licence_gets_the_page_to_do_so(
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


def test_a_server_that_is_no_hub_is_noticed(server: Hub, tmp_path: Path) -> None:
    server.faults["revision"] = [Fault(status=200)]
    with pytest.raises(FetchError, match="does not answer as a hub does"):
        fetch(SOURCE, None, tmp_path / "out", tmp_path / "state")


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
    errors = run(SCRIPT, "0,b,state", "2,c,state", "2,c,other", cwd=tmp_path, **offline)
    assert_holds(tmp_path / "b", 0, model[1])
    assert [line.split(" on the hub: ")[1].split(" (/")[0] for line in errors] == [
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
