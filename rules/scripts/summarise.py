"""Rule `summarise`: shares and intervals from the long table."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], "summarise"):
    from tokinfo.tables.summary import summarise

    summarise(
        Path(snakemake.input.recovery),
        Path(snakemake.output.summary),
        Path(snakemake.output.summary_csv),
    )
