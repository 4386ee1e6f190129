"""Rule `unigram`: how probable each of a model's tokens is before anything is seen."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"unigram {snakemake.wildcards.model}"):
    from tokinfo.models.unigram import write_unigrams

    write_unigrams(
        Path(snakemake.input.checkpoint), Path(snakemake.input.text), Path(snakemake.output[0])
    )
