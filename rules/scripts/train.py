"""Rule `train`: train one model, resuming where an interrupted run of the same job stopped."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import device, job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"train {snakemake.wildcards.source}"):
    # Before torch is imported: it sees the GPUs of this job and no other.
    where = device(snakemake.config.get("device", "auto"), snakemake.resources.gpu)
    from pydantic import TypeAdapter

    from tokinfo.models.train import train
    from tokinfo.study.sources import Source

    train(
        TypeAdapter(Source).validate_python(snakemake.params.settings),
        Path(snakemake.input.tokenizer),
        Path(snakemake.input.tokens),
        Path(snakemake.output.model),
        Path(snakemake.output.history),
        Path(snakemake.params.state) / "training" / snakemake.wildcards.source,
        where,
    )
