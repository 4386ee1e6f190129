from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokinfo.io.damaged import reading
from tokinfo.io.errors import STAMP, DamagedError


def cut_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes()[:100])
    return path


def message_of(path: Path) -> str:
    with pytest.raises(DamagedError) as caught, reading(path):
        load_file(path)
    return str(caught.value)


def test_a_cut_output_is_named_with_the_command_that_heals_it(tmp_path: Path) -> None:
    path = cut_file(tmp_path / "decoders" / "a.safetensors")
    message = message_of(path)
    assert message.startswith(f"{path}: damaged or cut short (")
    assert message.endswith(f"; to have it made again: `rm {path}`, then the same command")


def test_a_cut_file_of_a_directory_takes_the_directory_with_it(tmp_path: Path) -> None:
    path = cut_file(tmp_path / "a model" / "block-0001.safetensors")
    (path.parent / STAMP).touch()
    assert f"`rm -r '{path.parent}'`" in message_of(path)


def test_a_model_that_no_rule_made_has_no_cure(tmp_path: Path) -> None:
    path = cut_file(tmp_path / "mine" / "model.safetensors")
    (path.parent / "config.json").touch()
    assert "rm" not in message_of(path).split("(")[-1].split(")")[-1]


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), MemoryError()])
def test_what_is_no_damage_is_passed_on(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), reading(tmp_path / "a"):
        raise error
