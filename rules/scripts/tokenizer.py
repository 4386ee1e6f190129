"""Rule `tokenizer`: train one tokenizer on its corpus."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"tokenizer {snakemake.wildcards.tokenizer}"):
    from tokinfo.text.tokenizer import train_tokenizer

    train_tokenizer(
        Path(snakemake.input.corpus),
        snakemake.params.settings["vocabulary"],
        Path(snakemake.output[0]),
    )
