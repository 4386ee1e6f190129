"""What time each job asks a cluster for, in minutes: from the work there is, on a slow machine.

A job that asks for too little is killed; one that asks for too much only waits longer. So the work
is counted for a search that finds nothing before its end, and the machine is taken to be several
times slower than those that `docs/evidence/` was measured on. Each further attempt asks for as
much again. Like memory (`tokinfo.workflow.memory`), none of it is part of what reruns a job.
"""

from __future__ import annotations

import math

from tokinfo.study.architecture import sizes_of
from tokinfo.study.cell import Cell
from tokinfo.study.solvers import (
    AdamSolver,
    ChapterSolver,
    JointSolver,
    MixtureSolver,
    SequentialSolver,
    Solver,
    SweepSolver,
)
from tokinfo.study.sources import Built
from tokinfo.study.study import Study
from tokinfo.workflow.memory import (
    gpus,
    held_mb,
    longest_prompt,
    mixed_by,
    mixing_of,
    most_entries,
    most_hidden,
    part_mb,
)

FLOOR = 30
"""Minutes that any job asks for: imports from a slow shared disk, and a node that is busy."""
CPU_RATE, GPU_RATE = 4e9, 5e11
"""Floating-point operations a second, of one thread and of one GPU; measured: 15e9 a thread."""
STEP_SECONDS = 2e-3
"""Each block of each step takes this long whatever its size."""
READ_MB, FETCH_MB = 50, 4
"""MB a second from a shared disk and from the network."""
PACKED = {"int8": 4, "nf4": 4}
"""How many times longer a product takes where bitsandbytes unpacks the weights first."""
BACKWARD = 3
"""Operations of a pass with its gradients, as a multiple of one without."""


def cell_minutes(study: Study, cell: Cell, attempt: int = 1) -> int:
    """Return the minutes that a cell asks for."""
    model = study.models[cell.model]
    sizes = sizes_of(study, model.source)
    blocks = max(cell.block, 1)
    steps, passes = _search(study, cell, study.solvers[cell.solver])
    # Of a pass over one position: every weight of the blocks once, multiplied and added.
    weights = max(1e6 / 4 * sizes.block_megabytes, 1.0)
    operations = passes * 2 * weights * blocks * PACKED.get(model.quantization, 1)
    if _decodes(study, cell):
        operations += passes * 2 * sizes.vocabulary * sizes.width
    seconds = operations / _rate(study)
    seconds += steps * blocks * STEP_SECONDS
    seconds += len(cell.models) * held_mb(study, cell.model, blocks) / READ_MB
    return _minutes(seconds, attempt)


def _decodes(study: Study, cell: Cell) -> bool:
    """Return whether every step of a cell's search multiplies by the whole embedding."""
    solver = study.solvers[cell.solver]
    projects = isinstance(solver, AdamSolver) and (
        solver.project == "nearest" or solver.nearest_penalty > 0
    )
    return cell.parametrisation == "vocabulary" or projects


def _search(study: Study, cell: Cell, solver: Solver) -> tuple[float, float]:
    """Return how many steps a solver takes one after another, and passes over one position.

    A pass over a whole sequence counts once for each of its positions.
    """
    prompts, length = study.prompt_count(cell.prompts), longest_prompt(study, cell)
    sizes = sizes_of(study, study.models[cell.model].source)
    vocabulary, width = sizes.vocabulary, sizes.width
    hidden = most_hidden(study, cell, length)
    # Entries of a mixture meet each other, which may take as long again as their weights do.
    descended = 2 * most_entries(study, cell, length) or length
    match solver:
        case ChapterSolver():
            steps, passes = float(solver.steps), float(BACKWARD * descended * solver.steps)
        case AdamSolver():
            steps, passes = _adam(solver, length, descended)
        case SequentialSolver():
            # Of one token at a time; what stands before it is remembered.
            tried = solver.candidates * math.ceil(solver.steps / solver.check_every)
            steps = float(length * solver.attempts * solver.steps)
            passes = length * solver.attempts * (BACKWARD * solver.steps + tried)
            # Behind 30 blocks most tokens took a tenth to a third of the most that may be tried.
            passes += length * (solver.expected + solver.guesses / 4)
        case SweepSolver():
            swept = length if solver.positions == "all" else hidden
            swept = min(swept, solver.first or swept)
            steps, passes = float(swept), float(swept * vocabulary * length)
        case JointSolver():
            steps, passes = _joint(solver, length, hidden, vocabulary)
            steps *= prompts  # searched for one by one
        case MixtureSolver():
            steps, passes = _adam(solver.descent, length, length)
            steps *= prompts  # the mixtures are sought one by one
    mixing = mixing_of(study, cell)
    if mixing is not None:
        match mixed_by(study, cell):
            case "convex":
                passes += _convex(length, hidden, vocabulary, width)
            case "annealing":
                passes += _annealed(mixing, length, hidden, vocabulary)
            case _:
                passes += _shortlists(mixing, length, hidden, vocabulary)
    return steps, prompts * passes


