"""Rule `strips`: the page that shows prompts above what came back."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], "strips"):
    from tokinfo.report.pages.strips import write_strips

    write_strips(
        Path(snakemake.input.recovery),
        Path(snakemake.output.page),
        **json.loads(snakemake.params.settings["labels"]),
    )
