"""Files filled from ranges: whole and right, whatever breaks off and whenever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokinfo.io.errors import FetchError
from tokinfo.models.fetch import ranges
from tokinfo.models.fetch.headers import LENGTH, Tensor, make_file, read_header
from tokinfo.models.fetch.ranges import CutError, Piece, fill

CONTENT = {name: bytes((7 * n + len(name)) % 251 for n in range(4000)) for name in ("a", "bb")}


class Flaky:
    """Streams that bring a few bytes and break off, one for each cut; then good ones."""

    name = "flaky"

    def __init__(self, cuts: list[int]) -> None:
        self.cuts = cuts
        self.sent = 0

    def stream(self, file: str, start: int, end: int) -> Iterator[bytes]:
        cut = self.cuts.pop() if self.cuts else None
        for place in range(start, end, 100):
            chunk = CONTENT[file][place : min(place + 100, end)]
            if cut is not None and place - start + len(chunk) > cut:
                raise CutError("cut")
            self.sent += len(chunk)
            yield chunk


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "WAIT", 0)
    monkeypatch.setattr(ranges, "STEP", 300)
    monkeypatch.setattr(ranges, "PIECE", 1000)


def wanted(pieces: list[Piece], head: bytes) -> bytes:
    return head + b"".join(CONTENT[p.file][p.start : p.start + p.size] for p in pieces)


@st.composite
def layouts(draw: st.DrawFn) -> list[Piece]:
    pieces, at = [], 4
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, 3900))
        size = draw(st.integers(1, 4000 - start))
        pieces.append(Piece(draw(st.sampled_from(sorted(CONTENT))), start, size, at))
        at += size
    return pieces


@given(pieces=layouts(), cuts=st.lists(st.lists(st.integers(0, 2000), max_size=20), max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_file_is_whole_after_any_cuts_and_no_byte_comes_twice(
    pieces: list[Piece], cuts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("fill") / "file"
    sent = 0
    for attempt in [*cuts, []]:
        origin = Flaky(attempt)
        try:
            fill(target, origin, pieces, head=b"head")
        except FetchError:
            assert not target.exists()
        sent += origin.sent
        if target.exists():
            break
    assert target.read_bytes() == wanted(pieces, b"head")
    assert sent == sum(piece.size for piece in pieces)
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_journal_cut_in_its_last_line_is_used_up_to_there(tmp_path: Path) -> None:
    pieces = [Piece("a", 0, 2000, 0)]
    with pytest.raises(FetchError):
        fill(tmp_path / "file", Flaky([0] * 50 + [700, 700]), pieces)
    journal = tmp_path / ".file.journal"
    lines = journal.read_text().splitlines(keepends=True)
    kept = [json.loads(line) for line in lines[1:-1]]
    assert kept
    journal.write_text("".join(lines[:-1]) + lines[-1][:9])
    origin = Flaky([])
    fill(tmp_path / "file", origin, pieces)
    assert (tmp_path / "file").read_bytes() == CONTENT["a"][:2000]
    assert origin.sent == 2000 - sum(line["size"] for line in kept)


def test_a_line_that_was_cut_twice_costs_what_it_stood_for(tmp_path: Path) -> None:
    """The half line of a killed process stays, and the next one, cut off too, writes behind it."""
    pieces = [Piece("a", 0, 4000, 0)]
    journal = tmp_path / ".file.journal"
    for _ in range(2):
        with pytest.raises(FetchError):
            fill(tmp_path / "file", Flaky([0] * 50 + [300, 300]), pieces)
        content = journal.read_bytes()
        assert content.endswith(b"}\n")
        journal.write_bytes(content[:-20])
    journal.write_bytes(journal.read_bytes() + bytes(9) + b"\xff\n[1]\n{}\n")
    fill(tmp_path / "file", Flaky([]), pieces)
    assert (tmp_path / "file").read_bytes() == CONTENT["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_begun_for_another_layout_is_begun_again(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="file: the connection broke off: cut"):
        fill(tmp_path / "file", Flaky([0] * 50 + [700]), [Piece("a", 0, 2000, 0)])
    fill(tmp_path / "file", Flaky([]), [Piece("bb", 0, 2000, 0)])
    assert (tmp_path / "file").read_bytes() == CONTENT["bb"][:2000]


def test_without_ranges_there_is_one_stream(tmp_path: Path) -> None:
    opened: list[tuple[int, int]] = []

    class Counting(Flaky):
        def stream(self, file: str, start: int, end: int) -> Iterator[bytes]:
            opened.append((start, end))
            return super().stream(file, start, end)

    fill(tmp_path / "file", Counting([]), [Piece("a", 0, 4000, 0)], parallel=False)
    assert opened == [(0, 4000)]


def test_a_stream_that_ends_early_without_a_word_is_noticed(tmp_path: Path) -> None:
    class Short(Flaky):
        def stream(self, file: str, start: int, end: int) -> Iterator[bytes]:
            yield CONTENT[file][start : min(end, 1500)]

    with pytest.raises(FetchError, match="a ended 500 bytes early"):
        fill(tmp_path / "file", Short([]), [Piece("a", 1000, 1000, 0)])
    assert not (tmp_path / "file").exists()


def test_a_new_files_header_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    from safetensors import safe_open

    tensors = {
        "x": Tensor("a", "F16", (10, 5), 600, 100),
        "y": Tensor("a", "F32", (25,), 700, 100),
        "z": Tensor("bb", "I64", (), 0, 8),
        "none": Tensor("bb", "F32", (0, 3), 8, 0),
    }
    head, pieces = make_file(tensors)
    assert [(piece.file, piece.start, piece.size) for piece in pieces] == [
        ("a", 600, 200),  # neighbours are one piece
        ("bb", 0, 8),
    ]
    fill(tmp_path / "file", Flaky([]), pieces, head=head)
    with safe_open(tmp_path / "file", "np") as opened:
        assert set(opened.keys()) == set(tensors)
        assert opened.get_tensor("y").tobytes() == CONTENT["a"][700:800]
        assert opened.get_tensor("z").tobytes() == CONTENT["bb"][:8]
    size = (tmp_path / "file").stat().st_size
    found = read_header("file", head[LENGTH:], size)
    assert {name: (t.dtype, t.shape, t.size) for name, t in found.items()} == {
        name: (t.dtype, t.shape, t.size) for name, t in tensors.items()
    }
