from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tests.example_study import example, put
from tokinfo.study.cell import CELL_PATH, Cell, CellSettings
from tokinfo.study.claims import Comparison
from tokinfo.study.fields import Strict
from tokinfo.study.grid import Grid
from tokinfo.study.masks import Mask
from tokinfo.study.sites import Site
from tokinfo.study.sources import MixerSource
from tokinfo.study.study import Study


def subclasses(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for found in base.__subclasses__():
        yield found
        yield from subclasses(found)


HANDED_TO_JOBS = {Cell, CellSettings, Comparison}
PARTS = sorted(
    (
        part
        for part in {*subclasses(Strict)} - HANDED_TO_JOBS
        if part.__module__.startswith("tokinfo.study.")
    ),
    key=lambda part: part.__name__,
)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_field_is_described(part: type[BaseModel]) -> None:
    assert not [name for name, field in part.model_fields.items() if not field.description]
    assert part.__doc__


def axis(values: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


grids = st.builds(
    Grid,
    models=axis(["flat", "llama", "smol"]),
    sites=axis(["embedding", "block.1", "block.2", "block.last", "attention.2", "mlp.last"]),
    masks=axis([":", "::", "0:", "1:", ":2", "2:5", "-1", "1", "::2", "1::2"]),
    metrics=axis(["l1", "l2", "cosine", "l1+cosine"]),
    parametrisations=axis(["embedding", "vocabulary", "mixture"]),
    solvers=axis(["adam", "chapter"]),
    prompts=axis(["sky", "sea"]),
    residual=axis([True, False]),
    causal=axis([True, False]),
    padding=axis(["none", "n_ctx"]),
    targets=axis(["own", "shuffled", "of:other", "of:shuffled"]),
    known=axis(["none", "visible", "2:", "-1"]),
    seeds=axis([0, 1, 10]),
    identify=st.lists(st.sampled_from(["sweep", "joint"]), max_size=2, unique=True),
)


def with_grids(chosen: list[Grid]) -> Study:
    raw = put(example(), ("prompts", "sea"), ["The sea is grey."])
    return Study.model_validate(raw).model_copy(update={"grids": chosen})


def meaning(study: Study, grid: Grid) -> set[tuple[Any, ...]]:
    """What a grid stands for, written down independently of `Study.cells`."""
    searches = {
        (v, p, o, g, e)
        for v in grid.metrics
        for p in grid.parametrisations
        for o in grid.solvers
        for g in grid.targets
        for e in grid.seeds
    }
    searches |= {(grid.metrics[0], "embedding", o, "own", grid.seeds[0]) for o in grid.identify}
    return {
        (m, str(Site.parse(s).resolve(study.source_of(m).blocks)), Mask(k).text, *how, *which)
        for m in grid.models
        for s in grid.sites
        for k in grid.masks
        for which in product(grid.residual, grid.causal, grid.padding, grid.prompts, grid.known)
        for how in searches
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(grids, min_size=1, max_size=3))
def test_cells_are_the_union_of_the_grids_without_duplicates(chosen: list[Grid]) -> None:
    study = with_grids(chosen)
    cells = study.cells()
    assert len(set(cells)) == len(cells)
    found = {
        (c.model, str(c.site), c.mask.text, c.metric, c.parametrisation, c.solver, c.target, c.seed,
         c.residual, c.causal, c.padding, c.prompts, c.known.text)
        for c in cells
    }  # fmt: skip
    assert found == set().union(*(meaning(study, grid) for grid in chosen))


@settings(max_examples=30, deadline=None)
@given(st.lists(grids, min_size=1, max_size=2))
def test_every_cell_has_a_file_of_its_own(chosen: list[Grid]) -> None:
    cells = with_grids(chosen).cells()
    # Compared without case, as some file systems do.
    assert len({cell.path.lower() for cell in cells}) == len(cells)


def test_wildcards_have_no_separator_inside_and_make_the_path() -> None:
    for cell in Study.model_validate(example()).cells():
        assert not [value for value in cell.wildcards.values() if set(value) & set("/_ ")]
        assert CELL_PATH.format(**cell.wildcards) == cell.path


def test_cells_keep_the_order_in_which_grids_name_models() -> None:
    models = [cell.model for cell in Study.model_validate(example()).cells()]
    assert list(dict.fromkeys(models)) == ["flat", "llama", "smol"]


def test_the_files_of_cells_that_explain_their_own_prompts_say_nothing_of_targets() -> None:
    (cell, *_) = Study.model_validate(example()).cells()
    assert cell.path == "cells/flat/block.1/all/l1_embedding_adam_sky_s0.parquet"
    shuffled = cell.model_copy(update={"target": "shuffled"})
    assert shuffled.path == cell.path.replace("block.1", "block.1+shuffled")
    other = cell.model_copy(update={"target": "of:flat-b", "residual": False})
    assert other.path == cell.path.replace("block.1", "block.1+noresidual+of-flat-b")
    assert (cell.models, other.models) == (("flat",), ("flat", "flat-b"))


def test_identify_runs_once_in_each_setting_and_repeats_no_cell() -> None:
    raw = put(example(), ("solvers", "sweep"), {"kind": "sweep"})
    plain = raw["grids"][0] | {"models": ["flat"], "sites": ["block.1"], "masks": ["1:"]}
    wide = plain | {"metrics": ["cosine", "l1"], "seeds": [3, 4], "targets": ["own", "shuffled"]}
    study = Study.model_validate(raw | {"grids": [wide | {"identify": ["sweep"]}]})
    assert len(study.cells()) == 8 + 1
    (sweep,) = (cell for cell in study.cells() if cell.solver == "sweep")
    assert (sweep.metric, sweep.seed, sweep.target) == ("cosine", 3, "own")
    named = plain | {"metrics": ["cosine"], "seeds": [3], "solvers": ["sweep"]}
    both = Study.model_validate(raw | {"grids": [wide | {"identify": ["sweep"]}, named]})
    assert both.cells() == study.cells()


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "fast", 0, -1.0])
def test_a_learning_rate_is_a_finite_positive_number(value: object) -> None:
    raw = put(example(), ("sources", "flat", "training", "learning_rate"), value)
    with pytest.raises(ValidationError):
        Study.model_validate(raw)


def test_numbers_in_exponent_form_are_read_as_numbers() -> None:
    """YAML 1.1 reads `1e-3` as text."""
    raw = put(example(), ("sources", "flat", "training", "learning_rate"), "1e-3")
    source = Study.model_validate(raw).sources["flat"]
    assert isinstance(source, MixerSource)
    assert source.training is not None
    assert source.training.learning_rate == 1e-3


def test_a_valid_study_cannot_be_changed() -> None:
    study = Study.model_validate(example())
    with pytest.raises(ValidationError, match="frozen"):
        study.name = "other"
