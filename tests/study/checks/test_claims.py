"""What tests a row of the chapter is checked before anything runs, and becomes cells."""

from __future__ import annotations

from typing import Any

import pytest

from tests import REPOSITORY
from tests.claims_study import SKY, claims_study
from tests.example_study import keys, mistakes, put, says
from tokinfo.study.cell import Cell
from tokinfo.study.mistakes import Keys
from tokinfo.study.study import Study


@pytest.fixture(autouse=True)
def working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository, where the study's text lies."""
    monkeypatch.chdir(REPOSITORY)


def cells(study: dict[str, Any], name: str) -> list[Cell]:
    return [
        cell
        for answer in Study.model_validate(study).answers()
        if answer.name == name
        for cell in (*answer.published, *answer.others)
    ]


def test_the_study_is_valid_and_runs_what_it_says() -> None:
    study = claims_study()
    assert mistakes(study) == []
    made = Study.model_validate(study).cells()
    assert {cell.model for cell in made} == {
        "d32-untrained",
        "tiny",
        "tiny-untrained",
        "tiny-untrained-1",
    }
    del study["run"]
    assert {cell.model for cell in Study.model_validate(study).cells()} > {"llama-7b"}


ENTRY = ("claims", "exact")


@pytest.mark.parametrize(
    ("path", "value", "key", "reason"),
    [
        (("run",), ["exactt"], "run[0]", "unknown claims entry (did you mean"),
        ((*ENTRY, "rows"), ["mixer"], "claims.exact.rows[0]", "unknown row"),
        ((*ENTRY, "models"), ["d33"], "claims.exact.models[0]", "unknown model"),
        ((*ENTRY, "models"), ["tiny"], "claims.exact.models[0]", "has state trained, and"),
        ((*ENTRY, "models"), ["tiny-untrained"], "claims.exact.models[0]", "has d_model 16, and"),
        ((*ENTRY, "models"), ["d32-untrained"] * 2, "claims.exact.models[1]",
         "repeats claims.exact.models[0]"),
        ((*ENTRY, "prompts"), ["sky"], "claims.exact.prompts", "have no prompt of row"),
        ((*ENTRY, "prompts"), ["sea"], "claims.exact.prompts[0]", "unknown prompt set"),
        ((*ENTRY, "published"), "adam", "claims.exact.published", "is of kind adam"),
        ((*ENTRY, "published"), "chapter-llama", "claims.exact.published", "has learning_rate 2;"),
        ((*ENTRY, "published"), "brief", "claims.exact.published", "has steps 10;"),
        ((*ENTRY, "solvers"), ["sweep"], "claims.exact.solvers[0]", "is of kind sweep"),
        ((*ENTRY, "identify"), ["adam"], "claims.exact.identify[0]", "is of kind adam"),
        ((*ENTRY, "padding"), "none", "claims.exact.padding", "null, or a `stand_in:`"),
        ((*ENTRY, "depth"), "same", "claims.exact.depth", "relative, or a `stand_in:`"),
        ((*ENTRY, "paddin"), "none", "claims.exact.paddin", "unknown key"),
        (("claims", "smaller", "rows"), ["llama7b-untrained-two-blocks"], "claims.smaller.prompts",
         "have no prompt of row llama7b-untrained-two"),
        (("solvers", "chapter", "decode"), {"restricted_to": "A sky"}, "claims.exact.published",
         "decodes among other tokens"),
        (("prompts", "mario"), [SKY], "claims.exact.prompts", "have no prompt of row"),
        (("corpora", "harbour", "path"), "none.txt", "corpora.harbour.path", "no such file"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_key(path: Keys, value: object, key: str, reason: str) -> None:
    found = mistakes(put(claims_study(), path, value))
    assert any(mistake.key == key and says(mistake, reason) for mistake in found), found


def test_a_row_has_one_answer_besides_stand_ins() -> None:
    study = claims_study()
    study["claims"]["again"] = study["claims"]["exact"]
    (first, *_) = mistakes(study)
    assert (first.key, first.value) == ("claims.again.rows[0]", study["claims"]["exact"]["rows"][0])
    assert says(first, "is tested by claims.exact already")
    study["claims"]["again"] |= {"stand_in": "the same again"}
    assert mistakes(study) == []


def test_what_does_not_fit_a_cell_is_reported_for_its_row() -> None:
    study = put(claims_study(), ("prompts", "geralt"), ["Geralt of Rivia"])
    study["claims"]["smaller"] |= {
        "rows": ["llama7b-untrained-attention1-after1-geralt"],
        "prompts": ["geralt"],
    }
    (found,) = mistakes(study)
    assert found.key == "claims.smaller.rows[0]"
    assert found.value == "llama7b-untrained-attention1-after1-geralt"
    assert says(found, "mixers are causal by construction")


def test_neither_grids_nor_claims_is_a_mistake() -> None:
    study = claims_study()
    del study["claims"], study["run"]
    (found,) = (mistake for mistake in mistakes(study) if mistake.path[0] == "grids")
    assert (found.key, found.allowed) == ("grids", "grids, or `claims`")


def test_a_cell_is_what_the_row_says() -> None:
    published, adam, swept = cells(claims_study(), "exact")
    assert (
        published.path
        == "cells/d32-untrained/block.1+padded/all/l1_embedding_chapter_mario_s0.parquet"
    )
    assert (adam.solver, adam.padding) == ("adam", "n_ctx")
    # Nothing is hidden, so a sweep of hidden positions would have nothing to sweep.
    assert (swept.solver, swept.padding) == ("sweep-all", "none")


def test_a_stand_in_is_read_at_the_same_relative_depth() -> None:
    first, eighth = (
        [cell for cell in cells(claims_study(), "smaller") if str(cell.site) == site]
        for site in ("block.1", "block.4")  # 8 of 8 blocks is 4 of 4
    )
    assert len(first) == len(eighth) == 2 * 4
    assert {cell.solver for cell in first} == {"brief", "adam", "sweep", "joint"}
    assert {cell.padding for cell in first} == {"none"}


def test_a_stand_in_of_fewer_such_blocks_can_be_read_behind_the_rows_own_block() -> None:
    assert {str(cell.site) for cell in cells(claims_study(), "trained")} == {"block.1"}  # 2 of 8
    study = put(claims_study(), ("claims", "trained", "depth"), "same")
    assert {str(cell.site) for cell in cells(study, "trained")} == {"block.2"}
    (found,) = mistakes(put(claims_study(), ("claims", "smaller", "depth"), "same"))
    assert found.key == "claims.smaller.rows[1]"
    assert says(found, "'block.8' is beyond the depth of `tiny-untrained` (4 blocks)")


def test_seeds_are_of_the_published_protocol_alone() -> None:
    study = put(claims_study(), ("claims", "trained", "solvers"), ["adam"])
    found = [(cell.solver, cell.seed) for cell in cells(study, "trained")]
    assert found == [("brief", 0), ("brief", 1), ("adam", 0)]


def with_passages(*names: str) -> dict[str, Any]:
    study = put(claims_study(), ("claims", "smaller", "passages"), list(names))
    drawn = {"corpus": "harbour", "tokenizer": "small", "count": 3, "tokens": [4, 6]}
    return put(study, ("passages",), {"drawn": drawn})


def test_passages_are_asked_of_the_first_model_with_the_first_seed_by_every_solver() -> None:
    study = with_passages("drawn")
    study["claims"]["smaller"] |= {"seeds": [5, 6], "rows": ["mixer-flat-d512-untrained-after1"]}
    assert mistakes(study) == []
    found = [cell for cell in cells(study, "smaller") if cell.prompts == "drawn"]
    assert [(cell.solver, cell.seed) for cell in found if cell.solver == "brief"] == [("brief", 5)]
    assert {cell.solver for cell in found} == {"brief", "adam", "sweep", "joint"}
    assert {(cell.model, cell.mask.text) for cell in found} == {("tiny-untrained", "1:")}
    assert len(cells(study, "smaller")) == len(found) + 2 * 5


def test_passages_are_named_and_fit_the_row() -> None:
    (found,) = mistakes(with_passages("drown"))
    assert (found.key, found.value) == ("claims.smaller.passages[0]", "drown")
    assert says(found, "unknown set of passages (did you mean `drawn`?)")
    (found,) = mistakes(with_passages("drawn", "drawn"))
    assert found.key == "claims.smaller.passages[1]"
    assert says(found, "repeats claims.smaller.passages[0]")
    study = with_passages("drawn")
    study["passages"]["drawn"]["tokens"] = [4, 80]
    assert "passages.drawn.tokens" in keys(mistakes(study))
