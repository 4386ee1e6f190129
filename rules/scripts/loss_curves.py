"""Rule `loss_curves`: draw how far each descent got."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], "figure loss_curves"):
    from tokinfo.report.figures.loss import loss_curves

    loss_curves(
        Path(snakemake.input.recovery),
        Path(snakemake.output.svg),
        Path(snakemake.output.png),
    )
