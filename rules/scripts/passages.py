"""Rule `passages`: draw prompts from the held-out part of a corpus."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"passages {snakemake.wildcards.passages}"):
    from tokinfo.study.sources import Passages
    from tokinfo.text.passages import write_passages

    write_passages(
        Passages.model_validate(snakemake.params.settings),
        Path(snakemake.input.held_out),
        Path(snakemake.input.tokenizer) / "tokenizer.json",
        Path(snakemake.output[0]),
    )
