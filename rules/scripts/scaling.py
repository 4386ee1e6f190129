"""Rule `scaling`: tabulate and draw what depends on one property of model or task."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"scaling with {snakemake.wildcards.axis}"):
    from tokinfo.report.figures.scaling import draw_scaling
    from tokinfo.tables.scaling import points, write

    axis = snakemake.wildcards.axis
    rows = points(Path(snakemake.input.recovery), axis)
    write(rows, Path(snakemake.output.table))
    draw_scaling(rows, axis, Path(snakemake.output.svg), Path(snakemake.output.png))
