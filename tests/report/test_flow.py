"""The flow map as a table and a figure."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import tokinfo as ti
from tokinfo.examples import tiny_model
from tokinfo.report.figures.flow import draw, flow_map, of_rows
from tokinfo.report.flow import Flow

PROMPT = "The sky is blue."


@pytest.fixture(scope="module")
def flow() -> Flow:
    sites = ["embedding", "block.1", "block.2"]
    return ti.load(*tiny_model()).flow(PROMPT, site=sites, show_progress=False)


def test_nothing_flows_back_and_at_the_embedding_nothing_flows(flow: Flow) -> None:
    embedding, first, _ = flow.maps
    assert first.rows == first.columns == (0, 1, 2, 3, 4)
    assert np.isnan(first.shares[np.tril_indices(5, -1)]).all()
    assert (first.shares[np.triu_indices(5)] > first.floors.max()).all()
    off = embedding.shares[np.triu_indices(5, 1)]
    assert (off == 0).all()


def test_the_table_has_a_row_for_each_pair_that_depends(flow: Flow) -> None:
    table = flow.to_polars()
    assert table.group_by("site").len()["len"].to_list() == [15, 15, 15]
    some = table.row(
        by_predicate=(pl.col("site") == "block.2")
        & (pl.col("hidden") == 1)
        & (pl.col("position") == 3),
        named=True,
    )
    assert some["share"] == flow.maps[2].shares[1, 3]
    assert (some["hidden_token"], some["token"]) == (" sky", " blue")


def test_a_position_that_a_mask_hides_is_no_column() -> None:
    swept = ti.load(*tiny_model()).sweep(PROMPT, site="block.1", visible="2:", show_progress=False)
    one = of_rows(swept.rows)
    assert (one.rows, one.columns) == ((0, 1), (2, 3, 4))
    assert one.shares.shape == (2, 3)


def test_a_cross_marks_what_the_noise_floor_hides(flow: Flow) -> None:
    """Of the embedding's map every pair but a token's own place."""
    figure = draw({"m": flow.maps[:1]})
    marks = [line for axes in figure.axes for line in axes.get_lines() if line.get_marker() == "x"]
    assert len(marks) == 10
    assert not [line for axes in draw({"m": flow.maps[1:2]}).axes for line in axes.get_lines()]


def test_the_reports_figure_takes_the_prompt_with_most_swept_positions(
    flow: Flow, tmp_path: Path
) -> None:
    results = [*flow.results]
    short = ti.load(*tiny_model()).sweep("The sky", site="block.1", show_progress=False)
    rows = [row | {"prompt_id": 1} for result in results for row in result.rows]
    table = pl.DataFrame([*rows, *short.rows], schema=short.to_polars().schema)
    table.write_parquet(tmp_path / "recovery.parquet")
    flow_map(tmp_path / "recovery.parquet", tmp_path / "a.svg", tmp_path / "a.png")
    text = (tmp_path / "a.svg").read_text()
    assert "Which visible positions carry a hidden token?" in text
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1500
        # Drawn: three maps in a line, not a sentence on a strip of paper.
        assert image.height > 450


def test_without_a_sweep_the_figure_says_so(tmp_path: Path) -> None:
    found = ti.load(*tiny_model()).invert(PROMPT, site="block.1", show_progress=False)
    found.to_polars().write_parquet(tmp_path / "recovery.parquet")
    flow_map(tmp_path / "recovery.parquet", tmp_path / "a.svg", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.height < 450


def test_a_share_that_is_none_is_no_number() -> None:
    row = {"site": "block.1", "position": 0, "visible": True, "true_token": "a"}
    one = of_rows([row | {"carried": [None], "carried_floor": [0.0]}])
    assert math.isnan(one.shares[0, 0])
