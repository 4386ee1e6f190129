"""Rule `training_curves`: draw the losses of every model that was trained."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], "figure training_curves"):
    from tokinfo.report.figures.training import training_curves

    training_curves(
        [Path(path) for path in snakemake.input.get("histories", [])],
        Path(snakemake.output.svg),
        Path(snakemake.output.png),
        families=snakemake.params.settings,
    )
