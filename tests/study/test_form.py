"""Mistakes in the form of a study are named with their keys, in words of its schema."""

from __future__ import annotations

from tests.example_study import Row, at, check_one, each, example, keys, mistakes, spoilt
from tokinfo.study.study import Study

FLAT = ("sources", "flat")
PASSAGES = {"corpus": "bible", "tokenizer": "bpe", "count": 2, "tokens": [4, 6]}

FORM: list[Row] = [
    (("thread",), 2, "unknown key (did you mean `threads`?)"),
    (("threads",), 0, "greater than or equal to 1"),
    (("device",), "gpu", "auto, cpu, cuda"),
    (("name",), "", "is empty"),
    ((*FLAT, "d_model"), 1, "greater than or equal to 2"),
    ((*FLAT, "widht"), 1, "unknown key"),
    ((*FLAT, "kind"), "mixxer", "unknown kind (did you mean `mixer`?)"),
    ((*FLAT, "training", "stps"), 1, "unknown key (did you mean `steps`?)"),
    ((*FLAT, "training", "seed"), True, "a number"),
    ((*FLAT, "training", "snapshots"), [1], "less than 1", "sources.flat.training.snapshots[0]"),
    (("sources", "smol"), 3, "must be a mapping"),
    (("sources", "smol", "sha256"), "abc", "not of the right form"),
    (("sources", "llama", "heads"), 0, "greater than or equal to 1"),
    (("solvers", "adam", "restarts"), 0, "greater than or equal to 1"),
    (("solvers", "adam", "steps"), "many", "valid integer"),
    (("solvers", "adam", "decode"), {"method": "x"}, "nearest", "solvers.adam.decode.method"),
    (("models", "Big Model"), {"source": "smol"}, "the name is not allowed"),
    (("models",), [], "must be a mapping"),
    (("grids",), [], "is empty"),
    (("grids", 0, "masks"), [], "is empty"),
    (("grids", 0, "masks", 1), -1, "write it in quotes"),
    (("grids", 0, "metrics", 1), "l3", "is not one of the choices"),
    (("grids", 0, "seeds"), [0, -1], "greater than or equal to 0", "grids[0].seeds[1]"),
    (("grids", 0, "targets"), [], "is empty"),
    (("grids", 1), 7, "must be a mapping"),
    (("prompts", "sky", 1), 7, "write it in quotes"),
    (("prompts", "sky", 1), "a \ud800", "lone surrogates"),
    (("passages",), {"p": {**PASSAGES, "tokens": [8]}}, "is empty", "passages.p.tokens"),
    (("passages",), {"p": {**PASSAGES, "count": 0}}, "equal to 1", "passages.p.count"),
]


@each(FORM)
def test_a_mistake_of_form_is_one_line(row: Row) -> None:
    check_one(row)


def test_places_of_the_table_are_told_apart() -> None:
    assert at(FORM[0]) == "thread"
    assert at(FORM[9]) == "sources.flat.training.snapshots[0]"


def test_a_line_says_where_what_why_and_what_is_allowed() -> None:
    assert str(*spoilt(((*FLAT, "d_model"), 1))) == (
        "sources.flat.d_model = 1: should be greater than or equal to 2; "
        "allowed: a whole number at least 2 (Width of an embedding)"
    )


def test_a_missing_value_is_named_with_what_it_should_be() -> None:
    raw = example()
    del raw["sources"]["flat"]["d_model"], raw["sources"]["smol"]["kind"]
    del raw["grids"][0]["solvers"]
    width, kind, solvers = mistakes(raw)
    assert str(width).startswith("sources.flat.d_model: is missing; allowed: a whole number")
    assert (kind.key, kind.message) == ("sources.smol.kind", "is missing")
    assert kind.allowed == "gguf, hub, local, mixer, transformer, wheel"
    assert (solvers.key, solvers.allowed) == ("grids[0].solvers", "chapter, adam")


def test_an_empty_configuration_misses_every_required_part_and_nothing_else() -> None:
    required = [name for name, field in Study.model_fields.items() if field.is_required()]
    # Of the grids and the claims, a study needs one.
    assert keys(mistakes({})) == [*required, "grids"]
