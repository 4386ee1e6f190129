"""How cells share the submissions of a cluster: as many of one model as the study says, in turn.

Snakemake merges jobs of one group up to a number that it takes from its command line. The study
says that number, in the process that submits and, alike, in every process on the cluster that
unpacks a submission. Snakemake reads its command line after the Snakefile, so the number is set
when the first group is requested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GROUP = "cells.{model}"
"""Name of a model's group: what `--group-components` would call all of them at once."""
CELL = "cell"
"""Resource of which every cell takes one, and a submission has one: its cells run in turn."""


def group(workflow: Any, cells_per_submission: int) -> Callable[[Any], str] | None:
    """Return the group of a cell, as a function of its wildcards; None: each is submitted alone.

    Without a limit of one cell at a time Snakemake would ask for the memory, processors and GPUs
    of all of a submission's cells at once; with it, for the largest of them and for the sum of
    their times.

    Args:
        workflow: Snakemake's object, as the Snakefile sees it.
        cells_per_submission: the study's setting.
    """
    if cells_per_submission == 1:
        return None
    workflow.register_resource(CELL, 1)

    def of_model(wildcards: Any) -> str:
        name = GROUP.format(model=wildcards.model)
        settings = workflow.group_settings
        settings.group_components = {**settings.group_components, GROUP: cells_per_submission}
        workflow.parent_groupids[name] = GROUP
        return name

    return of_model


def slots(workflow: Any) -> int:
    """Return how much of its submission's one `cell` a cell takes: 0 where it is not submitted.

    Call it once the jobs are determined: while the Snakefile is read, Snakemake does not yet say
    where they will run.
    """
    return int(workflow.non_local_exec or not workflow.is_main_process)
