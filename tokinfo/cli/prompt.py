"""One prompt on the command line: what `tokinfo invert` and `tokinfo sweep` do.

The same problem, solvers and rows as a cell of the study (`tokinfo.cell`), for one prompt, on
a checkpoint that the study has prepared or on any other.
"""

from __future__ import annotations

import logging
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from tokinfo.io.errors import InvalidError, TokinfoError
from tokinfo.study.cell import Cell, CellSettings
from tokinfo.study.known import NONE, Known
from tokinfo.study.masks import Mask
from tokinfo.study.prompts import Prompt
from tokinfo.study.sites import Site
from tokinfo.study.solvers import MetricWeights, Solver
from tokinfo.study.study import Study

if TYPE_CHECKING:
    from tokinfo.models.checkpoint import Checkpoint
    from tokinfo.solvers.problem import Problem
    from tokinfo.solvers.watch import Watch

_SOLVER: TypeAdapter[Solver] = TypeAdapter(Solver)
_KINDS = ("chapter", "adam", "sequential", "sweep", "joint", "mixture")


@dataclass(frozen=True)
class Request:
    """The arguments of one command.

    Attributes:
        kind: ``sweep``, or ``joint`` for any search.
        model: name in the study; with ``checkpoint``, a name for the output.
        site: where activations are read.
        mask: what stays visible.
        prompt: a text, or the messages of a chat.
        metric: how activations are compared.
        solver: name in the study or a kind; None: the study's first of this kind.
        checkpoint: directory to use in place of the study's.
        known: positions whose token the solver is given.
        judge: sweep the hidden positions around the found prompt.
    """

    kind: str
    model: str
    site: str
    mask: str
    prompt: Prompt
    metric: str = "l1"
    solver: str | None = None
    checkpoint: Path | None = None
    known: str = NONE
    judge: bool = False


def answer(request: Request, study: Study | None, named: list[str]) -> None:
    """Solve one prompt and print what was found.

    Args:
        request: the command's arguments.
        study: where models and solvers are looked up; needed without ``request.checkpoint``.
        named: arguments of Snakemake that name the study, for the command that prepares a
            missing checkpoint.

    Raises:
        InvalidError: something requested does not exist or does not suit; one line.
    """
    name, solver = _solver(request, study)
    if request.kind == "sweep" and solver.kind != "sweep":
        raise InvalidError(f"solver {name!r} is of kind {solver.kind}; `tokinfo invert` runs it")
    if request.judge and solver.kind == "sweep":
        raise InvalidError("--judge: a sweep finds no prompt to sweep around; allowed: a search")
    if request.checkpoint is None:
        assert study is not None, "no checkpoint and no study"
        directory, site = _prepared(request, study, named)
    else:
        directory, site = request.checkpoint, Site.parse(request.site)
    # Imported late: what can be refused without torch is refused at once.
    from tokinfo.cell import make_rows, pick_device
    from tokinfo.models.checkpoint import load
    from tokinfo.models.remote_code import trusted
    from tokinfo.report.answer import Result
    from tokinfo.solvers.decoding import inverse_gram
    from tokinfo.solvers.pose import make_problem
    from tokinfo.solvers.run import run
    from tokinfo.solvers.sweep import around
    from tokinfo.solvers.watch import Watch
    from tokinfo.tables.schema import RECOVERY_SCHEMA

    # A warning between the lines of the bar would break it.
    logging.getLogger("tokinfo").setLevel(logging.ERROR)
    try:
        # To name a checkpoint on the command line is not to trust its code.
        source = study.source_of(request.model) if study and request.checkpoint is None else None
        with trusted(getattr(source, "trust_remote_code", False)):
            model = load(directory, pick_device(study.device if study else "auto"))
        length, n_ctx = len(model.read([request.prompt])[0].ids), model.facts.n_ctx
        if n_ctx is not None and length > n_ctx:
            # Before anything asks for memory, which grows with the square of the length.
            raise InvalidError(f"the prompt has {length} tokens, the model holds {n_ctx}")
        cell = _cell(request, name, site, model)
        settings = _settings(request, cell, solver, model)
        weights = study.metric_weights if study else MetricWeights()
        problem, truth = make_problem(
            model, inverse_gram(model.embedding), cell, solver, weights, [request.prompt]
        )
        _check(request, solver, problem)
        title = f"{solver.kind}, {request.model}"
        with _progress(title) as report, _interruptible(Watch(report)) as watch:
            result = run(problem, solver, truth, watch=watch)
            if request.judge and result.identified is None:
                result = around(replace(problem, watch=watch), result, truth)
        rows = make_rows(settings, model, problem, truth, result)
    except (TokinfoError, ValueError, OSError) as error:
        words = " ".join(str(error).split())
        raise InvalidError(
            f"{request.model} at {request.site}, mask {request.mask}: {words}"
        ) from None
    Result(
        [dict.fromkeys(RECOVERY_SCHEMA) | row for row in rows],
        _heading(request, site, name, model),
        None,
    ).show()
    if rows[0]["stopped"]:
        print(_stopped(rows[0], solver))


# --- what is used -------------------------------------------------------------------------


def _solver(request: Request, study: Study | None) -> tuple[str, Solver]:
    """Return the requested solver, or the study's first of the command's kind, with its name.

    Its sweeps around what it finds are left out, unless the study itself asks for them: they may
    take longer than the search.
    """
    solvers: dict[str, Solver] = dict(study.solvers) if study else {}
    name = request.solver or next(
        (name for name in solvers if solvers[name].kind == request.kind), request.kind
    )
    if name in solvers or name in _KINDS:
        solver = solvers.get(name) or _SOLVER.validate_python({"kind": name})
        if solver.kind == "joint" and "sweep_found" not in solver.model_fields_set:
            solver = solver.model_copy(update={"sweep_found": False})
        return name, solver
    allowed = ", ".join(dict.fromkeys([*solvers, *_KINDS]))
    raise InvalidError(f"solver {request.solver!r}: allowed: {allowed}")


