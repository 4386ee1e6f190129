"""What was not measured is null in a cell's file, and no share counts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.tiny import CELL
from tokinfo.cell import run_cell
from tokinfo.models.preparing import prepare
from tokinfo.solvers.decoding import write_inverse_gram
from tokinfo.study.cell import CellSettings
from tokinfo.study.sources import Model, TransformerSource
from tokinfo.tables.recovery import collect
from tokinfo.tables.summary import summarise
from tokinfo.text.tokenizer import train_tokenizer

MEASURED = ["found_id", "found_token", "top5_ids", "top5_tokens", "correct", "in_top5", "in_prompt"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("measured")
    (root / "text.txt").write_text("\n".join(f"some {i} words and others" for i in range(99)))
    train_tokenizer(root / "text.txt", 300, root / "words")
    source = TransformerSource(d_model=32, blocks=2, heads=4, n_ctx=12, tokenizer="t")
    model = Model(source="llama", state="untrained")
    prepare(source, model, 1, root / "model", tokenizer=root / "words", facts={"n_ctx": 12})
    write_inverse_gram(root / "model", root / "decoder.safetensors")
    return root


def run(made: Path, out: Path, mask: str, solver: dict[str, Any], **cell: Any) -> pl.DataFrame:
    """Write one cell of two prompts; return its rows."""
    given = {**CELL, "mask": mask, "solver": solver["kind"], **cell}
    texts = ["some words and others", "others and some"]
    settings = {"cell": given, "solver": solver, "prompts": texts, "source": "llama"}
    settings |= {"state": "untrained", "quantization": "float32"}
    decoder = made / "decoder.safetensors"
    run_cell(CellSettings.model_validate(settings), made / "model", decoder, out, device="cpu")
    return pl.read_parquet(out)


def hidden_summary(cells: list[Path], directory: Path) -> list[dict[str, Any]]:
    collect(cells, directory / "recovery.parquet")
    summarise(directory / "recovery.parquet", directory / "s.parquet", directory / "s.csv")
    return pl.read_parquet(directory / "s.parquet").filter(~pl.col("visible")).to_dicts()


@pytest.mark.parametrize("settings", [{}, {"first": 1}])
def test_a_sweep_has_found_what_it_visited_and_nothing_else(
    settings: dict[str, Any], made: Path, tmp_path: Path
) -> None:
    frame = run(made, tmp_path / "cell.parquet", "2:", {"kind": "sweep", **settings})
    visited = pl.col("position") < (1 if settings else 2)
    for name in MEASURED:
        assert frame.filter(visited)[name].null_count() == 0, name
        assert frame.filter(~visited)[name].is_null().all(), name
    for name in ("loss", "first_loss", "found_loss", "verdict"):
        assert frame[name].is_null().all(), f"{name}: it finds no prompt"
    (row,) = hidden_summary([tmp_path / "cell.parquet"], tmp_path)
    assert row["certified"] is row["prompt_whole"] is None
    assert (row["whole"] is None) == bool(settings)


def test_tokens_that_nothing_visible_depends_on_are_in_no_share(made: Path, tmp_path: Path) -> None:
    cells = []
    for solver in ({"kind": "sweep"}, {"kind": "adam", "steps": 3}):
        cells.append(tmp_path / f"{solver['kind']}.parquet")
        frame = run(made, cells[-1], ":2", solver)
        assert (frame["independent"] == ~frame["visible"]).all()
    assert hidden_summary(cells, tmp_path) == []
    # Of the hidden tokens 0 and those behind 2, the first alone can be found.
    frame = run(made, tmp_path / "cell.parquet", "1:3", {"kind": "sweep"})
    assert len(frame.filter(~pl.col("visible"))) > 2
    (row,) = hidden_summary([tmp_path / "cell.parquet"], tmp_path)
    assert (row["positions"], row["top1"], row["identifiable"]) == (2, 1.0, 1.0)


@pytest.mark.parametrize(
    ("mask", "changes", "first"),
    [
        (":2", {"padding": "n_ctx"}, 2),
        # Pads behind the prompt are visible, though they have no rows.
        ("2:", {"padding": "n_ctx"}, 12),
        ("-1", {"padding": "n_ctx"}, 12),
        (":2", {"causal": False}, 12),
        ("1:", {"site": "embedding"}, 0),
    ],
)
def test_what_nothing_depends_on_follows_from_mask_site_and_causality(
    mask: str, changes: dict[str, Any], first: int, made: Path, tmp_path: Path
) -> None:
    frame = run(made, tmp_path / "c.parquet", mask, {"kind": "adam", "steps": 1}, **changes)
    expected = ~frame["visible"] & (frame["position"] >= first)
    assert frame["independent"].to_list() == expected.to_list()


def test_the_step_of_the_ratios_stands_beside_the_noise_at_which_a_token_is_lost(
    made: Path, tmp_path: Path
) -> None:
    noise = {"lowest": 1e-4, "highest": 1e2, "levels": 25, "draws": 1}
    frame = run(made, tmp_path / "a.parquet", "1:", {"kind": "sweep", "noise": noise})
    assert frame["noise_step"].to_list() == pytest.approx([10 ** (6 / 24)] * len(frame))
    ratios = [1e-4 * 10 ** (n / 4) for n in range(25)]
    (level, *_) = frame["noise_threshold"].drop_nulls()
    assert min(abs(level / ratio - 1) for ratio in ratios) < 1e-9, "one of the ratios tried"
    frame = run(made, tmp_path / "b.parquet", "1:", {"kind": "sweep"})
    assert frame["noise_step"].is_null().all()
