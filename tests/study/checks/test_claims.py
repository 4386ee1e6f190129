"""What answers a row of the chapter is checked before anything runs, and becomes cells."""

from __future__ import annotations

from typing import Any

import pytest

from tests.claims_study import SKY, claims_study
from tests.example_study import put
from tokinfo.study.cell import Cell
from tokinfo.study.load import problems
from tokinfo.study.study import Study


def lines(study: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in problems(study)]


def cells(study: dict[str, Any], name: str) -> list[Cell]:
    return [
        cell
        for answer in Study.model_validate(study).answers()
        if answer.name == name
        for cell in (*answer.published, *answer.others)
    ]


def test_the_study_is_valid_and_runs_what_it_says() -> None:
    study = claims_study()
    assert lines(study) == []
    made = Study.model_validate(study).cells()
    assert {cell.model for cell in made} == {
        "d32-untrained",
        "tiny",
        "tiny-untrained",
        "tiny-untrained-1",
    }
    del study["run"]
    assert {cell.model for cell in Study.model_validate(study).cells()} > {"llama-7b"}


ENTRY = ("claims", "own")


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("run",), ["ownn"], "run[0] = 'ownn': unknown claims entry (did you mean"),
        ((*ENTRY, "rows"), ["mixer"], "claims.own.rows[0] = 'mixer': unknown row"),
        ((*ENTRY, "models"), ["d33"], "claims.own.models[0] = 'd33': unknown model"),
        ((*ENTRY, "models"), ["tiny"], "claims.own.models[0] = 'tiny': has state trained, and"),
        ((*ENTRY, "models"), ["tiny-untrained"], "has d_model 16, and the model of row mixer-un"),
        ((*ENTRY, "models"), ["d32-untrained"] * 2, "repeats claims.own.models[0]"),
        ((*ENTRY, "prompts"), ["sky"], "claims.own.prompts = ['sky']: have no prompt of row"),
        ((*ENTRY, "prompts"), ["sea"], "claims.own.prompts[0] = 'sea': unknown prompt set"),
        ((*ENTRY, "published"), "adam", "claims.own.published = 'adam': is of kind adam"),
        ((*ENTRY, "published"), "chapter-llama", "has learning_rate 2; row mixer-untrained-"),
        ((*ENTRY, "published"), "brief", "claims.own.published = 'brief': has steps 10; row"),
        ((*ENTRY, "solvers"), ["sweep"], "claims.own.solvers[0] = 'sweep': is of kind sweep"),
        ((*ENTRY, "identify"), ["adam"], "claims.own.identify[0] = 'adam': is of kind adam"),
        ((*ENTRY, "padding"), "none", "claims.own.padding = 'none': is only another one than"),
        ((*ENTRY, "depth"), "same", "claims.own.depth = 'same': says where a stand-in is read"),
        ((*ENTRY, "paddin"), "none", "claims.own.paddin = 'none': unknown key"),
        (
            ("claims", "smaller", "rows"),
            ["llama7b-untrained-two-blocks"],
            "claims.smaller.prompts = ['mario']: have no prompt of row llama7b-untrained-two",
        ),
        (("solvers", "chapter", "decode"), {"restricted_to": "A sky"}, "decodes among other tok"),
        (("prompts", "mario"), [SKY], "claims.own.prompts = ['mario']: have no prompt of row"),
        (("corpora", "harbour", "path"), "none.txt", "corpora.harbour.path = 'none.txt': there"),
    ],
)
def test_a_mistake_is_named_with_its_key(
    path: tuple[str | int, ...], value: object, expected: str
) -> None:
    found = lines(put(claims_study(), path, value))
    assert any(expected in line for line in found), found


def test_a_row_has_one_answer_besides_stand_ins() -> None:
    study = claims_study()
    study["claims"]["again"] = study["claims"]["own"]
    assert "is answered by claims.own already" in lines(study)[0]
    study["claims"]["again"] |= {"stand_in": "the same again"}
    assert lines(study) == []


def test_what_does_not_fit_a_cell_is_told_of_its_row() -> None:
    study = put(claims_study(), ("prompts", "geralt"), ["Geralt of Rivia"])
    study["claims"]["smaller"] |= {
        "rows": ["llama7b-untrained-attention1-after1-geralt"],
        "prompts": ["geralt"],
    }
    (found,) = lines(study)
    assert found.startswith("claims.smaller.rows[0] = 'llama7b-untrained-attention1-after1-geralt'")
    assert "mixers are causal by construction" in found


def test_neither_grids_nor_claims_is_a_mistake() -> None:
    study = claims_study()
    del study["claims"], study["run"]
    assert [line for line in lines(study) if "grids" in line] == [
        "grids = []: is empty; allowed: grids, or `claims`"
    ]


def test_a_cell_is_what_the_row_says() -> None:
    published, adam, swept = cells(claims_study(), "own")
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
    (line,) = lines(put(claims_study(), ("claims", "smaller", "depth"), "same"))
    assert "rows[1]" in line
    assert "'block.8' is beyond the depth of `tiny-untrained` (4 blocks)" in line


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
    assert lines(study) == []
    found = [cell for cell in cells(study, "smaller") if cell.prompts == "drawn"]
    assert [(cell.solver, cell.seed) for cell in found if cell.solver == "brief"] == [("brief", 5)]
    assert {cell.solver for cell in found} == {"brief", "adam", "sweep", "joint"}
    assert {(cell.model, cell.mask.text) for cell in found} == {("tiny-untrained", "1:")}
    assert len(cells(study, "smaller")) == len(found) + 2 * 5


def test_passages_are_named_and_fit_the_row() -> None:
    (line,) = lines(with_passages("drown"))
    assert line.startswith("claims.smaller.passages[0] = 'drown': unknown set of passages")
    assert "did you mean `drawn`" in line
    (line,) = lines(with_passages("drawn", "drawn"))
    assert "claims.smaller.passages[1] = 'drawn': repeats claims.smaller.passages[0]" in line
    study = with_passages("drawn")
    study["passages"]["drawn"]["tokens"] = [4, 80]
    assert any("passages.drawn.tokens" in line for line in lines(study))
