"""Rule `fetch`: bring one model here, as safetensors with its tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"fetch {snakemake.wildcards.source}"):
    from pydantic import TypeAdapter

    from tokinfo.models.pretrained import fetch
    from tokinfo.sources import Source

    fetch(
        TypeAdapter(Source).validate_python(snakemake.params.settings),
        Path(snakemake.output[0]),
        Path(snakemake.params.state) / "downloads",
    )
