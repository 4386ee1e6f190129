"""What each job asks a machine or a cluster for: GPUs and memory.

None of it is part of what reruns a job. Memory is worked out from the study: the bytes of the
blocks that a job holds, and the activations of its batch; each further attempt asks for as much
again. Of a model from elsewhere, sizes come from its config.json (`study.architecture`). Like
`tokinfo.workflow.plan`, this module imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

from tokinfo.study.architecture import Architecture, architecture_of, estimate
from tokinfo.study.cell import Cell
from tokinfo.study.solvers import COMPONENTS, AdamSolver, JointSolver, SequentialSolver
from tokinfo.study.sources import GgufSource, MixerSource, TransformerSource, WheelSource
from tokinfo.study.study import Study
from tokinfo.workflow.devices import visible

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "nf4": 0.5}
# A process that has imported torch and transformers holds this much before it does anything.
PROCESS_MB = 800
# What bitsandbytes keeps beside each packed weight: a scale per row, or per block of 64.
SCALES = {"int8": 0.01, "nf4": 0.0625}


def gpus(study: Study) -> int:
    """Return how many GPUs a job that can use one asks for."""
    if study.device == "auto":
        return int(bool(visible()))
    return int(study.device == "cuda")


def weights_mb(study: Study, source: str, blocks: int | None = None, bytes_each: float = 4) -> int:
    """Return the size in MB of a source's first ``blocks`` blocks (None: all) in memory."""
    known = study.sources[source]
    depth = known.blocks if blocks is None else blocks
    if isinstance(known, MixerSource | TransformerSource):
        vocabulary = study.tokenizers[known.tokenizer].vocabulary
        count = vocabulary * known.d_model + depth * block_parameters(known)
    else:
        count = sizes(study, source).weights(depth)
    return int(count * bytes_each / 1e6) + 1


def sizes(study: Study, source: str) -> Architecture:
    """Return the sizes of a pretrained source's model, estimated where nothing is known yet."""
    known = study.sources[source]
    assert not isinstance(known, MixerSource | TransformerSource)
    return architecture_of(known, config_directory(study, source)) or estimate(known)


def sizes_of(study: Study, source: str) -> tuple[int, int]:
    """Return the vocabulary and the width of a source's model."""
    known = study.sources[source]
    if isinstance(known, MixerSource | TransformerSource):
        return study.tokenizers[known.tokenizer].vocabulary, known.d_model
    model = sizes(study, source)
    return model.vocabulary, model.width


def longest_prompt(study: Study, cell: Cell) -> int:
    """Return the most positions that a prompt of a cell can have, no tokenizer being at hand."""
    n_ctx = study.source_of(cell.model).n_ctx
    if cell.prompts in study.passages:
        # Counted with one tokenizer; another rarely needs twice as many tokens for real text.
        longest = 2 * max(study.passages[cell.prompts].tokens)
    else:
        # A byte-level token is at least one byte, so bytes bound a prompt's tokens from above.
        longest = max(len(prompt.encode()) for prompt in study.prompts[cell.prompts])
    return n_ctx if cell.padding == "n_ctx" else min(longest, n_ctx)


def config_directory(study: Study, source: str) -> Path:
    """Return where a run of the study puts the config.json of a pretrained source."""
    return Path(study.results) / "sources" / source / "config"


def fetched_mb(study: Study, source: str, part: str) -> int:
    """Return how many MB a part of a pretrained model brings: blocks, or its config alone.

    A part of a GGUF model is not smaller than that on the disk: it is written dequantised.
    """
    if part == "config":
        return 10  # a tokenizer
    known, model = study.sources[source], sizes(study, source)
    packed = isinstance(known, WheelSource | GgufSource)
    count = model.weights(int(part)) * 4 if packed else model.stored(int(part))
    return int(count / 1e6) + 10


