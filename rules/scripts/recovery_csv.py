"""Rule `recovery_csv`: write the long table as text."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], "recovery_csv"):
    from tokinfo.tables.recovery import write_csv

    write_csv(Path(snakemake.input.recovery), Path(snakemake.output.table))
