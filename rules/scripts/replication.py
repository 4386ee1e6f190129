"""Rule `replication`: what the source chapter states beside what was found here, row by row."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], "replication"):
    from tokinfo.study.claims import Comparison
    from tokinfo.tables.replication import write_replication

    settings = json.loads(snakemake.params.settings["json"])
    write_replication(
        Path(snakemake.input.recovery),
        [Comparison.model_validate(row) for row in settings["answers"]],
        {Path(path).stem: Path(path) for path in snakemake.input.histories},
        Path(snakemake.output.table),
        Path(snakemake.output.csv),
        Path(snakemake.output.summary),
    )
