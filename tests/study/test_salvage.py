"""Mistakes of form do not hide the others, and nothing is judged that was not written."""

from __future__ import annotations

from tests.example_study import example, keys, says, spoilt

FLAT = ("sources", "flat")


def test_mistakes_of_form_do_not_hide_those_of_sense() -> None:
    found = spoilt(
        ((*FLAT, "training", "learning_rate"), "fast"),
        (("solvers", "adam", "restarts"), 0),
        (("grids", 0, "metrics"), ["l3"]),
        (("grids", 0, "masks"), [5, "90:", "x"]),
        (("grids", 0, "sites"), ["block.9"]),
        (("grids", 1, "models"), ["lama"]),
        (("prompts", "sky", 0), 5),
        (("prompts", "sky", 1), "one " * 17),
    )
    expected = [
        ("sources.flat.training.learning_rate", "number"),
        ("solvers.adam.restarts", "greater than"),
        ("grids[0].metrics[0]", "choices"),
        ("grids[0].masks[0]", "in quotes"),
        ("prompts.sky[0]", "in quotes"),
        ("grids[1].models[0]", "unknown model"),
        ("grids[0].sites[0]", "beyond the depth of `flat` (2 blocks), `llama` (4 blocks)"),
        ("grids[0].masks[2]", "is not a mask"),
        ("prompts.sky[1]", "more than n_ctx"),
        ("grids[0].masks[1]", "leaves no visible position"),
    ]
    for key, reason in expected:
        assert any(m.key == key and says(m, reason) for m in found), (key, reason, found)


def test_a_broken_entry_is_not_also_called_unknown() -> None:
    found = spoilt(((*FLAT, "d_model"), "wide"), (("solvers", "adam"), 1), (("tokenizers",), 4))
    assert keys(found) == ["tokenizers", "sources.flat.d_model", "solvers.adam"]


def test_a_default_in_place_of_a_wrong_value_is_not_judged() -> None:
    wrong_steps = ((*FLAT, "training"), {"steps": "x", "warmup": 400})
    assert keys(spoilt(wrong_steps)) == ["sources.flat.training.steps"]
    long = "word " * 3000
    wrong = (("sources", "smol", "n_ctx"), "x"), (("prompts", "sky"), [long])
    grid = (("grids",), [{**example()["grids"][0], "models": ["smol"]}])
    assert keys(spoilt(*wrong, grid)) == ["sources.smol.n_ctx"]
