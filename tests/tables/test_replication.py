"""Every verdict on a row of the chapter is computed, from runs, sweeps and what is stated."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compared_rows import FOUND, HIDDEN, comparison, runs, sweeps, table
from tests.synthetic_recovery import frame
from tokinfo.tables.intervals import clopper_pearson
from tokinfo.tables.replication import REPLICATION_SCHEMA, counts, replication
from tokinfo.tables.verdicts import OPTIMISER, VERDICTS


@pytest.mark.parametrize(
    ("row", "outcomes", "identified", "expected", "sure"),
    [
        (FOUND, [True, True, True], None, "agrees", False),
        (FOUND, [True] * 6, "identifiable", "agrees", True),
        (FOUND, [False, False, True], "identifiable", "differs", False),
        (FOUND, [False] * 6, None, "differs", True),
        (FOUND, [True, False], None, "undecided", False),
        (HIDDEN, [True, False], "identifiable", "undecided", False),
        (FOUND, [True] * 5, None, "agrees", False),
        # A stated share of 0.8 or more: one run without is a matter of 20 %.
        ("width8192-untrained-share", [False], None, "agrees", False),
        ("width8192-untrained-share", [False] * 4, None, "differs", False),
        ("width8192-untrained-share", [False] * 5, None, "differs", True),
        (HIDDEN, [False] * 6, None, "agrees", True),
        (HIDDEN, [False] * 6, "ambiguous", "agrees", True),
        (HIDDEN, [False] * 6, "identifiable", OPTIMISER, True),
        (HIDDEN, [True, True, False], "identifiable", "differs", False),
        ("width4096-untrained-share", [True] + [False] * 4, "identifiable", "agrees", False),
        ("width8192-untrained-share", [True] + [False] * 9, None, "differs", True),
        ("width8192-untrained-share", [True] * 20, None, "agrees", True),
    ],
)
def test_a_verdict_follows_from_runs_and_sweeps(
    row: str,
    outcomes: list[bool],
    identified: str | None,
    expected: str,
    sure: bool,
    tmp_path: Path,
) -> None:
    published = runs(outcomes)
    others = [] if identified is None else sweeps(published, identified)
    (made,) = table(published + others, [comparison(row, published, others)], tmp_path)
    assert (made["verdict"], made["settled"]) == (expected, sure)
    share = clopper_pearson(sum(outcomes), len(outcomes))
    assert (made["found"], made["found_low"], made["found_high"]) == (
        share.value,
        share.low,
        share.high,
    )
    assert (made["runs"], made["runs_found"]) == (len(outcomes), sum(outcomes))
    assert made["initialisations"] == len(outcomes)
    assert (made["reason"], made["command"]) == ("", "")
    if identified is not None:
        assert made["swept"] == len(outcomes)
        assert made["identifiable"] == (identified == "identifiable")
        assert (made["margin"], made["noise_floor"], made["bits"]) == (30.0, 0.5, 12.0)


def test_a_row_that_is_not_run_says_why_and_what_would_run_it(tmp_path: Path) -> None:
    published = runs([True])
    hub = comparison(HIDDEN, [], runs=False, reason="weights not at hand")
    dear = comparison(HIDDEN, [], runs=False, tflop=120.0)
    untested = comparison(
        HIDDEN, [], runs=False, entry=None, reason="no entry comparisons it", command=""
    )
    done = comparison(FOUND, published, tflop=2.0)
    rows = [row | {"seconds": 4.0} for row in published]
    made = table(rows, [done, hub, dear, untested], tmp_path)
    assert [row["verdict"] for row in made] == ["agrees", "not run", "not run", "not run"]
    assert made[1]["reason"] == "weights not at hand"
    assert made[1]["command"] == "snakemake --config 'run=[mine]'"
    # 2 TFLOP took 4 s, so 120 TFLOP take 4 minutes.
    assert made[2]["minutes_needed"] == pytest.approx(4.0)
    assert made[2]["reason"].startswith("needs about 4 minutes on this machine")
    assert made[3]["reason"] == "no entry comparisons it"
    (alone,) = table(rows, [dear], tmp_path)
    assert alone["reason"] == "needs time: its published protocol takes 120 TFLOP"


def test_what_a_search_that_failed_altogether_does_not_find_is_hollow(tmp_path: Path) -> None:
    def said(row: str, found: list[bool], *, visible: bool = False, mask: str = "1:") -> str:
        published = runs(found, mask=mask, visible=visible)
        others = sweeps(published, "identifiable")
        (made,) = table(published + others, [comparison(row, published, others)], tmp_path)
        assert made["visible_found"] == visible
        return str(made["verdict"])

    assert said(HIDDEN, [False, False]) == said(FOUND, [False, False]) == "hollow"
    assert said(HIDDEN, [False, False], visible=True) == OPTIMISER
    assert said(HIDDEN, [True, True]) == "differs"
    # That not one token is found is what this row states.
    assert said("llama7b-block1-no-attention-residual", [False], mask=":") == "agrees"
    share = "width4096-untrained-share"
    assert said(share, [False, False, False]) == "hollow"
    assert said(share, [False, False, False], visible=True) == "agrees"
    assert said(share, [True, False, False]) == "agrees"


def test_the_optimiser_is_at_fault_where_more_than_half_of_the_hidden_tokens_are_there(
    tmp_path: Path,
) -> None:
    """Of three hidden tokens one was swept, or two; those not swept say nothing."""
    published = runs([False] * 6, mask="3:")
    for swept, share, expected in ((1, 1 / 3, "agrees"), (2, 2 / 3, OPTIMISER)):
        others = [
            row if row["position"] < swept else row | {"identified": None}
            for row in sweeps(published, "identifiable")
        ]
        (made,) = table(published + others, [comparison(HIDDEN, published, others)], tmp_path)
        assert (made["swept"], made["identifiable"]) == (6 * swept, 1.0)
        assert made["question_identifiable"] == pytest.approx(share)
        assert made["verdict"] == expected


def test_a_cell_that_is_missing_is_named(tmp_path: Path) -> None:
    published = runs([True, True])
    with pytest.raises(ValueError, match=f"row {FOUND}: the table has 1 of the 2 cells of mine"):
        table(runs([True]), [comparison(FOUND, published)], tmp_path)


def test_the_summary_counts_every_verdict_and_stand_ins_apart(tmp_path: Path) -> None:
    published = runs([True])
    comparisons = [
        comparison(FOUND, published),
        comparison(FOUND, published, stand_in="smaller"),
        comparison(HIDDEN, published),
        comparison(HIDDEN, [], runs=False),
    ]
    frame(published).write_parquet(tmp_path / "recovery.parquet")
    found = replication(tmp_path / "recovery.parquet", comparisons, {})
    assert dict(found.schema) == REPLICATION_SCHEMA
    summary = {(a, v): n for a, v, n in counts(found).iter_rows()}
    assert {word for _, word in summary} == set(VERDICTS)
    assert summary["the row's own model", "agrees"] == 1
    assert summary["the row's own model", "differs"] == 1
    assert summary["the row's own model", "not run"] == 1
    assert summary["stand-in", "agrees"] == 1
    assert sum(summary.values()) == len(comparisons)
