"""Rule `invert`: solve one cell."""

from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.workflow.jobs import device, job

if TYPE_CHECKING:
    from snakemake.script import snakemake

with job(snakemake.log[0], f"invert {snakemake.output[0]}"):
    # Before torch is imported: it sees the GPUs of this job and no other.
    where = device(snakemake.config.get("device", "auto"), snakemake.resources.gpu)
    from tokinfo.cell import run_cell
    from tokinfo.study.cell import CellSettings

    run_cell(
        CellSettings.model_validate(snakemake.params.settings),
        Path(snakemake.input.checkpoint),
        Path(snakemake.input.decoder),
        Path(snakemake.output[0]),
        target=next(map(Path, snakemake.input.target), None),
        prior=next(map(Path, snakemake.input.prior), None),
        passages=next(map(Path, snakemake.input.passages), None),
        device=where,
        threads=snakemake.threads,
        code_digest=snakemake.params.code,
    )
