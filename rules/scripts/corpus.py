"""Rule `corpus`: write one corpus as training text and held-out text."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"corpus {snakemake.wildcards.corpus}"):
    from pydantic import TypeAdapter

    from tokinfo.study.sources import Corpus
    from tokinfo.text.corpus import write_corpus

    write_corpus(
        TypeAdapter(Corpus).validate_python(snakemake.params.settings),
        Path(snakemake.output.train),
        Path(snakemake.output.held_out),
        Path(snakemake.params.state) / "downloads",
    )
