"""A small study that tests rows of the source chapter, as plain data."""

from __future__ import annotations

import copy
from typing import Any

MARIO = "Mario, the Idea, versus Mario, the Man"
SKY = "The sky is blue."

_STUDY: dict[str, Any] = {
    "name": "A few rows",
    "results": "results/claims",
    "corpora": {"harbour": {"kind": "file", "path": "studies/data/harbour.txt", "held_out": 0.1}},
    "tokenizers": {"small": {"corpus": "harbour", "vocabulary": 512}},
    "sources": {
        "d32": {
            "kind": "mixer",
            "form": "flat",
            "d_model": 32,
            "blocks": 8,
            "n_ctx": 512,
            "tokenizer": "small",
        },
        "tiny": {
            "kind": "mixer",
            "form": "flat",
            "d_model": 16,
            "blocks": 4,
            "n_ctx": 64,
            "tokenizer": "small",
            "training": {"steps": 4, "batch": 2, "warmup": 1},
        },
        "llama": {
            "kind": "hub",
            "repository": "huggyllama/llama-7b",
            "blocks": 32,
            "special_tokens": False,
            "config": {
                "model_type": "llama",
                "dtype": "float16",
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
            },
        },
    },
    "models": {
        "d32-untrained": {"source": "d32", "state": "untrained"},
        "tiny": {"source": "tiny"},
        "tiny-untrained": {"source": "tiny", "state": "untrained"},
        "tiny-untrained-1": {"source": "tiny", "state": "untrained", "seed": 1},
        "llama-7b": {"source": "llama", "quantization": "int8"},
    },
    "prompts": {"mario": [MARIO, "She wrote down the wind."], "sky": [SKY]},
    "solvers": {
        "chapter": {"kind": "chapter", "steps": 500, "learning_rate": 0.02},
        "brief": {"kind": "chapter", "steps": 10},
        "chapter-llama": {"kind": "chapter", "steps": 500, "learning_rate": 2},
        "adam": {"kind": "adam", "steps": 20},
        "sweep": {"kind": "sweep"},
        "sweep-all": {"kind": "sweep", "positions": "all"},
        "joint": {"kind": "joint", "rounds": 2, "descent": {"steps": 20}},
    },
    "run": ["exact", "smaller", "trained"],
    "claims": {
        "exact": {
            "rows": ["mixer-untrained-block1-full"],
            "models": ["d32-untrained"],
            "prompts": ["mario"],
            "published": "chapter",
            "solvers": ["adam"],
            "identify": ["sweep", "sweep-all"],
            "identify_padding": "none",
        },
        "smaller": {
            "rows": [
                "mixer-flat-d512-untrained-after1",
                "mixer-flat-d2048-untrained-block8",
            ],
            "models": ["tiny-untrained", "tiny-untrained-1"],
            "stand_in": "a width of 16",
            "prompts": ["mario"],
            "published": "brief",
            "solvers": ["adam"],
            "identify": ["sweep", "sweep-all", "joint"],
            "padding": "none",
        },
        "trained": {
            "rows": ["mixer-flat-d512-trained-block2-after3"],
            "models": ["tiny"],
            "stand_in": "a width of 16",
            "prompts": ["mario"],
            "published": "brief",
            "seeds": [0, 1],
        },
        "hub": {
            "rows": ["llama7b-block1-after2", "llama7b-block1-full"],
            "models": ["llama-7b"],
            "prompts": ["sky"],
            "published": "chapter-llama",
            "identify": ["sweep", "sweep-all"],
        },
    },
}


def claims_study() -> dict[str, Any]:
    """Return a fresh copy of the study."""
    return copy.deepcopy(_STUDY)
