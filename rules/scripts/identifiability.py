"""Rule `identifiability`: the page that tells what was not found from what is not there."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], "identifiability"):
    from tokinfo.report.pages.identifiability import write_identifiability

    write_identifiability(
        Path(snakemake.input.recovery),
        Path(snakemake.output.page),
        **json.loads(snakemake.params.settings["labels"]),
    )
