"""Rule `embedding`: a model's embedding alone, and the inverse of its Gram matrix."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"embedding of {snakemake.wildcards.model}"):
    from tokinfo.models.preparing import Cut, cut_checkpoint
    from tokinfo.solvers.decoding import write_inverse_gram

    checkpoint = Path(snakemake.output.checkpoint)
    cut = Cut.model_validate(snakemake.params.settings)
    cut_checkpoint(cut, Path(snakemake.input.origin), checkpoint)
    write_inverse_gram(
        checkpoint,
        Path(snakemake.output.decoder),
        trust_remote_code=getattr(cut.source, "trust_remote_code", False),
    )