def fetch_mb(study: Study, source: str, part: str, attempt: int = 1) -> int:
    """Return the memory in MB of a job that fetches.

    Safetensors pass through in small pieces; a part of any other file lies in memory once, that
    of a GGUF file twice, where its values are put in order.
    """
    model = sizes(study, source)
    packed = isinstance(study.sources[source], WheelSource | GgufSource)
    if part == "config":
        held = 0
    elif packed:
        held = 2 * 4 * model.weights(int(part))
    else:
        held = model.stored_bytes * max(model.embedding, model.block)
    return attempt * int(PROCESS_MB + 200 + held / 1e6)


def held_mb(study: Study, model: str, blocks: int) -> int:
    """Return the size in MB of a model's first ``blocks`` blocks, as a cell holds them.

    Weights are widened to what they compute in; those that bitsandbytes packs are not.
    """
    known = study.models[model]
    if known.quantization in SCALES:
        return checkpoint_mb(study, model, blocks)
    return int(weights_mb(study, known.source, blocks) * BYTES[known.activations] / 4) + 1


def checkpoint_mb(study: Study, model: str, blocks: int) -> int:
    """Return the size in MB of a model's checkpoint of ``blocks`` blocks, on the disk.

    bitsandbytes packs the blocks' matrices; the embedding is what activations are computed in.
    """
    known = study.models[model]
    each = BYTES[known.quantization]
    embedding = weights_mb(study, known.source, 0)
    inside = weights_mb(study, known.source, blocks) - embedding
    if known.quantization not in SCALES:
        return int((embedding + inside) * each / 4) + 1
    outside = embedding * BYTES[known.activations] / 4
    return int(outside + inside * (each + SCALES[known.quantization]) / 4) + 1


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


def prepare_mb(study: Study, model: str, blocks: int, attempt: int = 1) -> int:
    """Return the memory in MB of a job that cuts a model.

    Random weights are those of the whole model, whatever is kept of it, beside a copy of a part.
    Weights that are there already pass block by block: the embedding and two blocks are held.
    """
    known = study.models[model]
    if known.state == "untrained":
        whole = weights_mb(study, known.source)
        return attempt * (PROCESS_MB + whole + weights_mb(study, known.source, blocks))
    embedding = weights_mb(study, known.source, 0)
    block = weights_mb(study, known.source, 1) - embedding
    return attempt * (PROCESS_MB + embedding + 2 * block)


def cell_mb(study: Study, cell: Cell, attempt: int = 1) -> int:
    """Return the memory in MB of a cell: its blocks, and its batch's activations and gradients."""
    model = study.models[cell.model]
    blocks = cell.block
    # A target's own model is gone before the cell's comes.
    weights = max(held_mb(study, name, blocks) for name in cell.models)
    vocabulary, d_model = sizes_of(study, model.source)
    solver = study.solvers[cell.solver]
    restarts = solver.restarts if isinstance(solver, AdamSolver) else 1
    rows = study.prompt_count(cell.prompts) * restarts
    positions = longest_prompt(study, cell)
    width = 24 * d_model * max(blocks, 1)
    if cell.parametrisation == "vocabulary":
        width += 6 * vocabulary
    # Beside the weights: the embedding in float32, and one block's matrices as they multiply.
    table = vocabulary * d_model * 4 / 1e6
    block = weights_mb(study, model.source, 1) - weights_mb(study, model.source, 0)
    activations = rows * positions * width * 4 / 1e6
    if isinstance(solver, JointSolver) and solver.detections:
        # What every token at every position changes, and three times that of one position.
        activations += (positions + 3) * vocabulary * COMPONENTS * 4 / 1e6
    if isinstance(solver, SequentialSolver):
        # What a surrogate keeps of every token for each one tried, and a copy as it grows.
        activations += 2 * min(solver.guesses, vocabulary) * vocabulary * 4 / 1e6
        # What the model expects behind each prompt: scores, their order, and the tokens in it.
        activations += rows * vocabulary * (4 + 8 + 8) / 1e6
    return attempt * int(PROCESS_MB + weights + 2 * table + block + activations)
