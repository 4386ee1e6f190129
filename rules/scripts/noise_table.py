"""Rule `noise_table`: at how much noise hidden tokens are lost, with intervals."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], "noise_table"):
    from tokinfo.tables.identifiability import write_noise_table

    write_noise_table(Path(snakemake.input.recovery), Path(snakemake.output.table))
