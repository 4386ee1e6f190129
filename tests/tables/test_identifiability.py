"""What is there is distinguished from what was found, and controls enter neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from tests.synthetic_recovery import FakeModel, cell_rows, default_models, frame, swept_rows
from tokinfo.tables.identifiability import (
    NOISE_SCHEMA,
    finding,
    hidden_rows,
    independent,
    noise_table,
    searches,
    unexplained,
    verdicts,
    write_noise_table,
)
from tokinfo.tables.intervals import clustered_share

FLAT, SMOL = default_models()[0], default_models()[8]


def read(rows: list[dict[str, Any]], directory: Path) -> pl.DataFrame:
    frame(rows).write_parquet(directory / "recovery.parquet")
    return hidden_rows(directory / "recovery.parquet")


def test_hidden_rows_are_of_hidden_positions_and_of_no_control(tmp_path: Path) -> None:
    # A joint search that sweeps nothing says as much about positions as a descent does.
    rows = cell_rows(FLAT, solver="joint") + cell_rows(FLAT, solver="mine")
    rows += cell_rows(FLAT, solver="other", target="shuffled")
    table = read(rows, tmp_path)
    found = dict(table.select("solver", "kind").unique().iter_rows())
    assert found == {"joint": "joint", "mine": "adam"}
    assert not table["visible"].any()


def test_the_finding_compares_the_same_tokens(tmp_path: Path) -> None:
    rows = cell_rows(FLAT) + cell_rows(FLAT, mask=":2") + cell_rows(SMOL, mask="3:")
    rows += swept_rows(FLAT) + swept_rows(FLAT, mask=":2")
    for row in rows:
        if row["solver"] == "sweep" and row["mask"] == "1:" and not row["visible"]:
            row["identified"] = "ambiguous" if row["prompt_id"] < 3 else "identifiable"
        elif row["solver"] == "adam":
            row["correct"] = row["prompt_id"] < 2
    found = finding(read(rows, tmp_path), "adam")
    assert found is not None
    assert (found.settings, found.positions, found.prompts) == (1, 10, 10)
    assert found.identifiable == clustered_share([0] * 3 + [1] * 7, [1] * 10)
    assert found.found == clustered_share([1] * 2 + [0] * 8, [1] * 10)
    assert (found.certified, found.recovered) == (None, None)
    assert finding(read(rows, tmp_path), "joint") is None


def test_the_finding_takes_the_cell_that_found_most_and_pools_no_two_searches(
    tmp_path: Path,
) -> None:
    rows = swept_rows(FLAT)
    for metric, most in (("l1", 2), ("cosine", 5), ("l2", 3)):
        for solver, more in (("adam", 0), ("chapter", 4)):
            cell = cell_rows(FLAT, metric=metric, solver=solver)
            rows += [row | {"correct": row["prompt_id"] < most + more} for row in cell]
    table = read(rows, tmp_path)
    assert searches(table) == [("chapter", "chapter"), ("adam", "adam")]
    for solver, share in (("adam", 0.5), ("chapter", 0.9)):
        found = finding(table, solver)
        assert found is not None
        assert (found.found.value, found.recovered) == (share, None)
        assert found.positions == 10, "no token counts twice"


def test_a_joint_search_is_judged_by_what_it_recovered(tmp_path: Path) -> None:
    rows = swept_rows(FLAT, there=1.0) + swept_rows(FLAT, around="found")
    for row in rows:
        if row["around"] == "found":
            row["correct"] = True
            row["verdict"] = "certified" if row["prompt_id"] < 6 else "search failure"
            if not row["visible"]:
                row["identified"] = "identifiable" if row["prompt_id"] < 4 else "ambiguous"
    found = finding(read(rows, tmp_path), "joint")
    assert found is not None
    assert (found.found.value, found.identifiable.value) == (1.0, 1.0)
    assert found.certified is not None
    assert found.recovered is not None
    assert (found.certified.value, found.recovered.value) == (0.6, 0.4)


def test_claims_around_found_prompts_are_counted_right_and_wrong(tmp_path: Path) -> None:
    rows = swept_rows(FLAT, there=1.0) + swept_rows(FLAT, around="found")
    for row in rows:
        row["claimed_id"] = None
        if not row["visible"] and row["prompt_id"] < 4:
            row["claimed_id"] = row["true_id"] + (row["prompt_id"] == 0)
    found = {row["around"]: row for row in verdicts(read(rows, tmp_path))}
    assert (found["found"]["claims"], found["found"]["claims_wrong"]) == (4, 1)
    # Around the true prompt nobody claims anything.
    assert (found["true"]["claims"], found["true"]["claims_wrong"]) == (0, 0)


def test_a_control_that_comes_out_otherwise_is_not_as_it_must(tmp_path: Path) -> None:
    rows = swept_rows(FLAT, mask=":2") + swept_rows(SMOL, mask=":2")
    for row in rows:
        if row["model"] == SMOL.name and row["position"] == 3 and row["prompt_id"] == 0:
            row |= {"identified": "identifiable", "bits": 9.0, "bits_high": 9.0, "candidates": 1}
    table = read(rows, tmp_path)
    assert {row["model"]: row["as_must"] for row in independent(table)} == {
        "flat": True,
        "smollm2": False,
    }
    assert verdicts(table) == []


def test_a_target_that_nothing_explains_must_give_no_certificate(tmp_path: Path) -> None:
    rows = []
    for target in ("shuffled", "of:other"):
        control = swept_rows(FLAT, around="found", mask="2:", texts=("a b c", "d e f", "g h i"))
        rows += [row | {"target": target, "verdict": "unexplained"} for row in control]
    for row in rows:
        if not row["visible"]:
            row |= {"identified": "excluded", "correct": row["prompt_id"] == 1}
    read(rows, tmp_path)
    recovery = tmp_path / "recovery.parquet"
    for row in unexplained(recovery):
        assert (row["n_prompts"], row["certified"], row["as_must"]) == (3, 0, True)
        assert (row["positions"], row["swept"], row["found"]) == (6, 6, 2)
        assert row["identifiable"] == 0
    first, second = rows[0], next(row for row in rows if row["target"] == "of:other")
    changes = ({"verdict": "certified"}, {"identified": "identifiable"})
    for spoilt, change in zip((first, second), changes, strict=True):
        before = dict(spoilt)
        spoilt |= change
        read(rows, tmp_path)
        bad = {row["target"] for row in unexplained(recovery) if not row["as_must"]}
        assert bad == {spoilt["target"]}
        spoilt |= before


def test_controls_change_no_share_no_table_and_no_finding(tmp_path: Path) -> None:
    rows = swept_rows(FLAT) + swept_rows(FLAT, around="found") + cell_rows(FLAT)
    alone = read(rows, tmp_path)
    controls = [
        row | {"target": "shuffled", "correct": True, "identified": "identifiable"}
        for row in (*swept_rows(FLAT), *swept_rows(FLAT, around="found"), *cell_rows(FLAT))
    ]
    both = read(rows + controls, tmp_path)
    assert both.equals(alone)
    assert len(unexplained(tmp_path / "recovery.parquet")) == 3


def test_verdicts_give_mean_bits_beside_prior_bits(tmp_path: Path) -> None:
    rows = swept_rows(FLAT, texts=("a b", "c d"))
    for row in rows:
        if not row["visible"]:
            bits = 4.0 + 2 * row["prompt_id"]
            row |= {"prior_bits": bits, "prior_bits_high": bits + 1, "prior_entropy": 9.5}
    (found,) = verdicts(read(rows, tmp_path))
    assert (found["prior_bits"], found["prior_bits_high"]) == (5.0, 6.0)


def test_verdicts_count_positions_and_prompts(tmp_path: Path) -> None:
    rows = swept_rows(FLAT, around="found", mask="2:", texts=("a b c", "d e f"))
    for row in rows:
        row["verdict"] = "certified" if row["prompt_id"] == 0 else "undecided"
        if not row["visible"]:
            row |= {"identified": ("identifiable", "ambiguous")[row["position"]], "margin": 3.0}
            row |= {"noise_floor": 0.0 if row["prompt_id"] else 1.0}
    (found,) = verdicts(read(rows, tmp_path))
    names = ("identifiable", "ambiguous", "excluded", "certified", "search failure", "undecided")
    assert [found[name] for name in names] == [2, 2, 0, 1, 0, 1]
    assert found["margin_floors"] == 3.0, "an infinite one counts, as the largest"


def test_the_noise_table_is_medians_with_intervals_over_prompts(tmp_path: Path) -> None:
    rows = swept_rows(FLAT) + swept_rows(FLAT, mask=":2") + swept_rows(SMOL, texts=("a b", "c d"))
    levels = [0.0, 0.5, 1, 2, 3, 4, 5, 6, 7, float("inf")]
    for row in rows:
        if not row["visible"] and row["model"] == "flat" and row["mask"] == "1:":
            row["noise_threshold"] = levels[row["prompt_id"]]
    table = noise_table(read(rows, tmp_path))
    flat, smol = table.to_dicts()
    assert (flat["model"], flat["positions"], flat["n_prompts"]) == ("flat", 10, 10)
    assert (flat["threshold"], flat["none"], flat["above"]) == (3.0, 1, 1)
    assert flat["step"] == 1.5, "the grid's step stands beside what it limits"
    assert 0 < flat["threshold_low"] < 3 < flat["threshold_high"] < float("inf")
    assert smol["n_prompts"] == 2
    assert smol["threshold_low"] is smol["threshold_high"] is None, "two prompts allow none"


def test_a_text_in_several_sets_is_one_prompt(tmp_path: Path) -> None:
    rows = swept_rows(FLAT, texts=("a b", "c d")) + cell_rows(FLAT, texts=("a b", "c d"))
    rows += [row | {"prompts": "again"} for row in rows]
    found = finding(read(rows, tmp_path), "adam")
    assert found is not None
    assert (found.settings, found.positions, found.prompts) == (2, 4, 2)
    # The same text twice in a set, too: seven positions, but five texts, allow no interval.
    rows = swept_rows(FLAT, texts=("a b", "a b", "a b", "c d", "e f", "g h", "i j"))
    (row,) = noise_table(read(rows, tmp_path)).to_dicts()
    assert (row["positions"], row["n_prompts"], row["threshold_low"]) == (7, 5, None)


def test_without_noise_the_table_is_its_header(tmp_path: Path) -> None:
    frame(cell_rows(FLAT)).write_parquet(tmp_path / "recovery.parquet")
    write_noise_table(tmp_path / "recovery.parquet", tmp_path / "noise.csv")
    assert (tmp_path / "noise.csv").read_text() == ",".join(NOISE_SCHEMA) + "\n"


def test_a_model_may_have_no_hidden_rows_at_all(tmp_path: Path) -> None:
    table = read(cell_rows(FakeModel("a", "a", "llama", 2), mask=":"), tmp_path)
    assert table.is_empty()
    assert finding(table, "adam") is None
    assert verdicts(table) == independent(table) == []
