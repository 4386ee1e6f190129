"""Rule `fetch`: bring a part of one model here, as safetensors with its tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"fetch {snakemake.wildcards.source} ({snakemake.wildcards.part})"):
    from pydantic import TypeAdapter

    from tokinfo.models.fetch.fetch import fetch
    from tokinfo.study.sources import Pretrained

    settings = snakemake.params.settings
    fetch(
        TypeAdapter(Pretrained).validate_python(settings["source"]),
        settings["blocks"],
        Path(snakemake.output[0]),
        Path(snakemake.params.state),
    )
