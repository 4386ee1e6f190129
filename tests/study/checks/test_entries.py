"""What single sections and the files on this machine must be."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tests.example_study import Row, check_one, each, example, keys, mistakes, put, says, spoilt

FLAT = ("sources", "flat")
SNAPSHOTS = (*FLAT, "training", "snapshots")
TRAINED = "only a model that is trained here"

ENTRIES: list[Row] = [
    ((*FLAT, "expansion"), 2.0, "only with form 'expanded'"),
    ((*FLAT, "kernels"), 2, "only with form 'parallel'"),
    (SNAPSHOTS, [0.04], "0, or more than 0.05", "sources.flat.training.snapshots[0]"),
    (SNAPSHOTS, [0, 0.1, 0.12], "is step 1 of 10, as 0.1 is", "sources.flat.training.snapshots[2]"),
    (SNAPSHOTS, [0.99], "is step 10 of 10, as 1 is", "sources.flat.training.snapshots[0]"),
    (("models", "llama"), {"source": "llama"}, "`llama` has no training", "models.llama.state"),
    (("models", "flat", "outlier_threshold"), 5.0, "only with quantization int8"),
    (("models", "flat", "seed"), 3, "a trained model has no random weights"),
    (("models", "flat", "at"), 0.5, "is not among sources.flat.training.snapshots"),
    (("models", "smol", "at"), 0.5, TRAINED),
    (("models", "llama", "at"), 0, TRAINED),
    (("corpora", "bible"), {"kind": "file", "path": "no.txt"}, "no such file",
     "corpora.bible.path"),
    (("corpora", "bible"), {"kind": "file", "path": "a {v2}/t.txt"}, "for a pattern",
     "corpora.bible.path"),
    (("corpora", "bible"), {"kind": "file", "path": "<results>.txt"}, "for a pattern",
     "corpora.bible.path"),
    (("sources", "smol"), {"kind": "gguf", "path": "a {v2}.gguf", "blocks": 30}, "for a pattern",
     "sources.smol.path"),
    (("sources", "smol"), {"kind": "local", "path": "llama {v2}", "blocks": 30}, "for a pattern",
     "sources.smol.path"),
    (("corpora", "bible"), {"kind": "file", "path": "~nobody-of-this-name/t.txt"}, "no such file",
     "corpora.bible.path"),
    (("sources", "smol"), {"kind": "gguf", "path": "~nobody-of-this-name", "blocks": 30},
     "no such file", "sources.smol.path"),
    (("sources", "smol"), {"kind": "local", "path": "~nobody-of-this-name", "blocks": 30},
     "no config.json", "sources.smol.path"),
    (("sources", "smol"), {"kind": "local", "path": "no", "blocks": 30}, "no config.json",
     "sources.smol.path"),
]  # fmt: skip


@each(ENTRIES)
def test_a_mistake_in_a_section_is_one_line(row: Row) -> None:
    check_one(row)


def test_every_snapshot_that_is_none_is_named() -> None:
    assert keys(spoilt((SNAPSHOTS, [0.04, 0.5, 0.5]))) == [
        "sources.flat.training.snapshots[0]",
        "sources.flat.training.snapshots[2]",
    ]


def test_weights_of_a_metric_may_both_be_zero_where_it_is_not_used() -> None:
    nothing = (("metric_weights",), {"l1": 0, "cosine": 0})
    assert spoilt(nothing) == []
    assert keys(spoilt(nothing, (("grids", 0, "metrics"), ["l1+cosine"]))) == ["metric_weights"]


def test_an_outlier_threshold_goes_with_int8() -> None:
    assert spoilt((("models", "smol", "outlier_threshold"), 3.5)) == []
    (line,) = spoilt((("models", "smol", "outlier_threshold"), 0))
    assert line.key == "models.smol.outlier_threshold"
    assert says(line, "greater than 0")


def test_the_file_of_a_prior_is_looked_for_where_some_cell_uses_it() -> None:
    raw = put(example(), ("corpora", "text"), {"kind": "file", "path": "no.txt"})
    raw["prior"] = "text"
    assert mistakes(raw) == []
    raw["solvers"]["sweep"] = {"kind": "sweep"}
    raw["grids"][0]["identify"] = ["sweep"]
    assert keys(mistakes(raw)) == ["corpora.text.path"]


def write_tokenizer(model: Path) -> None:
    """Write a tokenizer that reads every word as its only token."""
    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))


def test_a_local_model_is_held_to_its_own_config(working_directory: Path) -> None:
    model = working_directory / "model"
    model.mkdir()
    config = {"model_type": "llama", "num_hidden_layers": 12, "max_position_embeddings": 64}
    (model / "config.json").write_text(json.dumps(config))
    local = {"kind": "local", "path": "model", "blocks": 30, "n_ctx": 2048}
    found = spoilt((("sources", "smol"), local))
    assert keys(found) == ["sources.smol.blocks", "sources.smol.n_ctx", "sources.smol.path"]
    assert [mistake.value for mistake in found] == [30, 2048, "model"]
    write_tokenizer(model)
    fits = (("sources", "smol"), {**local, "blocks": 12, "n_ctx": 64})
    assert spoilt(fits) == []
    (model / "config.json").write_text(json.dumps({"num_hidden_layers": 12}))
    assert [says(mistake, "names no model_type") for mistake in spoilt(fits)] == [True]


def test_files_of_a_local_model_that_snakemake_would_take_for_patterns_are_named(
    working_directory: Path,
) -> None:
    model = working_directory / "a model's (own) files [1] * $HOME"
    model.mkdir()
    config = {"model_type": "llama", "num_hidden_layers": 30}
    (model / "config.json").write_text(json.dumps(config))
    write_tokenizer(model)
    local = {"kind": "local", "path": model.name, "blocks": 30}
    assert spoilt((("sources", "smol"), local)) == []
    (model / "weights {1}.safetensors").touch()
    (line,) = spoilt((("sources", "smol"), local))
    assert line.key == "sources.smol.path"
    assert says(line, "weights {1}.safetensors")
