"""Rule `figure`: draw one figure from its tables."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"figure {snakemake.wildcards.figure}"):
    from pkgutil import resolve_name

    draw = resolve_name(snakemake.params.function)
    draw(
        *map(Path, snakemake.input),
        svg=Path(snakemake.output.svg),
        png=Path(snakemake.output.png),
        **json.loads(snakemake.params.settings["json"]),
    )
