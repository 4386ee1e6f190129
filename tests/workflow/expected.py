"""Jobs of the smoke study, in the sets that a change reruns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.workflow.run import name, smoke
from tokinfo.study.cell import Cell
from tokinfo.study.study import Study
from tokinfo.workflow.rules import FIGURES

FIGURE_JOBS = {f"figure {figure}" for figure in FIGURES} | {"scaling scaling_training"}
CURVES = {"figure training_curves"}
PAGES = {"page strips", "page identifiability"}
TABLES = {"collect", "recovery_csv", "summarise", "noise_table"}
AGGREGATE = {*TABLES, *PAGES, *FIGURE_JOBS} - CURVES


def cells(study: dict[str, Any], wanted: Callable[[Cell], bool] = lambda cell: True) -> set[str]:
    found = Study.model_validate(study).cells()
    return {name("invert", cell.path) for cell in found if wanted(cell)}


def solved_by(*kinds: str) -> set[str]:
    """The cells whose solver is of one of these kinds."""
    solvers = smoke()["solvers"]
    return cells(smoke(), lambda cell: solvers[cell.solver]["kind"] in kinds)


def checkpoints(model: str, *blocks: int) -> set[str]:
    return {f"embedding {model}", *(f"prepare {model} {number}" for number in blocks)}


def checks(*sources: str) -> set[str]:
    return {f"prompts {source}" for source in sources}


RUN = ("mixer-flat", "mixer-flat-0", "mixer-flat-30")
"""The models taken along the training run of the flat mixer."""
TRAINED_FLAT = {
    *cells(smoke(), lambda cell: cell.model in RUN),
    *checkpoints("mixer-flat", 1, 2),
    *checkpoints("mixer-flat-0", 1),
    *checkpoints("mixer-flat-30", 1),
    "train mixer-flat",
    *CURVES,
}
"""What is made of that run."""

ALL_SOURCES = ("mixer-flat", "mixer-expanded", "mixer-parallel", "transformer")
