"""Cells of one model share submissions to a cluster, as many as the study says, in turn."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.workflow.run import RESULTS, pending, smoke, snakemake
from tokinfo.study.study import Study
from tokinfo.workflow.submissions import group, slots


class Workflow(SimpleNamespace):
    """What the module uses of Snakemake's object."""

    def __init__(self, non_local_exec: bool = False, is_main_process: bool = True) -> None:
        super().__init__(
            non_local_exec=non_local_exec,
            is_main_process=is_main_process,
            parent_groupids={},
            group_settings=SimpleNamespace(group_components={"mine": 3}),
            resources={},
        )

    def register_resource(self, name: str, value: int) -> None:
        self.resources[name] = value


def test_one_cell_a_submission_leaves_snakemake_as_it_is() -> None:
    workflow = Workflow()
    assert group(workflow, 1) is None
    assert workflow.group_settings.group_components == {"mine": 3}
    assert workflow.resources == {}


def test_models_have_groups_of_their_own_and_one_number_between_them() -> None:
    workflow = Workflow()
    named = group(workflow, 8)
    assert named is not None
    assert [named(SimpleNamespace(model=name)) for name in "ab"] == ["cells.a", "cells.b"]
    assert workflow.parent_groupids == {"cells.a": "cells.{model}", "cells.b": "cells.{model}"}
    assert workflow.group_settings.group_components == {"mine": 3, "cells.{model}": 8}


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ({}, 0),  # a workstation: cells run side by side, as its cores and GPUs allow
        ({"non_local_exec": True}, 1),  # the process that submits
        ({"is_main_process": False}, 1),  # a submission: its cells run in turn
        ({"non_local_exec": True, "is_main_process": False}, 1),
    ],
)
def test_cells_take_turns_in_a_submission_and_not_on_a_workstation(
    where: dict[str, Any], taken: int
) -> None:
    assert slots(Workflow(**where)) == taken


def test_snakemake_plans_submissions_of_one_model_each(tmp_path: Path, finished: Path) -> None:
    study = smoke()
    study["solvers"]["chapter"]["steps"] = 21  # every cell of this solver is to be made again
    study["grids"][0]["sites"] = ["block.1", "block.last"]
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    target = f"{RESULTS}/tables/recovery.parquet"
    done = snakemake(
        finished,
        *(target, "--dry-run", "--cores", "2", "--configfile", str(file)),
        *("--config", "cells_per_submission=3"),
    )
    assert done.returncode == 0, done.stderr
    # What stands at the margin with a time is a job, or a group whose jobs are indented below it.
    parts = re.split(r"^\[[^]]*\]\s", done.stdout + done.stderr, flags=re.M)
    groups = [part for part in parts if part.startswith("Group job ")]
    wanted = [cell for cell in Study.model_validate(study).cells() if cell.solver == "chapter"]
    sizes: dict[str, list[int]] = {}
    found = []
    for text in groups:
        name = text.split()[2].removeprefix("cells.")
        cells = re.findall(r"Job [0-9]+: (\S+) at (\S+), (\S+): \S+ by chapter", text)
        assert {model for model, _, _ in cells} == {name}
        sizes.setdefault(name, []).append(len(cells))
        found += cells
    named = [cell.wildcards for cell in wanted]
    assert sorted(found) == sorted((w["model"], w["site"], w["mask"]) for w in named)
    assert "mixer-flat" in sizes
    for model, counts in sizes.items():
        full, rest = divmod(sum(cell.model == model for cell in wanted), 3)
        assert sorted(counts, reverse=True) == [3] * full + [rest] * (rest > 0)


def test_how_cells_are_submitted_reruns_nothing(finished: Path) -> None:
    assert pending(finished, smoke() | {"cells_per_submission": 8}) == set()
