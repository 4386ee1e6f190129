"""What each job asks a machine or a cluster for: GPUs and memory.

None of it is part of what reruns a job. Memory is worked out from the study: the bytes of the
blocks that a job holds, and the activations of its batch; each further attempt asks for as much
again. Like `tokinfo.workflow`, this module imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.sites import Site
from tokinfo.solvers import AdamSolver
from tokinfo.sources import MixerSource, TransformerSource
from tokinfo.study import Cell, Study

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "nf4": 0.5}
# A process that has imported torch and transformers holds this much before it does anything.
PROCESS_MB = 800
# Sizes of fetched models are not in the study; this suits models of up to about 200 M parameters.
FETCHED_MB = 2000


def gpus(study: Study) -> int:
    """Return how many GPUs a job that can use one asks for."""
    if study.device == "auto":
        return int(gpu_visible())
    return int(study.device == "cuda")


def gpu_visible(environment: Mapping[str, str] | None = None, devices: Path = Path("/dev")) -> bool:
    """Return whether a job started here would find a GPU, found out without importing torch.

    ``CUDA_VISIBLE_DEVICES`` decides where it is set (empty or ``-1`` hides every GPU);
    otherwise the driver's device files do.
    """
    chosen = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return chosen.strip() not in {"", "-1", "NoDevFiles"}
    return any(re.fullmatch(r"nvidia[0-9]+", path.name) for path in devices.glob("nvidia*"))


def weights_mb(study: Study, source: str, blocks: int | None = None, bytes_each: float = 4) -> int:
    """Return the size in MB of a source's first ``blocks`` blocks (None: all) in memory."""
    known = study.sources[source]
    if not isinstance(known, MixerSource | TransformerSource):
        return FETCHED_MB
    vocabulary = study.tokenizers[known.tokenizer].vocabulary
    depth = known.blocks if blocks is None else blocks
    count = vocabulary * known.d_model + depth * block_parameters(known)
    return int(count * bytes_each / 1e6) + 1


def block_parameters(source: MixerSource | TransformerSource) -> int:
    """Return the number of weights in one block, to within its norms and biases.

    >>> block_parameters(MixerSource(
    ...     form="flat", d_model=4, blocks=1, n_ctx=8, tokenizer="t"))
    192
    """
    d = source.d_model
    if isinstance(source, TransformerSource):
        return 4 * d * d + 3 * d * (source.intermediate or 4 * d)
    kernels = {
        "flat": 1.0,
        "expanded": 2 * source.expansion,
        "parallel": float(source.kernels),
    }[source.form]
    return int(8 * d * d + kernels * source.n_ctx**2)


def training_mb(study: Study, source: str, attempt: int = 1) -> int:
    """Return the memory in MB of a training job.

    It holds weights, gradients and AdamW's two moments, and the activations of a batch, of
    which the logits and their gradients are the largest at small widths.
    """
    known = study.sources[source]
    activations = 0.0
    if isinstance(known, MixerSource | TransformerSource) and known.training is not None:
        tokens = known.training.batch * known.n_ctx
        vocabulary = study.tokenizers[known.tokenizer].vocabulary
        width = 16 * known.d_model * known.blocks + 3 * vocabulary
        activations = tokens * width * 4 / 1e6
    return attempt * int(PROCESS_MB + 4 * weights_mb(study, source) + activations)


def prepare_mb(study: Study, source: str, attempt: int = 1) -> int:
    """Return the memory in MB of a job that holds a whole model, and a copy of a part of it."""
    return attempt * (PROCESS_MB + 2 * weights_mb(study, source))


def cell_mb(study: Study, cell: Cell, attempt: int = 1) -> int:
    """Return the memory in MB of a cell: its blocks, and its batch's activations and gradients."""
    model = study.models[cell.model]
    source = study.sources[model.source]
    blocks = Site.parse(cell.site).block
    weights = weights_mb(study, model.source, blocks, BYTES[model.quantization])
    if not isinstance(source, MixerSource | TransformerSource):
        return attempt * (PROCESS_MB + weights)
    prompts = study.prompts[cell.prompts]
    solver = study.solvers[cell.solver]
    rows = len(prompts) * (solver.restarts if isinstance(solver, AdamSolver) else 1)
    # A byte-level token is at least one byte, so bytes bound a prompt's tokens from above.
    longest = max(len(prompt.encode()) for prompt in prompts)
    positions = source.n_ctx if cell.padding == "n_ctx" else min(longest, source.n_ctx)
    width = 24 * source.d_model * max(blocks, 1)
    if cell.parametrisation == "vocabulary":
        width += 6 * study.tokenizers[source.tokenizer].vocabulary
    return attempt * int(PROCESS_MB + 2 * weights + rows * positions * width * 4 / 1e6)
