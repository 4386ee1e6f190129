"""Rule `replication_page`: the page that says of each row of the chapter whether it agrees."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], "replication_page"):
    from tokinfo.report.pages.replication import write_replication_page

    write_replication_page(
        Path(snakemake.input.table),
        Path(snakemake.output.page),
        **json.loads(snakemake.params.settings["labels"]),
    )
