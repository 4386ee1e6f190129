"""`tokinfo.load` of a repository on a hub: what it fetches, and what it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

import tokinfo as ti
from tests.hub_server import Hub
from tests.models.fetch.hub_models import BLOCKS, ID, needed_bytes
from tokinfo.io.errors import TokinfoError


def test_a_site_fetches_its_blocks_once_and_keeps_parts_alone(
    server: Hub,
    model: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKINFO_CACHE", str(tmp_path / "cache"))
    opened = ti.load(ID, device="cpu")
    assert opened.name == ID
    assert opened.depth == BLOCKS
    assert server.weights_sent() == 0
    with opened._checkpoint(1) as checkpoint:
        assert checkpoint.facts.blocks_kept == 1
    assert server.weights_sent() <= 1.05 * needed_bytes(model[1], 1)
    server.forget()
    with ti.load(ID, device="cpu")._checkpoint(1) as again:
        assert again.facts.digest == checkpoint.facts.digest
    assert server.weights_sent() == 0, "parts are kept between sessions"
    assert not list((tmp_path / "cache").glob("checkpoint-*"))


def test_a_repository_that_is_not_there_is_one_line(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKINFO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TokinfoError, match="nobody/nothing") as raised:
        ti.load("nobody/nothing").tokens("x")
    assert "\n" not in str(raised.value)
