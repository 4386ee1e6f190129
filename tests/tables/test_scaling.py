"""Scaling: the right shares at the right places, and nothing mixed that must stay apart."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from tests.synthetic_recovery import FakeModel, cell_rows, frame, swept_rows
from tokinfo.report.figures.scaling import draw_scaling
from tokinfo.tables.intervals import clustered_share
from tokinfo.tables.scaling import AXES, COLUMNS, FEWEST, points, write
from tokinfo.workflow import rules

Rows = list[dict[str, Any]]


def wide(width: int, hidden: float, **facts: Any) -> tuple[FakeModel, dict[str, Any]]:
    name = f"flat-{width}"
    model = FakeModel(name, name, "mixer-flat", depth=1, hidden=hidden, state="untrained")
    return model, {"width": width, "training_share": None, **facts}


def study() -> Rows:
    """Widths, depths, hidden tokens and one training run, by descent and by sweeps."""
    rows: Rows = []
    for width, hidden in ((32, 0.0), (128, 0.5), (512, 1.0)):
        model, facts = wide(width, hidden)
        rows += cell_rows(model, **facts) + swept_rows(model, there=1.0, **facts)
    deep = FakeModel("deep", "deep", "llama", depth=16, hidden=0.4, state="untrained")
    for block in (1, 2, 4, 8):
        rows += cell_rows(deep, block=block, width=64) + swept_rows(deep, block=block, width=64)
    for mask in ("2:", "3:"):
        rows += cell_rows(deep, mask=mask, width=64)
    # Seven widths of `-1` would be a longer line, and it hides another number in each prompt.
    rows += cell_rows(deep, mask="-1", width=64)
    for share, hidden in ((0.0, 0.9), (0.1, 0.3), (0.3, 0.0), (1.0, 0.0)):
        model = FakeModel(f"t-{share}", "t", "llama", depth=4, hidden=hidden)
        facts = {"width": 64, "training_share": share, "training_tokens": int(1000 * share)}
        facts["held_out_loss"] = 8.0 - 4 * share
        rows += cell_rows(model, **facts) + swept_rows(model, there=1.0, **facts)
    return rows


@pytest.fixture(scope="module")
def recovery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scaling") / "recovery.parquet"
    frame(study()).write_parquet(path)
    return path


def test_a_point_is_the_share_of_its_hidden_tokens_with_their_interval(recovery: Path) -> None:
    rows = points(recovery, "width")
    table = pl.read_parquet(recovery).filter(~pl.col("visible"))
    assert {row["at"] for row in rows} == {32, 128, 512}
    for row in rows:
        chosen = table.filter(pl.col("width") == row["at"], pl.col("solver") == row["search"])
        well = (
            chosen["identified"] == "identifiable" if row["kind"] == "sweep" else chosen["correct"]
        )
        expected = clustered_share([int(v) for v in well.to_list()], [1] * len(chosen))
        assert (row["share"], row["low"], row["high"]) == (
            *(expected.value, expected.low, expected.high),
        )
        assert (row["prompts"], row["tokens"], row["mask"]) == (10, 10, "1:")


def test_seeds_add_no_prompts(tmp_path: Path) -> None:
    rows: Rows = []
    for width in (32, 128, 512):
        for seed in range(3):
            model, facts = wide(width, 0.5)
            rows += cell_rows(model, seed=seed, **facts)
    for row in rows:
        row["correct"] = (row["prompt_id"] + row["seed"]) % 2 == 0
    frame(rows).write_parquet(tmp_path / "recovery.parquet")
    expected = clustered_share([2, 1] * 5, [3] * 10)
    for row in points(tmp_path / "recovery.parquet", "width"):
        assert (row["prompts"], row["tokens"]) == (10, 30)
        assert (row["share"], row["low"], row["high"]) == (
            *(expected.value, expected.low, expected.high),
        )


def test_a_sweep_counts_as_identifiable_and_never_as_found(recovery: Path) -> None:
    (found,) = (r for r in points(recovery, "width") if r["at"] == 32 and r["kind"] == "adam")
    (there,) = (r for r in points(recovery, "width") if r["at"] == 32 and r["kind"] == "sweep")
    # A sweep's `correct` is true on every row: the other tokens were known.
    assert found["share"] < 0.3
    assert there["share"] == 1.0


def test_what_the_same_search_found_of_visible_tokens_stands_beside(recovery: Path) -> None:
    table = pl.read_parquet(recovery).filter("visible", pl.col("solver") == "adam")
    for row in points(recovery, "width"):
        chosen = table.filter(pl.col("width") == row["at"])
        # In a sweep the visible tokens are known, not found.
        expected = None if row["kind"] == "sweep" else chosen["correct"].mean()
        assert row["visible_share"] == expected


def test_depth_and_hidden_tokens_are_taken_along_one_model(recovery: Path) -> None:
    assert {row["panel"] for row in points(recovery, "depth")} == {"deep (untrained)"}
    assert sorted({row["at"] for row in points(recovery, "depth")}) == [1, 2, 4, 8]
    hidden = points(recovery, "hidden")
    assert sorted({row["at"] for row in hidden}) == [1, 2, 3]
    by_mask = {row["at"]: row["tokens"] for row in hidden if row["kind"] == "adam"}
    # Of one prompt every token is hidden, so that nothing visible depends on any.
    assert by_mask == {1: 10, 2: 20, 3: 27}


def test_training_keeps_the_order_of_the_run_and_its_losses(recovery: Path) -> None:
    rows = [row for row in points(recovery, "training") if row["kind"] == "adam"]
    assert [row["at"] for row in rows] == [0, 0.1, 0.3, 1]
    assert [row["held_out_loss"] for row in rows] == pytest.approx([8, 7.6, 6.8, 4])
    assert [row["training_tokens"] for row in rows] == [0, 100, 300, 1000]
    assert rows[0]["share"] > rows[1]["share"] >= rows[2]["share"]


@pytest.mark.parametrize("other", [{"mask": "3:"}, {"metric": "l2"}, {"prompts": "more"}])
def test_settings_are_never_mixed(tmp_path: Path, other: dict[str, Any]) -> None:
    rows: Rows = []
    for width in (32, 64, 128, 256):
        model, facts = wide(width, 0.5)
        rows += cell_rows(model, **facts)
        if width < 256:
            rows += cell_rows(model, **facts, **other)
    frame(rows).write_parquet(tmp_path / "r.parquet")
    found = points(tmp_path / "r.parquet", "width")
    # The setting with four widths is taken, and nothing of the one with three.
    assert [(row["at"], row["tokens"]) for row in found] == [
        *((32, 10), (64, 10), (128, 10), (256, 10)),
    ]


def test_blocks_read_at_once_are_no_points_of_the_line_of_single_ones(tmp_path: Path) -> None:
    deep = FakeModel("deep", "deep", "llama", depth=16, hidden=0.4, state="untrained")
    rows: Rows = []
    for block in (2, 3, 4, 5):
        for site in (f"kv.{block}", f"kv.1-{block}")[: 2 if block < 5 else 1]:
            rows += cell_rows(deep, block=block, width=64, site=site)
    frame(rows).write_parquet(tmp_path / "r.parquet")
    found = points(tmp_path / "r.parquet", "depth")
    assert [(row["site"], row["at"]) for row in found] == [("kv.*", at) for at in (2, 3, 4, 5)]
    assert {row["tokens"] for row in found} == {10}
    frame([row for row in rows if row["site"][4:5] == "-"]).write_parquet(tmp_path / "s.parquet")
    assert {row["site"] for row in points(tmp_path / "s.parquet", "depth")} == {"kv.1-*"}


def test_controls_are_left_out(tmp_path: Path) -> None:
    rows: Rows = []
    for width in (32, 64, 128):
        model, facts = wide(width, 0.5)
        rows += cell_rows(model, target="shuffled", **facts)
    frame(rows).write_parquet(tmp_path / "r.parquet")
    assert points(tmp_path / "r.parquet", "width") == []


def test_an_unknown_axis_is_an_error(recovery: Path) -> None:
    with pytest.raises(ValueError, match="axis 'colour': allowed: width, depth"):
        points(recovery, "colour")


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_is_tabulated_and_drawn_and_twice_the_same(
    recovery: Path, tmp_path: Path, axis: str
) -> None:
    rows = points(recovery, axis)
    write(rows, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert tuple(written[0]) == COLUMNS
    assert len(written) == len(rows) > FEWEST
    for number in (1, 2):
        draw_scaling(rows, axis, tmp_path / f"{number}.svg", tmp_path / f"{number}.png")
    assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()
    with Image.open(tmp_path / "1.png") as image:
        assert image.width > 1000


def test_two_values_are_no_line(tmp_path: Path) -> None:
    rows: Rows = []
    for width in (32, 64):
        model, facts = wide(width, 0.5)
        rows += cell_rows(model, **facts)
    frame(rows).write_parquet(tmp_path / "r.parquet")
    found = points(tmp_path / "r.parquet", "width")
    assert found == []
    draw_scaling(found, "width", tmp_path / "e.svg", tmp_path / "e.png")
    write(found, tmp_path / "e.csv")
    assert (tmp_path / "e.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_the_workflow_knows_the_axes_without_importing_them() -> None:
    assert tuple(AXES) == rules.SCALING
    assert FEWEST == rules.FEWEST
