"""Rule `collect`: put the study's cells into one long table."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], "collect"):
    from tokinfo.tables.recovery import collect

    collect(
        [Path(path) for path in snakemake.input.cells],
        Path(snakemake.output.recovery),
    )