def _prepared(request: Request, study: Study, named: list[str]) -> tuple[Path, Site]:
    """Return the study's checkpoint for a model and site, and the resolved site.

    Of several that hold enough blocks the smallest is taken.

    Raises:
        InvalidError: unknown model or site; or not prepared yet, with the command that does it.
    """
    if request.model not in study.models:
        raise InvalidError(f"model {request.model!r}: allowed: {', '.join(study.models)}")
    depth = study.source_of(request.model).blocks
    site = Site.parse(request.site).resolve(depth)
    if site.block > depth:
        raise InvalidError(f"site {request.site}: {request.model} has {depth} blocks")
    folder = Path(study.results) / "checkpoints" / request.model
    there = [
        int(path.parent.name)
        for path in folder.glob("*/tokinfo.json")
        if path.parent.name.isdecimal() and int(path.parent.name) >= site.block
    ]
    if there:
        return folder / str(min(there)), site
    # Snakemake makes the checkpoints that some cell of the study loads, and no others.
    planned = {cell.block for cell in study.cells() if cell.model == request.model}
    deep_enough = sorted(
        block for block in planned | ({0} if planned else set()) if block >= site.block
    )
    if not deep_enough:
        raise InvalidError(
            f"{request.model} at {request.site}: no cell of the study reads that deep; add the "
            "site to a grid, or name a checkpoint with --checkpoint"
        )
    target = folder / str(deep_enough[0])
    # `--configfile` takes every file that follows it, so the target comes first.
    command = ["snakemake", str(target), "--cores", "all", *named]
    raise InvalidError(f"{target}: not prepared yet; this makes it: {shlex.join(command)}")


def _cell(request: Request, solver: str, site: Site, model: Checkpoint) -> Cell:
    depth = model.facts.depth
    resolved = site.resolve(depth)
    kept = model.facts.blocks_kept
    if resolved.block > kept:
        raise InvalidError(f"the checkpoint holds {kept} of {depth} blocks")
    try:
        return Cell(
            model=request.model,
            site=resolved,
            residual=True,
            causal=True,
            padding="none",
            mask=Mask(request.mask),
            metric=request.metric,
            parametrisation="embedding",
            solver=solver,
            prompts="command line",
            known=Known(request.known),
            seed=0,
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InvalidError(f"{wrong['loc'][0]} {wrong['input']!r}: {wrong['msg']}") from None


def _check(request: Request, solver: Solver, problem: Problem) -> None:
    """Refuse a prompt that leaves nothing to do."""
    from tokinfo.solvers.sweep import positions

    layout, given = problem.layout, problem.given[0]
    length = int(layout.lengths[0])
    if request.known != NONE:
        hidden = layout.scored[0] & ~layout.visible[0]
        sought = hidden if hidden.any() else layout.scored[0]
        if not given.any():
            raise InvalidError(f"known {request.known!r}: gives none of {length} tokens")
        if not (sought & ~given).any():
            raise InvalidError(f"known {request.known!r}: leaves nothing to find")
    if solver.kind == "sweep" and not positions(problem, solver, 0):
        raise InvalidError(f"the mask hides none of {length} positions: there is nothing to sweep")


def _settings(request: Request, cell: Cell, solver: Solver, model: Checkpoint) -> CellSettings:
    facts = model.facts
    return CellSettings(
        cell=cell,
        solver=solver,
        source=facts.source or request.model,
        state=facts.state,
        quantization=facts.quantization,
        prompts=(request.prompt,),
    )


def _heading(request: Request, site: Site, solver: str, model: Checkpoint) -> str:
    facts = model.facts
    return (
        f"{request.model} ({facts.family}, {facts.state}, {facts.quantization}) at "
        f"{site}, mask {Mask(request.mask).text}, {request.metric}, solver {solver}"
        + ("" if request.known == NONE else f", known {Known(request.known).text}")
    )


# --- progress -----------------------------------------------------------------------------


@contextmanager
def _progress(name: str) -> Iterator[Callable[[Watch], None]]:
    """Show a bar on a terminal, and lines elsewhere; yields what reports a run there.

    How much is left is known of a sweep and where the solver has ``minutes``. Any other search
    ends when it is certified, so its bar only says what it has come to.
    """
    from tokinfo.solvers.watch import lines

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lines(name)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.description}"), TextColumn("{task.fields[words]}", markup=False)
    columns = (text[0], BarColumn(), TimeElapsedColumn(), text[1])
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None, words="")

        def report(watch: Watch) -> None:
            total = None if watch.share is None else 1.0
            # Words are made when the bar is drawn, a few times a second, not at every look.
            bar.update(task, total=total, completed=watch.share or 0, words=watch)

        yield report


@contextmanager
def _interruptible(watch: Watch) -> Iterator[Watch]:
    """Let the first Ctrl-C end the search, which returns its best, and the second the process."""

    def stop(*_: object) -> None:
        watch.interrupt()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # The process may end without another word, and the bar has hidden the cursor.
        Console(stderr=True).show_cursor()

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
    try:
        yield watch
    finally:
        signal.signal(signal.SIGINT, before)


def _stopped(row: dict[str, Any], solver: Solver) -> str:
    """Return what is to be said of a search that did not come to its end."""
    why = "by Ctrl-C" if row["stopped"] == "interrupted" else f"after {solver.minutes:g} minutes"
    if solver.kind == "sweep" or row["verdict"] == "certified":
        return f"Sweeps were stopped {why}: hidden tokens without a rank were not reached."
    return f"The search was stopped {why}: this is the best prompt so far."
