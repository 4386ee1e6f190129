"""Rule `tokens`: encode a corpus with its tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"tokens {snakemake.wildcards.tokenizer}"):
    from tokinfo.text.tokenizer import encode_corpus

    encode_corpus(
        Path(snakemake.input.tokenizer),
        Path(snakemake.input.train),
        Path(snakemake.input.held_out),
        Path(snakemake.output[0]),
    )