def _adam(solver: AdamSolver, length: int, descended: int) -> tuple[float, float]:
    descent = BACKWARD * descended * solver.steps
    windows = length * length * solver.window if solver.window > 1 else 0
    steps = float(solver.steps + (length if solver.window > 1 else 0))
    return steps, float(solver.restarts * (descent + windows))


def _joint(solver: JointSolver, length: int, hidden: int, vocabulary: int) -> tuple[float, float]:
    """Return the work of one prompt that its first start finds.

    Further starts are for the few prompts (one in ten at worst) that the first one misses, and
    fit into what a machine as slow as is assumed leaves.
    """
    steps, passes = _adam(solver.descent, length, length)
    leading = min(solver.leading or vocabulary, vocabulary)
    wider = vocabulary if leading < vocabulary else 0
    rounds = solver.detections * solver.detection_rounds
    # Every token at every position; where the leading ones are not enough, mostly once.
    judged = length * (solver.detections * leading + min(solver.detections, 1) * wider)
    passes += length * (judged + solver.combinations * rounds)
    steps += length * (rounds + solver.rounds / 2)
    around = hidden * vocabulary * length if solver.sweep_found else 0
    return steps, passes + around


def _convex(length: int, hidden: int, vocabulary: int, width: int) -> float:
    """Return the passes of one prompt behind the first block: mostly, to invert that block."""
    inverted = (length - hidden) * 15 * BACKWARD * width
    return float(inverted + (1024 + width) * length + vocabulary)


def _shortlists(solver: MixtureSolver, length: int, hidden: int, vocabulary: int) -> float:
    """Return the passes of one prompt behind another site, that a few rounds find."""
    detected = 2 * hidden * length * min(solver.leading or vocabulary, vocabulary)
    descent = BACKWARD * solver.steps * 2 * solver.shortlist * length
    return float(detected + 4 * (descent + BACKWARD * hidden * vocabulary))


def _annealed(solver: MixtureSolver, length: int, hidden: int, vocabulary: int) -> float:
    """Return the passes of one prompt behind a later block, whose lists are narrowed once."""
    # Visible tokens are read among the leading ones. Lists have those, and one has all; then there
    # are two rounds of 8,192, three of 1,024 and shorter ones.
    leading = min(solver.leading or vocabulary, vocabulary)
    computed = vocabulary + length * leading
    computed += hidden * (2 * min(vocabulary, 8192) + 7 * 1024)
    # A step attends to all of a list, which takes a third of what computing it does.
    descended = BACKWARD * solver.steps * solver.rounds * length
    tried = (1024 + 7 * 512 + solver.shortlist * hidden) * length
    return float(4 / 3 * computed + descended + tried)


def training_minutes(study: Study, source: str, attempt: int = 1) -> int:
    """Return the minutes that a training job asks for."""
    built = study.sources[source]
    if not isinstance(built, Built) or built.training is None:
        return _minutes(0, attempt)
    training, sizes = built.training, sizes_of(study, source)
    weights = 1e6 / 4 * (sizes.megabytes(built.blocks) - sizes.megabytes(0))
    # The logits' matrix is as large as the embedding, which itself is only looked up.
    each = BACKWARD * 2 * (weights + sizes.vocabulary * sizes.width)
    # Held-out losses take a part of the time of the steps.
    steps = 2 * training.steps
    seconds = steps * training.batch * built.n_ctx * each / _rate(study)
    return _minutes(seconds + steps * built.blocks * STEP_SECONDS * BACKWARD, attempt)


def fetch_minutes(study: Study, source: str, part: str, attempt: int = 1) -> int:
    """Return the minutes that a fetching job asks for."""
    return _minutes(part_mb(study, source, part) / FETCH_MB, attempt)


def prepare_minutes(study: Study, model: str, blocks: int, attempt: int = 1) -> int:
    """Return the minutes that a job cutting a model asks for: to read it, and to write the part.

    An untrained model is drawn whole, whatever is kept of it.
    """
    settings = study.models[model]
    depth = study.source_of(model).blocks if settings.state == "untrained" else blocks
    seconds = 2 * sizes_of(study, settings.source).megabytes(depth) / READ_MB
    return _minutes(seconds * PACKED.get(settings.quantization, 1), attempt)


def _rate(study: Study) -> float:
    return GPU_RATE if gpus(study) else CPU_RATE * study.threads


def _minutes(seconds: float, attempt: int) -> int:
    return attempt * (FLOOR + math.ceil(seconds / 60))
