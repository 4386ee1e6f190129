"""Corpora: where text comes from, and its split into training and held-out documents.

The files written here hold documents separated by a line ``<|endoftext|>``, whatever the
source used.
"""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

from tokinfo.io.atomic import new_file
from tokinfo.io.errors import FetchError, InvalidError, first_line
from tokinfo.io.wheel import read_member
from tokinfo.study.sources import Corpus, HubCorpus, WheelCorpus, located
from tokinfo.text.documents import SEPARATOR, documents


def write_corpus(corpus: Corpus, train: Path, held_out: Path, cache: Path) -> None:
    """Fetch a corpus and write its training and held-out text.

    The held-out part is the trailing ``corpus.held_out`` share, cut at a document's start
    (inside the text where there is a single document). ``cache`` holds downloads.
    Raises FetchError or ValueError; both name the corpus.
    """
    text = read_text(corpus, cache)
    if corpus.max_bytes is not None:
        # A character cut in two by the limit is dropped.
        text = text.encode()[: corpus.max_bytes].decode(errors="ignore")
    first, last = split(documents(text), corpus.held_out)
    if not first or not last:
        raise InvalidError(f"{describe(corpus)}: too little text to hold out {corpus.held_out:g}")
    for path, part in ((train, first), (held_out, last)):
        with new_file(path) as partial:
            partial.write_text(SEPARATOR.join(part) + "\n", encoding="utf-8")


def read_text(corpus: Corpus, cache: Path) -> str:
    """Return the text of a corpus, fetched if need be."""
    if corpus.path is not None:
        path = located(corpus.path)
        if not path.is_file():
            raise FetchError(f"{describe(corpus)}: no such file")
        return _decode(path.read_bytes(), describe(corpus))
    match corpus:
        case WheelCorpus():
            text = _decode(b"".join(read_member(corpus, cache)), describe(corpus))
            return python_string(text, describe(corpus)) if corpus.format != "text" else text
        case HubCorpus():
            return _decode(_from_hub(corpus).read_bytes(), describe(corpus))


def describe(corpus: Corpus) -> str:
    """Name a corpus in one phrase, for messages."""
    if corpus.path is not None:
        return f"corpus {corpus.path}"
    match corpus:
        case WheelCorpus():
            return f"corpus {corpus.member} of {corpus.requirement}"
        case HubCorpus():
            return f"corpus {corpus.file} of {corpus.repository} on the hub"


def split(parts: list[str], share: float) -> tuple[list[str], list[str]]:
    """Split documents so that the last ones hold about ``share`` of the characters.

    A single document is cut at the first space after that share begins.
    """
    if len(parts) == 1:
        (text,) = parts
        cut = text.find(" ", int(len(text) * (1 - share)))
        return ([text[:cut]], [text[cut + 1 :]]) if cut > 0 else ([text], [])
    wanted = share * sum(map(len, parts))
    held, cut = 0, len(parts)
    while held < wanted and cut > 1:
        cut -= 1
        held += len(parts[cut])
    return parts[:cut], parts[cut:]


def python_string(source: str, name: str) -> str:
    """Return the longest string literal of a Python module as prose, one document a paragraph.

    The module is parsed, never executed. Lines become paragraphs with a blank line between
    them, and the square brackets with which editions mark words that the translators
    supplied are removed while the words stay ("that [it was] good" -> "that it was good").
    Raises ValueError when the module does not parse or has no string.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise InvalidError(f"{name}: not a Python module ({error.msg})") from None
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    if not strings:
        raise InvalidError(f"{name}: no string in this Python module")
    text = re.sub(r"\[([^\[\]]*)\]", r"\1", max(strings, key=len))
    return "\n\n".join(line.strip() for line in text.splitlines() if line.strip())


def _decode(data: bytes, name: str) -> str:
    """Return a text with lines that end in a newline, however they ended in the file."""
    try:
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise InvalidError(f"{name}: not UTF-8 text (byte {error.start})") from None


def _from_hub(corpus: HubCorpus) -> Path:
    # Imported here: only this kind of corpus pays for it.
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                corpus.repository, corpus.file, repo_type="dataset", revision=corpus.revision
            )
        )
    except Exception as error:
        # The library's errors have many types and lines; the first line names the cause.
        reason = first_line(error)
        raise FetchError(f"{describe(corpus)}: cannot be fetched: {reason}") from error
