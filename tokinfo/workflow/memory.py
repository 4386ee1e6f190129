"""What each job asks a machine or a cluster for: GPUs and memory.

None of it is part of what reruns a job. Memory is worked out from the study: the bytes of the
blocks that a job holds, and the activations of its batch; each further attempt asks for as much
again. Of a model from elsewhere, sizes come from its config.json (`study.architecture`). Like
`tokinfo.workflow.plan`, this module imports neither torch nor transformers.
"""

from __future__ import annotations

from tokinfo.study.architecture import sizes_of
from tokinfo.study.cell import Cell
from tokinfo.study.known import VISIBLE
from tokinfo.study.prompts import contents
from tokinfo.study.solvers import (
    COMPONENTS,
    HELD,
    MOST_ENTRIES,
    MOST_MIXER_ENTRIES,
    AdamSolver,
    ChapterSolver,
    JointSolver,
    MixtureSolver,
    SequentialSolver,
)
from tokinfo.study.sources import COMPARED_MB, Built, Gguf, MixerSource
from tokinfo.study.study import Study
from tokinfo.workflow.devices import visible

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "nf4": 0.5}
# A process that has imported torch and transformers holds this much before it does anything.
PROCESS_MB = 800
TEMPLATE_TOKENS = 200
"""About the most that a chat template writes beside the messages' contents."""
# What bitsandbytes keeps beside each packed weight: a scale per row, or per block of 64.
SCALES = {"int8": 0.01, "nf4": 0.0625}


def gpus(study: Study) -> int:
    """Return how many GPUs a job that can use one asks for."""
    if study.device == "auto":
        return int(bool(visible()))
    return int(study.device == "cuda")


def longest_prompt(study: Study, cell: Cell) -> int:
    """Return the most positions that a prompt of a cell can have, no tokenizer being at hand."""
    n_ctx = study.source_of(cell.model).n_ctx
    if cell.prompts in study.passages:
        # Counted with one tokenizer; another rarely needs twice as many tokens for real text.
        longest = 2 * max(study.passages[cell.prompts].tokens)
    else:
        # A byte-level token is at least one byte, so bytes bound a prompt's tokens from above.
        longest = max(
            sum(len(text.encode()) for text in contents(prompt))
            + (0 if isinstance(prompt, str) else TEMPLATE_TOKENS)
            for prompt in study.prompts[cell.prompts]
        )
    return n_ctx if cell.padding == "n_ctx" else min(longest, n_ctx)


def most_hidden(study: Study, cell: Cell, length: int) -> int:
    """Return the most positions that a cell hides in a prompt of ``length`` tokens."""
    if not cell.mask.roles:
        return length - cell.mask.count(length)
    hidden = (
        sum(len(m.content.encode()) for m in prompt if m.role in cell.mask.roles)
        for prompt in study.prompts[cell.prompts]
        if not isinstance(prompt, str)
    )
    return min(max(hidden), length)


