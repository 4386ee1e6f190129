"""Every verdict on a row of the chapter is computed, from runs, sweeps and what is stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.synthetic_recovery import FakeModel, cell_rows, frame
from tokinfo.report.pages.replication import write_replication_page
from tokinfo.study.claims import load_claims
from tokinfo.tables.intervals import Share, clustered_share
from tokinfo.tables.replication import REPLICATION_SCHEMA, counts, replication, write_replication
from tokinfo.tables.replication_shares import read_training
from tokinfo.tables.schema import CELL_KEYS
from tokinfo.tables.verdicts import VERDICTS, settled, verdict

PROMPT = "a b c d"
OPTIMISER = VERDICTS[1]
Row = dict[str, Any]


def answer(row: str, published: list[Row], others: list[Row] | None = None, **changes: Any) -> Row:
    """Return an answer to a row whose cells are those of these rows of the long table."""
    claim = load_claims().rows[row]
    return {
        "row": row,
        "claim": claim.model_dump() | {"prompt": PROMPT},
        "criterion": claim.criterion,
        "hides": claim.hides,
        "claimed": load_claims().model_of(row).model_dump(),
        "entry": "mine",
        "stand_in": "",
        "runs": True,
        "models": list(dict.fromkeys(one["model"] for one in published)),
        "sources": ["source"],
        "size": "a size",
        "published": cells(published),
        "others": cells(others or []),
        "tflop": 1.0,
        "reason": "",
        "command": "snakemake --config 'run=[mine]'",
    } | changes


def cells(rows: list[Row]) -> list[Row]:
    return list(
        {tuple(row[k] for k in CELL_KEYS): {k: row[k] for k in CELL_KEYS} for row in rows}.values()
    )


def runs(found: list[bool], mask: str = "1:", *, visible: bool = True, **changes: Any) -> list[Row]:
    """Return one cell of the published protocol for each run: hidden tokens found or not."""
    out = []
    for number, hit in enumerate(found):
        model = FakeModel(f"m-{number}", "source", "mixer-flat", 8, state="untrained")
        for row in cell_rows(model, mask=mask, solver="chapter", texts=(PROMPT,)):
            right = visible if row["visible"] else hit
            wrong = row["true_id"] + 1
            out.append(
                row
                | {
                    "correct": right,
                    "in_prompt": right,
                    "found_id": row["true_id"] if right else wrong,
                    "found_token": row["true_token"] if right else " wrong",
                    "top5_ids": [row["true_id"] if right else wrong, 1, 2, 3, 4],
                }
                | changes
            )
    return out


def sweeps(published: list[Row], identified: str) -> list[Row]:
    return [
        row
        | {
            "solver": "sweep",
            "kind": "sweep",
            "around": "true",
            "identified": None if row["visible"] else identified,
            "margin": None if row["visible"] else 30.0,
            "noise_floor": 0.5,
            "bits": None if row["visible"] else 12.0,
        }
        for row in published
    ]


def certified(found: list[Row]) -> list[Row]:
    """Return the cells of a joint search that certified what it found."""
    return [
        row
        | {
            "solver": "joint",
            "kind": "joint",
            "verdict": "certified",
            "around": "found",
            "identified": None if row["visible"] else "identifiable",
        }
        for row in found
    ]


def table(rows: list[Row], answers: list[Row], directory: Path, **histories: Path) -> list[Row]:
    recovery = directory / "recovery.parquet"
    frame(rows).write_parquet(recovery)
    return replication(recovery, answers, histories).to_dicts()


FOUND, HIDDEN = "mixer-flat-d512-untrained-after1", "mixer-expanded-d512-untrained-after1"


@pytest.mark.parametrize(
    ("row", "outcomes", "identified", "expected", "sure"),
    [
        (FOUND, [True, True, True], None, "agrees", False),
        (FOUND, [True] * 6, "identifiable", "agrees", True),
        (FOUND, [False, False, True], "identifiable", "differs", False),
        (FOUND, [False] * 6, None, "differs", True),
        (FOUND, [True, False], None, "agrees", False),
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
    (made,) = table(published + others, [answer(row, published, others)], tmp_path)
    assert (made["verdict"], made["settled"]) == (expected, sure)
    share = clustered_share([int(hit) for hit in outcomes], [1] * len(outcomes))
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


share = st.floats(0, 1)


@given(st.booleans(), share, share, share, st.none() | share, st.none() | share)
def test_a_found_or_missed_token_never_agrees_with_both_statements(
    found: bool,
    a: float,
    b: float,
    c: float,
    identifiable: float | None,
    searched: float | None,
) -> None:
    low, value, high = sorted((a, b, c))
    ours = Share(value, low, high, "wilson")
    first = verdict(found, None, ours, identifiable, searched)
    second = verdict(not found, None, ours, identifiable, searched)
    agreeing = [word.startswith("agrees") for word in (first, second)]
    assert sum(agreeing) == (2 if value == 0.5 else 1)
    # Only what neither found can be the optimiser's fault: where a sweep identifies it, or a
    # search that knew no more came back with it.
    there = any(known is not None and known > 0.5 for known in (identifiable, searched))
    assert (OPTIMISER in (first, second)) == (there and value <= 0.5)
    assert verdict(found, None, None, identifiable, searched) == "not run"


@given(share, share, share, share, share)
def test_a_stated_share_agrees_exactly_where_the_interval_meets_it(
    a: float, b: float, c: float, d: float, e: float
) -> None:
    low, value, high = sorted((a, b, c))
    stated = (min(d, e), max(d, e))
    ours = Share(value, low, high, "wilson")
    meets = any(low <= point <= high for point in stated) or stated[0] <= low <= stated[1]
    assert verdict(None, stated, ours, 1.0, 1.0) == ("agrees" if meets else "differs")
    if not meets:
        assert settled(stated, ours)


def test_nothing_is_settled_by_no_runs() -> None:
    assert settled(None, None) is None


def test_a_row_that_is_not_run_says_why_and_what_would_run_it(tmp_path: Path) -> None:
    published = runs([True])
    hub = answer(HIDDEN, [], runs=False, reason="weights not at hand")
    dear = answer(HIDDEN, [], runs=False, tflop=120.0)
    nobody = answer(HIDDEN, [], runs=False, entry=None, reason="no entry answers it", command="")
    done = answer(FOUND, published, tflop=2.0)
    rows = [row | {"seconds": 4.0} for row in published]
    made = table(rows, [done, hub, dear, nobody], tmp_path)
    assert [row["verdict"] for row in made] == ["agrees", "not run", "not run", "not run"]
    assert made[1]["reason"] == "weights not at hand"
    assert made[1]["command"] == "snakemake --config 'run=[mine]'"
    # 2 TFLOP took 4 s, so 120 TFLOP take 4 minutes.
    assert made[2]["minutes_needed"] == pytest.approx(4.0)
    assert made[2]["reason"].startswith("needs about 4 minutes on this machine")
    assert made[3]["reason"] == "no entry answers it"
    (alone,) = table(rows, [dear], tmp_path)
    assert alone["reason"] == "needs time: its published protocol takes 120 TFLOP"


def test_tokens_in_any_order_count_once_each(tmp_path: Path) -> None:
    row = "width8192-untrained-block1-after3"  # two best texts, any order
    published = runs([False], mask="3:")
    true = [one["true_id"] for one in published]
    # The three hidden tokens came out: two in the best text, elsewhere, one in the second.
    lists = [[9, true[2], 1, 1, 1], [true[0], 8, 1, 1, 1], [7, 7, 1, 1, 1], [true[1], 7, 1, 1, 1]]
    found = [one | {"top5_ids": top} for one, top in zip(published, lists, strict=True)]
    (made,) = table(found, [answer(row, found)], tmp_path)
    assert (made["runs_found"], made["tokens_found"]) == (1, 1.0)
    # The third best does not count.
    lists[0] = [9, 6, true[2], 1, 1]
    found = [one | {"top5_ids": top} for one, top in zip(published, lists, strict=True)]
    (made,) = table(found, [answer(row, found)], tmp_path)
    assert (made["runs_found"], made["tokens_found"]) == (0, pytest.approx(2 / 3))


def test_a_part_of_the_tokens_is_enough_where_the_row_says_so(tmp_path: Path) -> None:
    row = "width8192-untrained-block1-last"  # at least half of the hidden tokens
    published = runs([False], mask="-1")
    some = [one | {"in_prompt": one["position"] < 2} for one in published]
    (made,) = table(some, [answer(row, some)], tmp_path)
    assert (made["runs_found"], made["tokens_found"]) == (1, pytest.approx(2 / 3))
    few = [one | {"in_prompt": one["position"] < 1} for one in published]
    assert table(few, [answer(row, few)], tmp_path)[0]["runs_found"] == 0


def test_where_nothing_is_hidden_every_token_is_in_question(tmp_path: Path) -> None:
    row = "mixer-untrained-block1-full"
    published = runs([True, True], mask=":")
    (made,) = table(published, [answer(row, published)], tmp_path)
    assert (made["verdict"], made["found"]) == ("agrees", 1.0)
    published[-1] |= {"correct": False, "top5_ids": [0, 1, 2, 3, 4]}
    (made,) = table(published, [answer(row, published)], tmp_path)
    assert (made["runs_found"], made["tokens_found"]) == (1, 7 / 8)


def test_what_a_search_that_failed_altogether_does_not_find_is_hollow(tmp_path: Path) -> None:
    lost = runs([False, False], visible=False)
    (made,) = table(lost, [answer(HIDDEN, lost)], tmp_path)
    assert (made["verdict"], made["visible_found"], made["hollow"]) == ("agrees", 0.0, True)
    hollow = pl.DataFrame([made], schema=REPLICATION_SCHEMA)
    assert counts(hollow)["hollow"].sum() == counts(hollow)["rows"].sum() == 1
    seen = runs([False, False])
    assert table(seen, [answer(HIDDEN, seen)], tmp_path)[0]["hollow"] is False
    (differs,) = table(lost, [answer(FOUND, lost)], tmp_path)
    assert (differs["verdict"], differs["hollow"]) == ("differs", True)
    found = runs([True, True], visible=False)
    assert table(found, [answer(HIDDEN, found)], tmp_path)[0]["hollow"] is False
    # That not one token is found is what this row states.
    row = "llama7b-block1-no-attention-residual"
    none = runs([False], mask=":", visible=False)
    (made,) = table(none, [answer(row, none)], tmp_path)
    assert (made["verdict"], made["hollow"]) == ("agrees", False)


def test_a_stated_share_that_no_run_reaches_agrees_hollowly_where_the_search_failed(
    tmp_path: Path,
) -> None:
    row = "width4096-untrained-share"
    for visible, found, hollow in (
        (False, False, True),
        (True, False, False),
        (False, True, False),
    ):
        made = runs([found, False, False], visible=visible)
        (told,) = table(made, [answer(row, made)], tmp_path)
        assert (told["verdict"], told["hollow"]) == ("agrees", hollow)


def test_how_far_the_published_descent_came_is_the_median_of_its_runs(tmp_path: Path) -> None:
    own = runs([False] * 3)
    models = dict.fromkeys(row["model"] for row in own)
    losses = dict(zip(models, ((9.0, 8.0), (9.0, 1.0), (7.0, 2.0)), strict=True))
    for row in own:
        row["first_loss"], row["loss"] = losses[row["model"]]
    (made,) = table(own, [answer(HIDDEN, own)], tmp_path)
    assert (made["first_loss"], made["loss"]) == (9.0, 2.0)


def test_seeds_of_one_model_are_runs_of_their_own(tmp_path: Path) -> None:
    published = runs([True]) + [row | {"seed": 1} for row in runs([False])]
    (made,) = table(published, [answer(FOUND, published)], tmp_path)
    expected = clustered_share([1, 0], [1, 1])
    assert (made["initialisations"], made["runs"], made["runs_found"]) == (1, 2, 1)
    assert (made["found_low"], made["found_high"]) == (expected.low, expected.high)


def test_better_searches_stand_beside_the_published_one(tmp_path: Path) -> None:
    published = runs([False, False])
    adam = [row | {"solver": "adam", "kind": "adam"} for row in runs([True, False], visible=False)]
    others = [*adam, *certified(runs([True, True]))]
    (made,) = table(published + others, [answer(HIDDEN, published, others)], tmp_path)
    assert (made["adam_found"], made["joint_found"], made["joint_certified"]) == (0.5, 1.0, 1.0)
    assert (made["visible_found"], made["adam_visible"], made["joint_visible"]) == (1.0, 0.0, 1.0)
    assert made["recovered"] == 1.0
    # A sweep around a FOUND prompt does not say what is there; that the true tokens came out does.
    assert (made["swept"], made["joint_returned"], made["verdict"]) == (None, 1.0, OPTIMISER)


@pytest.mark.parametrize(
    ("hits", "verdicts", "returned"),
    [
        ([True, True, False], ["certified"] * 3, 2 / 3),
        ([True, True, True], ["certified", "search failure", "search failure"], 1 / 3),
        ([True, False], ["search failure", "certified"], 0.0),
        # Another prompt explains what is visible as well: that is no failure of the descent.
        ([False, False], ["certified", "certified"], 0.0),
    ],
)
def test_a_joint_search_returns_what_it_finds_and_certifies_in_the_same_run(
    hits: list[bool], verdicts: list[str], returned: float, tmp_path: Path
) -> None:
    published = runs([False] * len(hits))
    of_model = dict(zip(dict.fromkeys(row["model"] for row in published), verdicts, strict=True))
    others = [row | {"verdict": of_model[row["model"]]} for row in certified(runs(hits))]
    (made,) = table(published + others, [answer(HIDDEN, published, others)], tmp_path)
    assert made["joint_returned"] == pytest.approx(returned)
    assert made["verdict"] == (OPTIMISER if returned > 0.5 else "agrees")


def test_other_prompts_enter_their_own_shares_only(tmp_path: Path) -> None:
    """Of four passages the published protocol finds none, `adam` two, and all are identifiable."""

    def passages(rows: list[Row], found: int) -> list[Row]:
        return [
            row
            | {"prompts": "drawn", "prompt": f"passage {number}", "prompt_id": number}
            | {"correct": number < found}
            for number in range(4)
            for row in rows
        ]

    published = runs([True])
    found = published + passages(published, 0)
    adam = [row | {"solver": "adam", "kind": "adam"} for row in passages(published, 2)]
    others = [*adam, *sweeps(published, "ambiguous")]
    others += sweeps(passages(published, 0), "identifiable")
    (made,) = table(found + others, [answer(FOUND, found, others)], tmp_path)
    assert (made["found"], made["verdict"], made["identifiable"]) == (1.0, "agrees", 0.0)
    assert (made["n_prompts"], made["runs"], made["swept"]) == (5, 1, 1)
    shares = {"found": (1, 5), "adam": (2, 4), "identifiable": (4, 5)}
    for what, (hits, of) in shares.items():
        share = clustered_share([1] * hits + [0] * (of - hits), [1] * of)
        names = [f"prompts_{what}{end}" for end in ("", "_low", "_high")]
        assert [made[name] for name in names] == pytest.approx([share.value, share.low, share.high])
    assert (made["adam_found"], made["prompts_joint"]) == (None, None)


def test_a_trained_model_says_how_far_it_is_from_the_chapters(tmp_path: Path) -> None:
    history = tmp_path / "source.csv"
    history.write_text("step,tokens,train_loss,held_out_loss\n1,10,9,9\n2,2048,4.5,5.0\n")
    row = "mixer-flat-d1024-trained-block8-after1"
    published = runs([False])
    (made,) = table(published, [answer(row, published)], tmp_path, source=history)
    assert (made["trained_tokens"], made["held_out_loss"]) == (2048, 5.0)
    assert made["loss_gap"] == pytest.approx(5.0 - 1.86)
    (made,) = table(published, [answer(FOUND, published)], tmp_path, source=history)
    assert made["held_out_loss"] is None  # the row is about an untrained model
    history.write_text("step,tokens,train_loss,held_out_loss\n")
    with pytest.raises(ValueError, match=r"source.csv: damaged or cut short \("):
        read_training(history)


def test_a_cell_that_is_missing_is_named(tmp_path: Path) -> None:
    published = runs([True, True])
    with pytest.raises(ValueError, match=f"row {FOUND}: the table has 1 of the 2 cells of mine"):
        table(runs([True]), [answer(FOUND, published)], tmp_path)


def test_the_summary_counts_every_verdict_and_stand_ins_apart(tmp_path: Path) -> None:
    published = runs([True])
    answers = [
        answer(FOUND, published),
        answer(FOUND, published, stand_in="smaller"),
        answer(HIDDEN, published),
        answer(HIDDEN, [], runs=False),
    ]
    frame(published).write_parquet(tmp_path / "recovery.parquet")
    found = replication(tmp_path / "recovery.parquet", answers, {})
    assert dict(found.schema) == REPLICATION_SCHEMA
    summary = {(a, v): n for a, v, n, _ in counts(found).iter_rows()}
    assert {word for _, word in summary} == set(VERDICTS)
    assert summary["the row's own model", "agrees"] == 1
    assert summary["the row's own model", "differs"] == 1
    assert summary["the row's own model", "not run"] == 1
    assert summary["stand-in", "agrees"] == 1
    assert sum(summary.values()) == len(answers)


def test_the_page_says_it_and_escapes_what_comes_from_models(tmp_path: Path) -> None:
    published = runs([False, False], found_token="<b>x</b>")
    others = sweeps(published, "identifiable")
    answers = [
        answer(HIDDEN, published, others),
        answer(HIDDEN, published, others, stand_in="a <small> one"),
        answer(FOUND, [], runs=False, reason="weights not at hand: 1.0 GB"),
    ]
    recovery = tmp_path / "recovery.parquet"
    frame(published + others).write_parquet(recovery)
    files = [tmp_path / name for name in ("r.parquet", "r.csv", "s.csv")]
    write_replication(recovery, answers, {}, *files)
    page = tmp_path / "page.html"
    write_replication_page(files[0], page, name="Study <1>")
    text = page.read_text(encoding="utf-8")
    assert "<b>x</b>" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "a &lt;small&gt; one" in text
    assert "Of 2 measured statements, 1 were run" in text
    assert text.count(f"<b>{OPTIMISER}</b>") == 2
    assert "weights not at hand: 1.0 GB" in text
    assert "snakemake --config &#39;run=[mine]&#39;" in text
    assert pl.read_csv(files[1])["verdict"].to_list() == [OPTIMISER, OPTIMISER, "not run"]
    assert pl.read_csv(files[2])["rows"].sum() == 3


def test_the_page_counts_what_joint_search_gave_back(tmp_path: Path) -> None:
    """Answers that hide nothing, and those it was not asked for, are in neither number."""

    def told(row: str, published: list[Row], joint: list[Row]) -> str:
        made = table([*published, *joint], [answer(row, published, joint)], tmp_path)
        pl.DataFrame(made, schema=REPLICATION_SCHEMA).write_parquet(tmp_path / "made.parquet")
        write_replication_page(tmp_path / "made.parquet", tmp_path / "page.html")
        return " ".join((tmp_path / "page.html").read_text(encoding="utf-8").split())

    missed = runs([False, False])
    given_back = told(HIDDEN, missed, certified(runs([True, True])))
    assert "Of the 1 answers with hidden tokens that joint search was asked for" in given_back
    assert "certifies the prompt in 1, given as little" in given_back
    assert "the published descent finds them in every run in 0." in given_back
    # What visible activations do not depend on is certified, whatever is found there.
    assert "certifies the prompt in 0," in told(HIDDEN, missed, certified(runs([False, False])))
    assert "joint search was asked for" not in told(HIDDEN, missed, [])
    shown = runs([True], mask=":")
    whole = told("mixer-untrained-block1-full", shown, certified(runs([True], mask=":")))
    assert "joint search was asked for" not in whole
