"""What a hub may cost: a listing that is wrong or large, a long wait, a stream that stalls."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor

from tests import hub_server
from tests.hub_server import COMMIT, Fault, Hub
from tests.models.fetch.hub_models import BLOCKS, ID, SOURCE, assert_holds, shard_of
from tokinfo.io.errors import FetchError
from tokinfo.models.checkpoint import read_config
from tokinfo.models.fetch import hub, partial, ranges
from tokinfo.models.fetch.fetch import fetch
from tokinfo.models.fetch.hub import HubOrigin

Model = tuple[Path, dict[str, Tensor]]


@contextmanager
def wrongly_listed(monkeypatch: pytest.MonkeyPatch, file: str, **wrong: Any) -> Iterator[None]:
    entry = hub_server._entry

    def changed(path: Path) -> dict[str, Any]:
        return entry(path) | (wrong if path.name == file else {})

    with monkeypatch.context() as patch:
        patch.setattr(hub_server, "_entry", changed)
        yield


@pytest.mark.parametrize("wrong", [{"size": 7}, {"blobId": "0" * 40}], ids=str)
def test_a_listing_that_its_repository_belies_is_not_kept(
    server: Hub, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    with (
        wrongly_listed(monkeypatch, "config.json", **wrong),
        pytest.raises(FetchError, match=r"config\.json (has the wrong size|arrived damaged)"),
    ):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert_holds(tmp_path / "out", 1, model[1])


@pytest.mark.parametrize("blocks", [None, BLOCKS])
def test_a_listing_that_a_file_does_not_fit_is_looked_up_again_at_its_commit(
    server: Hub,
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blocks: int | None,
) -> None:
    file = "tokenizer.json" if blocks is None else shard_of(model[0], "model.embed_tokens.weight")
    wrong: Any = {"blobId": "0" * 40}
    if blocks is not None:
        wrong = {"lfs": {"sha256": "0" * 64, "size": 1, "pointerSize": 134}}
    with (
        wrongly_listed(monkeypatch, file, **wrong),
        pytest.raises(FetchError, match=r"arrived damaged .* the hub says 0000"),
    ):
        fetch(SOURCE, blocks, tmp_path / "out", tmp_path / "state")
    server.forget()
    fetch(SOURCE, blocks, tmp_path / "out", tmp_path / "state")
    (asked,) = (path for _, path, _, _ in server.requests if "/revision/" in path)
    assert asked.endswith(f"/revision/{COMMIT}")
    assert read_config(tmp_path / "out").tokinfo_commit == COMMIT


def test_a_listing_of_many_bytes_is_refused_while_it_comes(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LARGEST", 1 << 20)

    def bomb(handler: Any, *_: object) -> None:
        body = gzip.compress(b'{"siblings": [' + b" " * (8 << 20) + b"]}")
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        handler._head(200, headers, len(body))
        handler.wfile.write(body)

    monkeypatch.setattr(hub_server._Handler, "_revision", bomb)
    with pytest.raises(FetchError, match="is larger than 1 MB"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "100000"},
        {"RateLimit": '"api";r=0;t=99999'},
        {"Retry-After": "9" * 5000},
    ],
    ids=["after", "limit", "long"],
)
def test_a_hub_that_asks_for_a_long_wait_is_not_waited_for(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.faults["revision"] = [Fault(status=429, headers=headers)]
    with pytest.raises(FetchError, match=r"asks to wait for \d+ s"):
        fetch(SOURCE, 1, tmp_path / "out", tmp_path / "state")
    assert sum(waited) < 60


def test_a_stream_that_stalls_is_given_up(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = HubOrigin(ID, "main", tmp_path)
    assert origin.files()["tokenizer.json"] > 60
    now = [0.0]
    opened = [0]

    class Trickle:
        status_code = 206
        headers: ClassVar[dict[str, str]] = {}

        def iter_bytes(self) -> Iterator[bytes]:
            while True:
                now[0] += 9
                yield b"x"

    @contextmanager
    def trickle(*_: object, **__: object) -> Iterator[Trickle]:
        opened[0] += 1
        yield Trickle()

    monkeypatch.setattr(HubOrigin, "_open", trickle)
    monkeypatch.setattr(hub.time, "monotonic", lambda: now[0])
    with pytest.raises(FetchError, match=r"the connection broke off: \d+ bytes in 60 s"):
        origin.whole("tokenizer.json")
    assert opened[0] == ranges.ATTEMPTS
    assert now[0] < 600


def test_a_long_header_takes_time_in_proportion_to_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slices:
        name = "slices"

        def stream(self, file: str, start: int, end: int) -> Iterator[bytes]:
            for at in range(start, end, 1 << 12):
                yield bytes(min(1 << 12, end - at))

    def seconds(length: int) -> float:
        begun = time.process_time()
        assert len(partial._bytes(Slices(), "f", 0, length)) == length  # type: ignore[arg-type]
        return time.process_time() - begun

    seconds(1 << 20)
    assert seconds(64 << 20) < 40 * seconds(4 << 20) + 0.5


def test_what_is_kept_is_the_listing(server: Hub, tmp_path: Path) -> None:
    fetch(SOURCE, None, tmp_path / "out", tmp_path / "state")
    (kept,) = (tmp_path / "state").rglob("revisions/*.json")
    record = json.loads(kept.read_text())
    assert record["commit"] == COMMIT
    assert "config.json" in record["files"]
    asked = [path for _, path, _, _ in server.requests if path.endswith("config.json")]
    assert len([path for path in asked if "tokenizer" not in path]) == 1
