"""Run a solver by its settings, in as few batches as the memory allows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import torch
from torch import Tensor

from tokinfo.io.errors import is_memory
from tokinfo.solvers.batches import free_memory
from tokinfo.solvers.problem import Problem, Result, SolverError
from tokinfo.solvers.watch import Watch
from tokinfo.study.solvers import Solver

log = logging.getLogger(__name__)


def _solve(problem: Problem, settings: Solver, truth: Tensor) -> Result:
    """Solve with the module that is named as the settings' kind.

    A search does not receive the truth: what it found is judged once it has come to its end.

    Digests of code do not follow an import by name: a cell's digest counts its solver's module
    beside (`Plan.cell_code` of the workflow), and a change of another solver reruns nothing.
    """
    solver = import_module(f"tokinfo.solvers.{settings.kind}")
    result: Result
    if settings.kind == "sweep":
        result = solver.solve(problem, settings, truth)
    else:
        result = solver.solve(problem, settings)
    if settings.kind == "joint":
        result = solver.judge(problem, settings, result, truth)
    return result


def run(
    problem: Problem,
    settings: Solver,
    truth: Tensor,
    solve: Callable[[Problem, Solver, Tensor], Result] = _solve,
    watch: Watch | None = None,
) -> Result:
    """Solve a problem; when memory runs out, in batches half as large, and so on.

    A row's result does not depend on its batch (up to rounding), so nothing is lost but time. After
    the settings' ``minutes``, all batches together, the best so far is returned.

    Args:
        problem: what is to be explained.
        settings: the solver's.
        truth: int64 [row, position], the true tokens; for sweeps, and not for a search.
        solve: solves one batch.
        watch: interrupts the run, and reports how far it is.

    Raises:
        SolverError: the descent failed, or a single prompt does not fit in memory.
    """
    watch = watch or Watch()
    watch.begin(settings.minutes)
    problem = replace(problem, watch=watch)
    rows = len(problem.target)
    size = rows
    done: list[Result] = []
    first = 0
    while first < rows:
        last = min(first + size, rows)
        part = problem if last - first == rows else problem.rows(torch.arange(first, last))
        try:
            done.append(solve(part, settings, truth[first:last]))
            first = last
            continue
        except (MemoryError, RuntimeError) as error:
            if not is_memory(error):
                raise
            count = last - first
        # Outside the except block: the exception holds the frames that hold the tensors.
        if count == 1:
            raise SolverError("out of memory with a batch of a single prompt")
        size = count // 2
        log.warning("out of memory with %d prompts in a batch; going on with %d", count, size)
        free_memory()
    return Result.concatenate(done)
