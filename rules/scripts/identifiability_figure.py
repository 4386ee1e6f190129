"""Rule `identifiability_figure`: draw one figure from the long table."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"identifiability_figure {snakemake.wildcards.figure}"):
    from tokinfo.report.figures.draw import draw

    draw(
        snakemake.wildcards.figure,
        Path(snakemake.input.recovery),
        Path(snakemake.output.svg),
        Path(snakemake.output.png),
    )
