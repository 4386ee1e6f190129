"""What each job asks a machine or a cluster for: GPUs and memory.

None of it is part of what reruns a job. Memory is worked out from the study: the bytes of the
blocks that a job holds, and the activations of its batch; each further attempt asks for as much
again. Of a model from elsewhere, sizes come from its config.json (`study.architecture`). Like
`tokinfo.workflow.plan`, this module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tokinfo.study.architecture import sizes_of
from tokinfo.study.cell import Cell
from tokinfo.study.known import VISIBLE
from tokinfo.study.lengths import EXTRA_TOKENS
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
LARGE = 16_384
"""Tokens of a vocabulary from which on words have few of them."""
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
    """Return the most positions that a prompt of a cell has: counted, or as many as it can have."""
    source = study.models[cell.model].source
    n_ctx = study.sources[source].n_ctx
    if cell.padding == "n_ctx":
        return n_ctx
    # The check of the prompts has counted them, where a run has come so far.
    counted = _counted(Path(study.results) / "prompts" / f"{source}.json").get(cell.prompts, [])
    if len(counted) == study.prompt_count(cell.prompts):
        return min(max(counted), n_ctx)
    if cell.prompts in study.passages:
        # Counted with one tokenizer; another rarely needs twice as many tokens for real text.
        return min(2 * max(study.passages[cell.prompts].tokens), n_ctx)
    vocabulary = sizes_of(study, source).vocabulary
    longest = max(
        sum(most_tokens(text, vocabulary) for text in contents(prompt))
        + (EXTRA_TOKENS if isinstance(prompt, str) else TEMPLATE_TOKENS)
        for prompt in study.prompts[cell.prompts]
    )
    return min(longest, n_ctx)


def _counted(path: Path) -> dict[str, list[int]]:
    """Return the tokens of each prompt, by set, as a run has counted them; nothing: none has."""
    try:
        return _read_counts(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@cache
def _read_counts(path: Path, changed: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def most_tokens(text: str, vocabulary: int) -> int:
    """Return about the most tokens that a text has, no tokenizer being at hand.

    A byte-level token is at least one byte. In large vocabularies words in Latin letters rarely
    have more than one token for two of them; digits and other signs may stand alone.

    >>> most_tokens("The sky is blue, 2", 49_152), most_tokens("The sky is blue, 2", 4096)
    (10, 18)
    """
    size = len(text.encode())
    if vocabulary < LARGE:
        return size
    letters = sum(sign == " " or (sign.isascii() and sign.isalpha()) for sign in text)
    return size - letters // 2


def most_hidden(study: Study, cell: Cell, length: int) -> int:
    """Return the most positions that a cell hides in a prompt of ``length`` tokens."""
    if not cell.mask.named:
        return length - cell.mask.count(length)
    if cell.mask.texts:
        return length
    vocabulary = sizes_of(study, study.models[cell.model].source).vocabulary
    hidden = (
        sum(most_tokens(m.content, vocabulary) for m in prompt if m.role in cell.mask.roles)
        for prompt in study.prompts[cell.prompts]
        if not isinstance(prompt, str)
    )
    return min(max(hidden), length)


def _most_sought(study: Study, cell: Cell, length: int) -> int:
    """Return the most positions of a prompt of ``length`` tokens whose token is not known."""
    if cell.known.text == VISIBLE:
        return most_hidden(study, cell, length)
    return length - cell.known.count(cell.mask, length)


def most_entries(study: Study, cell: Cell, length: int) -> int:
    """Return about the most entries of a sequence of a cell whose mixtures descend; 0: none do."""
    solver = study.solvers[cell.solver]
    if cell.parametrisation != "mixture" or not isinstance(solver, ChapterSolver | AdamSolver):
        return 0
    candidates = sizes_of(study, study.models[cell.model].source).vocabulary
    if solver.decode.restricted_to is not None:
        # Real text rarely has more than one token for two bytes, and many repeat.
        candidates = min(candidates, len(solver.decode.restricted_to.encode()) // 2 + 1)
    sought = _most_sought(study, cell, length)
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
    descent = solver.descent if isinstance(solver, JointSolver | MixtureSolver) else solver
    restarts = descent.restarts if isinstance(descent, AdamSolver) else 1
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
    mixed = _mixing_mb(study, cell, positions)
    if isinstance(solver, JointSolver):
        # One after the other.
        activations += max(mixed, _detecting_mb(study, cell, solver, positions))
    else:
        activations += mixed
    if isinstance(solver, SequentialSolver):
        # What a surrogate keeps of every token for each one tried, and a copy as it grows.
        activations += 2 * min(solver.guesses, sizes.vocabulary) * sizes.vocabulary * 4 / 1e6
        # What the model expects behind each prompt: scores, their order, and the tokens in it.
        activations += rows * sizes.vocabulary * (4 + 8 + 8) / 1e6
    return attempt * int(PROCESS_MB + weights + 2 * table + sizes.block_megabytes + activations)


def _response_mb(study: Study, cell: Cell) -> float:
    """Return the MB of what every token changes at one position, in the components compared."""
    vocabulary = sizes_of(study, study.models[cell.model].source).vocabulary
    return vocabulary * COMPONENTS * 4 / 1e6


def _detecting_mb(study: Study, cell: Cell, solver: JointSolver, positions: int) -> float:
    """Return the MB of a search's detections."""
    if not solver.detections:
        return 0
    # Of every position whose token is sought, and three times that of one.
    return (_most_sought(study, cell, positions) + 3) * _response_mb(study, cell)


def _mixing_mb(study: Study, cell: Cell, positions: int) -> float:
    """Return the MB of a search by mixtures; 0: the cell makes none."""
    mixing, path = mixing_of(study, cell), mixed_by(study, cell)
    if mixing is None:
        return 0
    sizes = sizes_of(study, study.models[cell.model].source)
    blocks, hidden = max(cell.block, 1), most_hidden(study, cell, positions)
    # Random prompts' returns of attention, twice, and all tokens' keys and values.
    found = 2 * (1024 + sizes.width) * positions * sizes.width * 4 / 1e6
    found += 2 * sizes.vocabulary * sizes.width * 4 / 1e6
    # Heads are seldom narrower than 64.
    heads = sizes.width / 64
    if path == "convex":
        # The exponentials of a head for each hidden position, visible one and token.
        each = (positions - hidden) * heads * sizes.vocabulary * 4 / 1e6
        return found + 4 * each + min(HELD / 1e6, hidden * each)
    if path == "annealing":
        # Candidates' keys and values, twice while they are put together; then beside those of the
        # first position the scores of attention to all of them, of each block and four times one's.
        entry = 2 * blocks * (sizes.keys or sizes.width) * 4
        entries = min(hidden * sizes.vocabulary, HELD // entry)
        held, first = entries * entry / 1e6, min(entries, sizes.vocabulary) * entry / 1e6
        scores = (blocks + 4) * heads * (positions - hidden) * entries * 4 / 1e6
        return found + held + max(held, first + scores)
    entries = 512 + 2 * hidden * mixing.shortlist + positions
    found += 4 * blocks * heads * entries**2 * 4 / 1e6
    return found + (hidden + 3) * _response_mb(study, cell)


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
