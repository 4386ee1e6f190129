"""Rule `prompts`: check the prompts of a source's models with its tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"prompts for {snakemake.wildcards.source}"):
    from tokinfo.text.promptcheck import check_prompts

    check_prompts(
        Path(snakemake.input.tokenizer),
        Path(snakemake.output[0]),
        [Path(path) for path in snakemake.input.passages],
        **snakemake.params.settings,
    )
