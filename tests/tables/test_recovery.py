"""The long table holds exactly the cells requested; the summary says what its rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.synthetic_recovery import (
    FakeModel,
    cell_rows,
    default_models,
    frame,
    swept_rows,
    write_tables,
)
from tokinfo.study.cell import Cell
from tokinfo.tables import recovery, summary
from tokinfo.tables.intervals import clustered_share
from tokinfo.tables.recovery import TableError, collect, scan
from tokinfo.tables.schema import CELL_KEYS, RECOVERY_SCHEMA
from tokinfo.tables.summary import shares, shares_by_cell, summarise

FLAT = FakeModel("flat", "flat", "mixer-flat", 8, hidden=0.6)


def write_cell(path: Path, rows: list[dict[str, Any]], **metadata: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame(rows).write_parquet(path, metadata={"tokinfo": json.dumps(metadata)})
    return path


def gather(cells: list[Path], directory: Path) -> pl.DataFrame:
    collect(cells, directory / "recovery.parquet")
    return pl.read_parquet(directory / "recovery.parquet")


def test_cell_keys_are_the_fields_of_a_cell() -> None:
    assert set(CELL_KEYS) == set(Cell.model_fields)
    assert set(CELL_KEYS) < set(RECOVERY_SCHEMA)


# --- collect ------------------------------------------------------------------------------


def test_collect_reads_exactly_the_listed_cells(tmp_path: Path) -> None:
    wanted = [
        write_cell(tmp_path / "cells" / f"{mask}.parquet", cell_rows(FLAT, mask=mask))
        for mask in ("1:", "3:")
    ]
    write_cell(tmp_path / "cells" / "stale.parquet", cell_rows(FLAT, mask="-1"))
    table = gather(wanted, tmp_path)
    assert set(table["mask"]) == {"1:", "3:"}
    assert table.schema == RECOVERY_SCHEMA


def test_cells_read_a_few_at_a_time_make_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [
        write_cell(
            tmp_path / f"{seed}-{block}.parquet",
            cell_rows(FLAT, seed=seed, block=block),
            cell={"seed": seed, "block": block},
            settings={"solver": "adam", "block": block},
        )
        for seed in range(7)
        for block in (1, 2, 10)
    ]
    whole = gather(cells, tmp_path)
    by_cell = shares(scan(tmp_path / "recovery.parquet"), CELL_KEYS)
    metadata = json.loads(pl.read_parquet_metadata(tmp_path / "recovery.parquet")["tokinfo"])
    assert metadata["cells"] == 21
    # What many cells share is kept once; which cell it was, the columns say.
    assert metadata["of_cells"] == [
        {"settings": {"solver": "adam", "block": n}} for n in (1, 2, 10)
    ]

    monkeypatch.setattr(recovery, "AT_ONCE", 4)
    for module in (recovery, summary):
        monkeypatch.setattr(module, "ROW_GROUP", 50)
    assert_frame_equal(gather(cells, tmp_path), whole, check_exact=True)
    assert not list(tmp_path.glob(".*"))
    assert_frame_equal(shares_by_cell(tmp_path / "recovery.parquet"), by_cell)
    summarise(tmp_path / "recovery.parquet", tmp_path / "s.parquet", tmp_path / "s.csv")
    assert_frame_equal(pl.read_parquet(tmp_path / "s.parquet"), by_cell)


def test_rows_that_are_not_in_order_are_summarised_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*cell_rows(FLAT, block=1), *cell_rows(FLAT, block=2)]
    mixed = frame([*rows[::2], *rows[1::2]])
    monkeypatch.setattr(summary, "ROW_GROUP", 10)
    mixed.write_parquet(tmp_path / "recovery.parquet")
    found = shares_by_cell(tmp_path / "recovery.parquet")
    assert_frame_equal(found, shares(mixed.lazy(), CELL_KEYS))
    assert len(found) == 4


def test_collect_does_not_depend_on_the_order_of_cells_or_rows(tmp_path: Path) -> None:
    cells = []
    for block in (1, 2, 10):
        rows = cell_rows(FLAT, block=block)
        cells.append(write_cell(tmp_path / f"{block}.parquet", list(reversed(rows))))
    first = gather(cells, tmp_path / "a")
    second = gather(cells[::-1], tmp_path / "b")
    assert first.equals(second)
    assert first["site"].unique(maintain_order=True).to_list() == ["block.1", "block.2", "block.10"]
    assert first.select("prompt_id", "position").head(3).rows() == [(0, 0), (0, 1), (0, 2)]


def test_metadata_of_the_cells_is_kept_once(tmp_path: Path) -> None:
    cells = [
        write_cell(tmp_path / f"{seed}.parquet", cell_rows(FLAT, seed=seed), versions={"a": 1})
        for seed in (0, 1)
    ]
    gather(cells, tmp_path)
    metadata = json.loads(pl.read_parquet_metadata(tmp_path / "recovery.parquet")["tokinfo"])
    assert metadata == {"cells": 2, "of_cells": [{"versions": {"a": 1}}]}


def test_no_cells_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no cells"):
        gather([], tmp_path)


def spoil(kind: str, path: Path) -> None:
    table = pl.read_parquet(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "no bytes":
        path.write_bytes(b"")
    elif kind == "not there":
        path.unlink()
    elif kind == "column missing":
        table.drop("margin").write_parquet(path)
    elif kind == "column unknown":
        table.with_columns(colour=pl.lit("red")).write_parquet(path)
    elif kind == "column of another type":
        table.with_columns(pl.col("position").cast(pl.String)).write_parquet(path)
    elif kind == "no rows":
        table.clear().write_parquet(path)
    elif kind == "two cells":
        pl.concat([table, frame(cell_rows(FLAT, seed=9))]).write_parquet(path)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "cannot be read as parquet"),
        ("no bytes", "cannot be read as parquet"),
        ("not there", "no such cell file"),
        ("column missing", "missing: margin"),
        ("column unknown", "unknown: colour"),
        ("column of another type", "position is String, not Int64"),
        ("no rows", "holds 0 cells"),
        ("two cells", "holds 2 cells"),
    ],
)
def test_a_bad_cell_file_is_one_line_that_names_it(tmp_path: Path, kind: str, says: str) -> None:
    good = write_cell(tmp_path / "good.parquet", cell_rows(FLAT))
    bad = write_cell(tmp_path / "bad.parquet", cell_rows(FLAT, mask="3:"))
    spoil(kind, bad)
    with pytest.raises(TableError) as caught:
        gather([good, bad], tmp_path / "tables")
    assert str(caught.value).startswith(str(bad))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tables").exists(), "nothing is left behind"


def test_a_file_damaged_inside_is_named(tmp_path: Path) -> None:
    good = write_cell(tmp_path / "good.parquet", cell_rows(FLAT))
    bad = write_cell(tmp_path / "bad.parquet", cell_rows(FLAT, mask="3:"))
    data = bytearray(bad.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)  # footer intact, pages not
    bad.write_bytes(data)
    with pytest.raises(TableError, match=r"bad\.parquet: cannot be read") as caught:
        gather([good, bad], tmp_path)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.parquet", "good.parquet"]


def test_the_same_cell_twice_is_an_error(tmp_path: Path) -> None:
    one = write_cell(tmp_path / "one.parquet", cell_rows(FLAT))
    two = write_cell(tmp_path / "two.parquet", cell_rows(FLAT))
    with pytest.raises(TableError, match=r"two\.parquet: the same cell as .*one\.parquet"):
        gather([one, two], tmp_path)


# --- summarise ----------------------------------------------------------------------------


def test_summary_counts_by_hand(tmp_path: Path) -> None:
    rows = cell_rows(FLAT, mask="1:", solver="chapter", texts=("a b c", "d e f"))
    for row, correct in zip(rows, [True, True, False, False, True, True], strict=True):
        found = row["true_id"] if correct else row["true_id"] + 1000
        row |= {"found_id": found, "correct": correct, "in_top5": True, "in_prompt": correct}
        row |= {"published_correct": correct, "seconds": 2.0, "first_loss": 8.0}
        row["loss"] = 1.0 if row["prompt_id"] == 0 else 3.0
    summary, _ = write_tables(frame(rows), tmp_path)
    hidden, visible = pl.read_parquet(summary).to_dicts()
    assert (hidden["visible"], hidden["positions"], hidden["n_prompts"]) == (False, 2, 2)
    assert (visible["visible"], visible["positions"], visible["n_prompts"]) == (True, 4, 2)
    assert (hidden["top1"], visible["top1"], visible["top5"]) == (0.5, 0.75, 1.0)
    assert (hidden["published"], hidden["unordered"]) == (0.5, 0.5)
    assert (hidden["whole"], visible["whole"], visible["prompt_whole"]) == (0.5, 0.5, 0.0)
    assert hidden["interval"] == "wilson"
    expected = clustered_share([1, 2], [2, 2])
    assert (visible["top1_low"], visible["top1_high"]) == (expected.low, expected.high)
    assert (visible["loss"], visible["first_loss"], visible["descent"]) == (2.0, 8.0, 0.25)
    assert (visible["seconds"], visible["steps"]) == (2.0, 300.0)
    assert hidden["chance_top1"] == 1 / 4096
    assert hidden["chance_top5"] == 5 / 4096
    assert hidden["chance_unordered"] == pytest.approx(3 / 4096, rel=1e-3)


def test_whole_prompt_counts_hidden_and_visible_together(tmp_path: Path) -> None:
    rows = cell_rows(FLAT, mask="1:", texts=("a b", "c d"))
    for row in rows:
        row["correct"] = row["prompt_id"] == 0 or row["visible"]
    summary, _ = write_tables(frame(rows), tmp_path)
    hidden, visible = pl.read_parquet(summary).to_dicts()
    assert (hidden["whole"], visible["whole"]) == (0.5, 1.0)
    assert hidden["prompt_whole"] == visible["prompt_whole"] == 0.5


def test_verdicts_ranks_and_bits_are_summarised_where_they_exist(tmp_path: Path) -> None:
    rows = cell_rows(FLAT, mask="1:", texts=("a b c", "d e"))
    for row in rows:
        row["verdict"] = "certified" if row["prompt_id"] == 0 else "search failure"
        if not row["visible"]:
            row |= {"rank": 1 + row["prompt_id"], "margin": 4.0, "bits": 12.0}
    summary, _ = write_tables(frame(rows), tmp_path)
    hidden, visible = pl.read_parquet(summary).to_dicts()
    assert hidden["certified"] == visible["certified"] == 0.5, "a share of prompts, not positions"
    assert (hidden["rank_first"], hidden["margin"], hidden["bits"]) == (0.5, 4.0, 12.0)
    assert [visible[name] for name in ("rank_first", "margin", "bits")] == [None] * 3
    assert hidden["identifiable"] is None, "certified says nothing of identifiable"
    for row in rows:
        if not row["visible"]:
            row["identified"] = "identifiable" if row["prompt_id"] == 0 else "ambiguous"
    summary, _ = write_tables(frame(rows), tmp_path)
    hidden, visible = pl.read_parquet(summary).to_dicts()
    assert (hidden["identifiable"], hidden["certified"]) == (0.5, 0.5)
    assert visible["identifiable"] is None


def test_recovered_needs_all_of_found_certified_and_identifiable(tmp_path: Path) -> None:
    rows = swept_rows(FLAT, around="found", texts=("a b", "c d", "e f", "g h", "i j"))
    hidden = [row for row in rows if not row["visible"]]
    good = {"correct": True, "verdict": "certified", "identified": "identifiable"}
    lacks = ({}, {"correct": False}, {"verdict": "undecided"}, {"identified": "ambiguous"})
    for row, change in zip(hidden, (*lacks, {"identified": None}), strict=True):
        row |= good | change
    summary, _ = write_tables(frame(rows), tmp_path)
    visible = {row["visible"]: row for row in pl.read_parquet(summary).to_dicts()}
    assert visible[False]["recovered"] == 0.25, "one of four; the fifth was not swept"
    assert visible[False]["recovered_high"] > 0.25
    assert visible[False]["around"] == "found"
    assert visible[True]["recovered"] is None


def test_a_sweep_around_the_true_prompt_recovers_nothing(tmp_path: Path) -> None:
    rows = swept_rows(FLAT, there=1.0, texts=("a b", "c d", "e f"))
    for row, level in zip([r for r in rows if not r["visible"]], (1.0, 2.0, None), strict=True):
        row["noise_threshold"] = float("inf") if level is None else level
    summary, _ = write_tables(frame(rows), tmp_path)
    hidden = pl.read_parquet(summary).filter(~pl.col("visible")).to_dicts()[0]
    assert (hidden["around"], hidden["recovered"], hidden["identifiable"]) == ("true", None, 1.0)
    assert hidden["top1"] == 1.0
    assert (hidden["bits"], hidden["bits_high"], hidden["noise_threshold"]) == (12.0, 12.0, 2.0)


def test_columns_a_solver_does_not_give_are_null(tmp_path: Path) -> None:
    summary, _ = write_tables(frame(cell_rows(FLAT)), tmp_path)
    row = pl.read_parquet(summary).to_dicts()[0]
    for name in (
        *("published", "certified", "identifiable", "recovered", "around", "margin"),
        *("bits", "bits_high", "noise_floor", "noise_threshold"),
    ):
        assert row[name] is None, name


def test_a_restricted_vocabulary_cannot_make_chance_larger_than_one(tmp_path: Path) -> None:
    summary, _ = write_tables(frame(cell_rows(FLAT, vocabulary=3)), tmp_path)
    assert pl.read_parquet(summary)["chance_top5"].to_list() == [1.0, 1.0]


def test_summary_is_reproducible_and_csv_agrees(tmp_path: Path) -> None:
    table = frame([row for model in default_models()[:3] for row in cell_rows(model)])
    table.write_parquet(tmp_path / "recovery.parquet")
    for name in ("a", "b"):
        summarise(
            tmp_path / "recovery.parquet", tmp_path / f"{name}.parquet", tmp_path / f"{name}.csv"
        )
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pl.read_csv(tmp_path / "a.csv").height == 6


def test_pooling_cells_does_not_multiply_prompts(tmp_path: Path) -> None:
    rows = [row for seed in range(20) for row in cell_rows(FLAT, seed=seed)]
    for row in rows:
        row["correct"] = row["prompt_id"] % 2 == 0
    frame(rows).write_parquet(tmp_path / "recovery.parquet")
    hidden = shares(scan(tmp_path / "recovery.parquet"), ["model"]).to_dicts()[0]
    assert (hidden["positions"], hidden["n_prompts"]) == (200, 10)
    assert hidden["top1_high"] - hidden["top1_low"] > 0.5, "ten prompts, however often tried"


def test_a_text_in_several_sets_is_one_prompt(tmp_path: Path) -> None:
    texts = tuple(f"{letter} b" for letter in "uvwxyz")
    rows = []
    for name, held in (("six", texts), ("short", texts[1:5]), ("one", texts[3:4])):
        cell = cell_rows(FLAT, texts=held)
        rows += [row | {"prompts": name, "correct": row["prompt"] < "x"} for row in cell]
    frame(rows).write_parquet(tmp_path / "recovery.parquet")
    hidden = shares(scan(tmp_path / "recovery.parquet"), ["model"]).to_dicts()[0]
    assert (hidden["positions"], hidden["n_prompts"]) == (11, 6)
    expected = clustered_share([1, 2, 2, 0, 0, 0], [1, 2, 2, 3, 2, 1])
    assert (hidden["top1_low"], hidden["top1_high"]) == (expected.low, expected.high)


def test_summarise_names_a_table_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "recovery.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(TableError, match=r"recovery\.parquet: cannot be read"):
        summarise(path, tmp_path / "s.parquet", tmp_path / "s.csv")
    pl.DataFrame({"model": ["a"]}).write_parquet(path)
    with pytest.raises(TableError, match=r"recovery\.parquet: not a recovery table: missing"):
        summarise(path, tmp_path / "s.parquet", tmp_path / "s.csv")


def test_controls_are_in_the_long_table_and_in_no_summary(tmp_path: Path) -> None:
    plain = cell_rows(FLAT)
    control = [row | {"target": "of:other", "correct": True} for row in plain]
    cells = [
        write_cell(tmp_path / f"{number}.parquet", rows)
        for number, rows in enumerate((plain, control))
    ]
    table = gather(cells, tmp_path)
    assert table["target"].unique().sort().to_list() == ["of:other", "own"]
    recovery = tmp_path / "recovery.parquet"
    assert len(scan(recovery).collect()) == len(plain)
    assert len(scan(recovery, controls=True).collect()) == len(plain)
    for name, rows in (("with", table), ("without", frame(plain))):
        rows.write_parquet(recovery)
        summarise(recovery, tmp_path / f"{name}.parquet", tmp_path / f"{name}.csv")
    assert (tmp_path / "with.csv").read_bytes() == (tmp_path / "without.csv").read_bytes()


def test_a_study_of_controls_alone_has_an_empty_summary(tmp_path: Path) -> None:
    recovery = tmp_path / "recovery.parquet"
    frame([row | {"target": "shuffled"} for row in cell_rows(FLAT)]).write_parquet(recovery)
    summarise(recovery, tmp_path / "summary.parquet", tmp_path / "summary.csv")
    assert pl.read_parquet(tmp_path / "summary.parquet").is_empty()


def test_the_summary_gives_mean_prior_bits(tmp_path: Path) -> None:
    rows = swept_rows(FLAT, texts=("a b", "c d"))
    for row in rows:
        if not row["visible"]:
            row |= {"prior_bits": 3.0 + row["prompt_id"], "prior_bits_high": 9.0}
    _, recovery = write_tables(frame(rows), tmp_path)
    hidden, visible = shares(scan(recovery), CELL_KEYS).to_dicts()
    assert (hidden["prior_bits"], hidden["prior_bits_high"]) == (3.5, 9.0)
    assert visible["prior_bits"] is None


@pytest.mark.parametrize("reads", ["read_parquet_schema", "read_parquet"])
def test_a_table_over_which_polars_panics_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    """Of some damaged files polars raises what is no `Exception`."""
    path = tmp_path / "cell.parquet"
    frame(cell_rows(FLAT)).write_parquet(path)

    def panic(*_: object, **__: object) -> None:
        raise pl.exceptions.PanicException("index out of range")

    monkeypatch.setattr(pl, reads, panic)
    with pytest.raises(TableError, match=rf"{path}: cannot be read as parquet \(index out"):
        collect([path], tmp_path / "out.parquet")
