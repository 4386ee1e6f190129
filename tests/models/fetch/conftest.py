"""A tiny model, and a hub on this machine that serves it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from tests.hub_server import Hub, hub
from tests.models.fetch.hub_models import (
    ID,
    write_model,
)
from tokinfo.models.fetch import ranges


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
