"""Rule `figure`: draw one figure from the summary."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"figure {snakemake.wildcards.figure}"):
    from tokinfo.report.figures.draw import draw

    draw(
        snakemake.wildcards.figure,
        Path(snakemake.input.summary),
        Path(snakemake.output.svg),
        Path(snakemake.output.png),
    )
