"""Rule `prepare`: cut a model to its embedding and first blocks, in one precision."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(
    snakemake.log[0], f"prepare {snakemake.wildcards.model} ({snakemake.wildcards.blocks} blocks)"
):
    from tokinfo.models.preparing import Cut, cut_checkpoint

    cut_checkpoint(
        Cut.model_validate(snakemake.params.settings),
        Path(snakemake.input.origin),
        Path(snakemake.output.checkpoint),
    )
