"""A cell's file says everything needed to reproduce and judge it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tokinfo.cell import CellError, run_cell
from tokinfo.decode import write_inverse_gram
from tokinfo.models.checkpoint import prepare
from tokinfo.schema import RECOVERY_SCHEMA
from tokinfo.sources import MixerSource, Model, TransformerSource
from tokinfo.tokenizer import load_tokenizer, train_tokenizer

V = 300
SOURCES = {
    "flat": MixerSource(form="flat", d_model=32, blocks=2, n_ctx=12, tokenizer="t"),
    "llama": TransformerSource(d_model=32, blocks=2, heads=4, n_ctx=12, tokenizer="t"),
}
PROMPTS = ["some words and others", "others and some"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and inverse Gram matrices of two untrained models."""
    root = tmp_path_factory.mktemp("cells")
    (root / "text.txt").write_text("\n".join(f"some {i} words and others" for i in range(99)))
    train_tokenizer(root / "text.txt", V, root / "words")
    for name, source in SOURCES.items():
        for quantization in ("float32", "bfloat16", "int8"):
            label = f"{name}-{quantization}"
            model = Model(source=name, state="untrained", quantization=quantization)
            facts = {"source": name, "n_ctx": 12}
            prepare(source, model, 1, root / label, tokenizer=root / "words", facts=facts)
            write_inverse_gram(root / label, root / f"{label}.safetensors")
    return root


def run(made: Path, out: Path, label: str = "flat-float32", **changed: Any) -> pl.DataFrame:
    name, quantization = label.split("-")
    cell = {
        "model": label,
        "site": "block.1",
        "residual": True,
        "causal": True,
        "padding": "none",
        "mask": "1:",
        "metric": "l1",
        "parametrisation": "embedding",
        "solver": "mine",
        "prompts": "few",
        "seed": 0,
    }
    solver = changed.pop("with_solver", {"kind": "adam", "steps": 60})
    settings = {
        "solver": solver,
        "prompts": changed.pop("texts", PROMPTS),
        "source": name,
        "state": "untrained",
        "quantization": quantization,
    }
    run_cell(
        cell | changed,
        settings,
        made / label,
        made / f"{label}.safetensors",
        out,
        device="cpu",
        code_digest="abc",
    )
    return pl.read_parquet(out)


def test_rows_have_the_schema_one_for_each_prompt_and_position(made: Path, tmp_path: Path) -> None:
    frame = run(made, tmp_path / "cell.parquet")
    assert frame.schema == RECOVERY_SCHEMA
    words = load_tokenizer(made / "words")
    lengths = [len(words.encode(prompt).ids) for prompt in PROMPTS]
    assert frame.group_by("prompt_id").len().sort("prompt_id")["len"].to_list() == lengths
    assert frame.filter(~pl.col("visible"))["position"].unique().to_list() == [0]
    assert "".join(frame.filter(pl.col("prompt_id") == 0)["true_token"]) == PROMPTS[0]
    assert frame["model_digest"].str.len_chars().to_list() == [64] * len(frame)
    told = json.loads(pl.read_parquet_metadata(tmp_path / "cell.parquet")["tokinfo"])
    assert told["cell"]["mask"] == "1:"
    assert told["settings"]["solver"]["steps"] == 60
    assert "torch" in told["versions"]


@pytest.mark.parametrize("label", [f"{n}-{q}" for n in SOURCES for q in ("bfloat16", "int8")])
def test_every_precision_runs_and_its_true_prompt_lies_at_the_floor(
    label: str, made: Path, tmp_path: Path
) -> None:
    frame = run(made, tmp_path / "cell.parquet", label, mask=":")
    assert (frame["true_loss"] <= frame["noise_floor"]).all()
    assert frame["quantization"].unique().to_list() == [label.split("-")[1]]


def test_padding_to_n_ctx_scores_the_prompts_own_positions_only(made: Path, tmp_path: Path) -> None:
    plain = run(made, tmp_path / "plain.parquet")
    padded = run(made, tmp_path / "padded.parquet", padding="n_ctx")
    assert len(padded) == len(plain)
    assert padded["true_id"].to_list() == plain["true_id"].to_list()
    assert padded["first_loss"].to_list() > plain["first_loss"].to_list(), "pads are visible too"


@pytest.mark.parametrize("parametrisation", ["embedding", "vocabulary"])
def test_a_restricted_vocabulary_finds_nothing_else(
    parametrisation: str, made: Path, tmp_path: Path
) -> None:
    frame = run(
        made,
        tmp_path / "cell.parquet",
        parametrisation=parametrisation,
        with_solver={"kind": "adam", "steps": 5, "decode": {"restricted_to": "some words"}},
    )
    allowed = set(load_tokenizer(made / "words").encode("some words").ids)
    assert set(frame["found_id"]) <= allowed
    assert frame["vocabulary"].unique().to_list() == [len(allowed)]


@pytest.mark.parametrize("kind", ["chapter", "sweep", "joint"])
def test_columns_that_a_solver_gives_are_there_and_others_null(
    kind: str, made: Path, tmp_path: Path
) -> None:
    settings = {"chapter": {"steps": 5}, "sweep": {}, "joint": {"descent": {"steps": 20}}}[kind]
    frame = run(made, tmp_path / "cell.parquet", with_solver={"kind": kind, **settings})
    hidden = frame.filter(~pl.col("visible"))
    assert hidden["rank"].is_null().all() == (kind == "chapter")
    assert frame.filter(pl.col("visible"))["rank"].is_null().all()
    assert frame["published_correct"].is_null().all() == (kind != "chapter")
    assert hidden["around"].to_list() == [{"sweep": "true", "joint": "found"}.get(kind)] * 2


def test_a_failing_cell_is_named_and_leaves_no_file(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "cell.parquet"
    with pytest.raises(CellError, match=r"cells/flat-float32/block.1/from1/.*non-finite"):
        run(made, out, with_solver={"kind": "chapter", "learning_rate": 1e38})
    with pytest.raises(CellError, match=r"flat-float32.*allowed: 1 to 12"):
        run(made, out, padding="n_ctx", texts=["words " * 30])
    with pytest.raises(CellError, match=r"flat-float32.*every position visible"):
        run(made, out, with_solver={"kind": "sequential"})
    assert list(tmp_path.iterdir()) == []
