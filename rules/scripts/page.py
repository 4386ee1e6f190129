"""Rule `page`: write one page of the report from its table."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"page {snakemake.wildcards.page}"):
    from pkgutil import resolve_name

    write = resolve_name(snakemake.params.function)
    write(
        Path(snakemake.input[0]),
        Path(snakemake.output.page),
        **json.loads(snakemake.params.settings["json"]),
    )