def most_entries(study: Study, cell: Cell, length: int) -> int:
    """Return about the most entries of a sequence of a cell whose mixtures descend; 0: none do."""
    solver = study.solvers[cell.solver]
    if cell.parametrisation != "mixture" or not isinstance(solver, ChapterSolver | AdamSolver):
        return 0
    candidates = sizes_of(study, study.models[cell.model].source).vocabulary
    if solver.decode.restricted_to is not None:
        # Real text rarely has more than one token for two bytes, and many repeat.
        candidates = min(candidates, len(solver.decode.restricted_to.encode()) // 2 + 1)
    if cell.known.text == VISIBLE:
        sought = most_hidden(study, cell, length)
    else:
        sought = length - cell.known.count(cell.mask, length)
    mixer = isinstance(study.source_of(cell.model), MixerSource)
    # A cell with more than that is refused.
    return min(sought * candidates + length, MOST_MIXER_ENTRIES if mixer else MOST_ENTRIES)


def part_mb(study: Study, source: str, part: str) -> int:
    """Return how many MB a part of a pretrained model, blocks or its config, has on the disk.

    As many are fetched from the hub. A part of a GGUF file is written dequantised.
    """
    if part == "config":
        return 10  # a tokenizer
    sizes = sizes_of(study, source)
    packed = isinstance(study.sources[source], Gguf)
    return int(sizes.weights(int(part)) * (4 if packed else sizes.stored_bytes) / 1e6) + 10


def fetch_mb(study: Study, source: str, part: str, attempt: int = 1) -> int:
    """Return the memory in MB of a job that fetches.

    Safetensors pass through in small pieces; a part of any other file lies in memory once, that
    of a GGUF file twice, where its values are put in order.
    """
    sizes = sizes_of(study, source)
    if part == "config":
        held = 0
    elif isinstance(study.sources[source], Gguf):
        held = 2 * 4 * sizes.weights(int(part))
    else:
        held = sizes.stored_bytes * max(sizes.embedding, sizes.block)
    return attempt * int(PROCESS_MB + 200 + held / 1e6)


def held_mb(study: Study, model: str, blocks: int) -> int:
    """Return the size in MB of a model's first ``blocks`` blocks, as a cell holds them.

    Weights are widened to what they compute in; those that bitsandbytes packs are not.
    """
    settings = study.models[model]
    if settings.quantization in SCALES:
        return checkpoint_mb(study, model, blocks)
    whole = sizes_of(study, settings.source).megabytes(blocks)
    return int(whole * BYTES[settings.activations] / 4) + 1


def checkpoint_mb(study: Study, model: str, blocks: int) -> int:
    """Return the size in MB of a model's checkpoint of ``blocks`` blocks, on the disk.

    bitsandbytes packs the blocks' matrices; the embedding is what activations are computed in.
    """
    settings = study.models[model]
    sizes = sizes_of(study, settings.source)
    each = BYTES[settings.quantization]
    whole, embedding = sizes.megabytes(blocks), sizes.megabytes(0)
    if settings.quantization not in SCALES:
        return int(whole * each / 4) + 1
    outside = embedding * BYTES[settings.activations] / 4
    return int(outside + (whole - embedding) * (each + SCALES[settings.quantization]) / 4) + 1


def training_mb(study: Study, source: str, attempt: int = 1) -> int:
    """Return the memory in MB of a training job.

    It holds weights, gradients and AdamW's two moments, and the activations of a batch, of
    which the logits and their gradients are the largest at small widths.
    """
    built, sizes = study.sources[source], sizes_of(study, source)
    activations = 0.0
    if isinstance(built, Built) and built.training is not None:
        tokens = built.training.batch * built.n_ctx
        width = 16 * sizes.width * built.blocks + 3 * sizes.vocabulary
        activations = tokens * width * 4 / 1e6
    return attempt * int(PROCESS_MB + 4 * sizes.megabytes(built.blocks) + activations)


def prepare_mb(study: Study, model: str, blocks: int, attempt: int = 1) -> int:
    """Return the memory in MB of a job that cuts a model.

    Random weights are those of the whole model, whatever is kept of it, beside a copy of a part.
    Weights that are there already pass block by block: the embedding and two blocks are held.
    A small checkpoint is then compared with its whole model, as far as it goes.
    """
    settings = study.models[model]
    sizes = sizes_of(study, settings.source)
    held = sizes.megabytes(0) + 2 * sizes.block_megabytes
    if settings.state == "untrained":
        held = sizes.megabytes(study.source_of(model).blocks) + sizes.megabytes(blocks)
    if (part := checkpoint_mb(study, model, blocks)) <= COMPARED_MB:
        held = max(held, 2 * part)
    return attempt * (PROCESS_MB + held)


def cell_mb(study: Study, cell: Cell, attempt: int = 1) -> int:
    """Return the memory in MB of a cell: its blocks, and its batch's activations and gradients."""
    blocks = cell.block
    # The other model of a target is freed before the cell's is loaded.
    weights = max(held_mb(study, name, blocks) for name in cell.models)
    sizes = sizes_of(study, study.models[cell.model].source)
    solver = study.solvers[cell.solver]
    restarts = solver.restarts if isinstance(solver, AdamSolver) else 1
    rows = study.prompt_count(cell.prompts) * restarts
    positions = longest_prompt(study, cell)
    width = 24 * sizes.width * max(blocks, 1)
    if cell.parametrisation == "vocabulary":
        width += 6 * sizes.vocabulary
    # Beside the weights: the embedding in float32, and one block's matrices as they multiply.
    table = sizes.vocabulary * sizes.width * 4 / 1e6
    activations = rows * positions * width * 4 / 1e6
    if entries := most_entries(study, cell, positions):
        # Each is a position of its own; beside it attention's scores with all others, four times,
        # or the sequence that a mixer has of each, three times. Heads are seldom narrower than 64.
        mixer = isinstance(study.source_of(cell.model), MixerSource)
        beside = 3 * positions * sizes.width if mixer else 4 * entries * sizes.width / 64
        activations += rows * entries * (width + max(blocks, 1) * beside) * 4 / 1e6
    if isinstance(solver, JointSolver) and solver.detections:
        # What every token at every position changes, and three times that of one position.
        activations += (positions + 3) * sizes.vocabulary * COMPONENTS * 4 / 1e6
    mixing, path = mixing_of(study, cell), mixed_by(study, cell)
    if mixing is not None:
        hidden = most_hidden(study, cell, positions)
        # Random prompts' returns of attention, twice, and all tokens' keys and values.
        activations += 2 * (1024 + sizes.width) * positions * sizes.width * 4 / 1e6 + 2 * table
        if path == "convex":
            # The exponentials of a head for each hidden position, visible one and token; heads are
            # seldom narrower than 64.
            each = (positions - hidden) * sizes.width / 64 * sizes.vocabulary * 4 / 1e6
            activations += 4 * each + min(HELD / 1e6, hidden * each)
        else:
            if path == "annealing":
                # All candidates' keys and values, twice while they are put together.
                each = 2 * max(blocks, 1) * sizes.width * sizes.vocabulary * 4 / 1e6
                activations += 2 * min(HELD / 1e6, hidden * each)
            activations += (hidden + 3) * sizes.vocabulary * COMPONENTS * 4 / 1e6
            entries = 512 + 2 * hidden * mixing.shortlist + positions
            activations += 4 * blocks * sizes.width / 64 * entries**2 * 4 / 1e6
    if isinstance(solver, SequentialSolver):
        # What a surrogate keeps of every token for each one tried, and a copy as it grows.
        activations += 2 * min(solver.guesses, sizes.vocabulary) * sizes.vocabulary * 4 / 1e6
        # What the model expects behind each prompt: scores, their order, and the tokens in it.
        activations += rows * sizes.vocabulary * (4 + 8 + 8) / 1e6
    return attempt * int(PROCESS_MB + weights + 2 * table + sizes.block_megabytes + activations)


def mixed_by(study: Study, cell: Cell) -> str:
    """Return which search of `mixture` a cell is taken to need: the `path` of its results.

    Of a model from elsewhere it is not known before it is fetched whether its attention can be
    taken apart; it is supposed.
    """
    if isinstance(study.source_of(cell.model), MixerSource):
        return "descent"
    whole = study.models[cell.model].quantization == "float32"
    return "convex" if cell.block == 1 and whole else "annealing"


def mixing_of(study: Study, cell: Cell) -> MixtureSolver | None:
    """Return the settings of a cell's search by mixtures; None: it makes none."""
    solver = study.solvers[cell.solver]
    if isinstance(solver, MixtureSolver):
        return solver
    if isinstance(solver, JointSolver) and solver.mixtures and mixed_by(study, cell) != "descent":
        return MixtureSolver(leading=solver.leading)
    return None
