from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tokinfo.io.atomic import new_directory, new_file
from tokinfo.io.errors import InvalidError


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    with new_file(path) as partial:
        partial.write_text("x")
        assert not path.exists()
    assert path.read_text() == "x"
    with pytest.raises(UnicodeEncodeError), new_file(path) as partial:
        partial.write_text("half\ud800", encoding="utf-8")
    assert path.read_text() == "x"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("new", [new_file, new_directory])
def test_whatever_a_library_raises_for_a_full_disk_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: object
) -> None:
    assert callable(new)
    with pytest.raises(RuntimeError, match="thrift"), new(tmp_path / "a"):
        raise RuntimeError("Invalid thrift")
    full = SimpleNamespace(f_bavail=0, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(OSError, match="No space left") as caught, new(tmp_path / "a"):
        raise RuntimeError("Invalid thrift")
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path / "a") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free", [0, 900_000])
def test_an_error_of_ours_stays_one_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    nearly_full = SimpleNamespace(f_bavail=free, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda path: nearly_full)
    with pytest.raises(InvalidError, match="no such model"), new_directory(tmp_path / "a"):
        raise InvalidError("no such model")
    with pytest.raises(OSError, match="No space left"), new_file(tmp_path / "b"):
        raise RuntimeError("SafetensorError")
