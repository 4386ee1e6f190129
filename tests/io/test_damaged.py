from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokinfo.io.atomic import SUMS, UNSEALED, new_directory, seal
from tokinfo.io.damaged import check, check_seal, reading
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


def flip(path: Path, at: int) -> None:
    """Flip one bit of a file, and leave its time as it was."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path: Path, at: int) -> None:
    """Cut a file off at some byte."""
    path.write_bytes(path.read_bytes()[:at])


def made(path: Path) -> Path:
    with new_directory(path) as partial:
        (partial / "inner").mkdir()
        (partial / "a.bin").write_bytes(b"0123")
        (partial / "inner" / "b.bin").write_bytes(b"4567")
    return path


def test_a_directory_is_held_to_the_digests_it_was_written_with(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole")
    (whole / STAMP).touch()  # hidden files are no part of it
    check(whole)
    check(whole / "inner")
    flip(whole / "a.bin", 2)
    with pytest.raises(DamagedError, match=r"a\.bin: is not as it was written.*rm -r"):
        check(whole)
    check(whole, "b.bin", SUMS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda at: (at / "a.bin").unlink(), "a.bin: is missing"),
        (lambda at: (at / "more.bin").touch(), "more.bin: is not as it was written"),
        (lambda at: flip(at / SUMS, 3), "a.bin: is not as it was written"),
        (lambda at: flip(at / SUMS, 68), "is not as it was written|is missing"),
        (lambda at: (at / SUMS).write_bytes(b"\xff\n"), SUMS),
        (lambda at: (at / SUMS).write_text("1"), SUMS),
    ],
)
def test_missing_and_added_files_and_damaged_digests_are_seen(
    tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    whole = made(tmp_path / "whole")
    change(whole)
    with pytest.raises(DamagedError, match=reason):
        check(whole)


def test_any_flipped_bit_of_a_sealed_file_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(9.0)}, path, metadata={**UNSEALED, "more": "words"})
    check_seal(path)  # not sealed yet
    seal(path)
    check_seal(path)
    assert torch.equal(load_file(path)["a"], torch.arange(9.0))
    key = path.read_bytes().index(b'"sha256":"')
    for at in range(path.stat().st_size):
        flip(path, at)
        # Where no digest is found any more, what was flipped is its key, and nothing else.
        if at >= 8 and not key <= at < key + 10 and at != key + 74:
            with pytest.raises(DamagedError, match="not as it was written"):
                check_seal(path)
        flip(path, at)


def test_files_from_elsewhere_have_no_digests_and_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    check(tmp_path)
    check_seal(tmp_path / "a.safetensors")
