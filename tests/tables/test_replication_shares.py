"""What is counted of a row: by its criterion, over runs, searches, prompts and training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compared_rows import FOUND, HIDDEN, Row, certified, comparison, runs, sweeps, table
from tokinfo.tables.intervals import clopper_pearson, clustered_share
from tokinfo.tables.replication_shares import read_training
from tokinfo.tables.verdicts import OPTIMISER


def test_tokens_in_any_order_count_once_each(tmp_path: Path) -> None:
    row = "width8192-untrained-block1-after3"  # two best texts, any order
    published = runs([False], mask="3:")
    true = [one["true_id"] for one in published]
    # The three hidden tokens were found: two in the best text, elsewhere, one in the second.
    lists = [[9, true[2], 1, 1, 1], [true[0], 8, 1, 1, 1], [7, 7, 1, 1, 1], [true[1], 7, 1, 1, 1]]
    found = [one | {"top5_ids": top} for one, top in zip(published, lists, strict=True)]
    (made,) = table(found, [comparison(row, found)], tmp_path)
    assert (made["runs_found"], made["tokens_found"]) == (1, 1.0)
    # The third best does not count.
    lists[0] = [9, 6, true[2], 1, 1]
    found = [one | {"top5_ids": top} for one, top in zip(published, lists, strict=True)]
    (made,) = table(found, [comparison(row, found)], tmp_path)
    assert (made["runs_found"], made["tokens_found"]) == (0, pytest.approx(2 / 3))


def test_a_visible_copy_of_a_hidden_token_does_not_count_for_it(tmp_path: Path) -> None:
    row = "width8192-untrained-block1-after3"
    published = [row | {"top5_ids": [1, 1, 1, 1, 1]} for row in runs([False], mask="3:")]
    # The visible token is the first hidden one's, and was read at its own position.
    twin = published[0]["true_id"]
    published[3] |= {"true_id": twin, "found_id": twin, "top5_ids": [twin, 1, 1, 1, 1]}
    (made,) = table(published, [comparison(row, published)], tmp_path)
    assert made["tokens_found"] == 0.0
    published[1] |= {"top5_ids": [1, twin, 1, 1, 1]}
    (made,) = table(published, [comparison(row, published)], tmp_path)
    assert made["tokens_found"] == pytest.approx(1 / 3), "read once more, somewhere"


def test_a_part_of_the_tokens_is_enough_where_the_row_says_so(tmp_path: Path) -> None:
    row = "width8192-untrained-block1-last"  # at least half of the hidden tokens
    published = runs([False], mask="-1")
    some = [one | {"in_prompt": one["position"] < 2} for one in published]
    (made,) = table(some, [comparison(row, some)], tmp_path)
    assert (made["runs_found"], made["tokens_found"]) == (1, pytest.approx(2 / 3))
    few = [one | {"in_prompt": one["position"] < 1} for one in published]
    assert table(few, [comparison(row, few)], tmp_path)[0]["runs_found"] == 0


def test_where_nothing_is_hidden_every_token_is_in_question(tmp_path: Path) -> None:
    row = "mixer-untrained-block1-full"
    published = runs([True, True], mask=":")
    (made,) = table(published, [comparison(row, published)], tmp_path)
    assert (made["verdict"], made["found"]) == ("agrees", 1.0)
    published[-1] |= {"correct": False, "top5_ids": [0, 1, 2, 3, 4]}
    (made,) = table(published, [comparison(row, published)], tmp_path)
    assert (made["runs_found"], made["tokens_found"]) == (1, 7 / 8)


def test_how_far_the_published_descent_came_is_the_median_of_its_runs(tmp_path: Path) -> None:
    published = runs([False] * 3)
    models = dict.fromkeys(row["model"] for row in published)
    losses = dict(zip(models, ((9.0, 8.0), (9.0, 1.0), (7.0, 2.0)), strict=True))
    for row in published:
        row["first_loss"], row["loss"] = losses[row["model"]]
    (made,) = table(published, [comparison(HIDDEN, published)], tmp_path)
    assert (made["first_loss"], made["loss"]) == (9.0, 2.0)


def test_seeds_of_one_model_are_separate_runs(tmp_path: Path) -> None:
    published = runs([True]) + [row | {"seed": 1} for row in runs([False])]
    (made,) = table(published, [comparison(FOUND, published)], tmp_path)
    expected = clopper_pearson(1, 2)
    assert (made["initialisations"], made["runs"], made["runs_found"]) == (1, 2, 1)
    assert (made["found_low"], made["found_high"]) == (expected.low, expected.high)


def test_better_searches_stand_beside_the_published_one(tmp_path: Path) -> None:
    published = runs([False, False])
    adam = [row | {"solver": "adam", "kind": "adam"} for row in runs([True, False], visible=False)]
    others = [*adam, *certified(runs([True, True]))]
    (made,) = table(published + others, [comparison(HIDDEN, published, others)], tmp_path)
    assert (made["adam_found"], made["joint_found"], made["joint_certified"]) == (0.5, 1.0, 1.0)
    assert (made["visible_found"], made["adam_visible"], made["joint_visible"]) == (1.0, 0.0, 1.0)
    assert made["recovered"] == 1.0
    # A sweep around a FOUND prompt does not say what is there; finding the true tokens does.
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
    (made,) = table(published + others, [comparison(HIDDEN, published, others)], tmp_path)
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
    (made,) = table(found + others, [comparison(FOUND, found, others)], tmp_path)
    assert (made["found"], made["verdict"], made["identifiable"]) == (1.0, "agrees", 0.0)
    assert (made["n_prompts"], made["runs"], made["swept"]) == (5, 1, 1)
    shares = {"found": (1, 5), "adam": (2, 4), "identifiable": (4, 5)}
    for what, (hits, of) in shares.items():
        share = clustered_share([1] * hits + [0] * (of - hits), [1] * of)
        names = [f"prompts_{what}{end}" for end in ("", "_low", "_high")]
        assert [made[name] for name in names] == pytest.approx([share.value, share.low, share.high])
    assert (made["adam_found"], made["prompts_joint"]) == (None, None)


def test_searches_of_different_strength_are_not_pooled(tmp_path: Path) -> None:
    published = runs([False, False])
    adam = [row | {"solver": "adam", "kind": "adam"} for row in runs([False, False])]
    longer = [row | {"solver": "adam-long", "kind": "adam"} for row in runs([True, True])]
    (made,) = table(
        published + adam + longer, [comparison(HIDDEN, published, adam + longer)], tmp_path
    )
    assert (made["adam_found"], made["prompts_adam"]) == (0.0, 0.0)


def test_a_text_in_several_sets_is_one_prompt(tmp_path: Path) -> None:
    published = runs([True])
    again = [row | {"prompts": "again", "correct": False} for row in published]
    (made,) = table(published + again, [comparison(FOUND, published + again)], tmp_path)
    share = clustered_share([1], [2])
    assert (made["n_prompts"], made["prompts_found"]) == (1, 0.5)
    assert (made["prompts_found_low"], made["prompts_found_high"]) == (share.low, share.high)


def test_a_trained_model_says_how_far_it_is_from_the_chapters(tmp_path: Path) -> None:
    history = tmp_path / "source.csv"
    history.write_text("step,tokens,train_loss,held_out_loss\n1,10,9,9\n2,2048,4.5,5.0\n")
    row = "mixer-flat-d1024-trained-block8-after1"
    published = runs([False])
    (made,) = table(published, [comparison(row, published)], tmp_path, source=history)
    assert (made["trained_tokens"], made["held_out_loss"]) == (2048, 5.0)
    assert made["loss_gap"] == pytest.approx(5.0 - 1.86)
    (made,) = table(published, [comparison(FOUND, published)], tmp_path, source=history)
    assert made["held_out_loss"] is None  # the row is about an untrained model
    history.write_text("step,tokens,train_loss,held_out_loss\n")
    with pytest.raises(ValueError, match=r"source.csv: damaged or cut short \("):
        read_training(history)
