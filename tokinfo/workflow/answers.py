"""What the table `replication` is given: every row of the chapter, its cells, and what it needs.

The cells of the entries that name a row test it. For entries that are not run the reason is
worked out here, from what their models would fetch and hold (`downloads`) and how much
arithmetic their descent takes, with the command that would run them. Like `tokinfo.workflow.plan`,
this module imports neither torch nor transformers.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokinfo.study.architecture import sizes_of
from tokinfo.study.cell import Cell
from tokinfo.study.claims import Claim, Comparison, load_claims
from tokinfo.study.files import arguments
from tokinfo.study.prompts import contents
from tokinfo.study.solvers import ChapterSolver
from tokinfo.study.sources import Built, HubSource, MixerSource
from tokinfo.study.study import Answer, Study
from tokinfo.workflow import downloads
from tokinfo.workflow.plan import Plan

BYTES_A_TOKEN = 4
"""About how much English one token holds, where a prompt's tokens were not counted."""


def answers(
    study: Study, files: Iterable[str] = (), over: Mapping[str, Any] | None = None
) -> list[Comparison]:
    """Return every row of the chapter as the replication table is to have it.

    Args:
        study: a valid study.
        files: the configuration files it came from, for the commands.
        over: values of the command line, for the commands.

    Returns:
        One for each row and entry that tests it, in the order of the rows, a row's model before
        what stands in for it.
    """
    tested = study.answers()
    files = list(files)
    needed = {name: "" if study.runs(name) else _needs(study, name) for name in study.claims}
    commands = {name: command(study, name, files, over or {}) for name in study.claims}
    found = []
    for claim in load_claims().statements:
        direct = [a for a in tested if a.claim == claim and not a.entry.stand_in]
        others = [a for a in tested if a.claim == claim and a.entry.stand_in]
        if not direct:
            found.append(_untested(claim, bool(others)))
        for one in (*direct, *others):
            found.append(_tested(study, one, needed[one.name], commands[one.name]))
    return found


def _untested(claim: Claim, stood_in: bool) -> Comparison:
    return Comparison(
        claim=claim,
        criterion=claim.criterion,
        hides=claim.hides,
        claimed=load_claims().models[claim.model],
        reason="only stand-ins test it in this study" if stood_in else "no entry tests it",
    )


def _tested(study: Study, answer: Answer, needs: str, would_run: str) -> Comparison:
    claim, models = answer.claim, answer.entry.models
    sources = tuple(dict.fromkeys(study.models[name].source for name in models))
    return Comparison(
        claim=claim,
        criterion=claim.criterion,
        hides=claim.hides,
        claimed=load_claims().models[claim.model],
        entry=answer.name,
        stand_in=answer.entry.stand_in,
        runs=answer.runs,
        models=tuple(models),
        sources=sources,
        size="; ".join(size(study, name) for name in sources),
        published=answer.published,
        others=answer.others,
        tflop=sum(flop(study, cell) for cell in answer.published) / 1e12,
        reason=needs,
        command=would_run,
    )


def command(study: Study, entry: str, files: Sequence[str], over: Mapping[str, Any]) -> str:
    """Return the command that runs an entry beside those that are run already, the same way.

    Args:
        study: the study.
        entry: name of the entry.
        files: the study's configuration files.
        over: values of the command line; without them other cells would be run again.
    """
    names = [name for name in study.claims if study.runs(name) or name == entry]
    values = {**over, **({} if study.run is None else {"run": names})}
    words = ["snakemake", "--cores", "all"]
    words += ["--configfile", *files] if files else []
    words += ["--config", *arguments(values)] if values else []
    return shlex.join(words)


def size(study: Study, source: str) -> str:
    """Return the size of a source's models in words."""
    entry = study.sources[source]
    if isinstance(entry, Built):
        kind = f"{entry.form} mixer" if isinstance(entry, MixerSource) else "transformer"
        return f"{kind}, width {entry.d_model}, {entry.blocks} blocks, n_ctx {entry.n_ctx}"
    sizes = sizes_of(study, source)
    # Not from an estimate, which is there to be rather too large.
    width = f"width {sizes.width}, " if not sizes.guessed else ""
    return f"{source}, {width}{entry.blocks} blocks"


def flop(study: Study, cell: Cell) -> float:
    """Return the arithmetic of a cell of the published protocol, in floating-point operations.

    Two passes (the loss and its gradient) a step and prompt, of the blocks up to the site; a
    multiplication and an addition for each weight and position. Attention between positions
    and element-wise operations are left out.
    """
    solver = study.solvers[cell.solver]
    assert isinstance(solver, ChapterSolver)
    n_ctx = study.source_of(cell.model).n_ctx
    sizes = sizes_of(study, study.models[cell.model].source)
    passes = 2 * solver.steps
    total = 0.0
    for length in _lengths(study, cell.prompts):
        positions = n_ctx if cell.padding == "n_ctx" else min(length, n_ctx)
        # A weight between two positions multiplies the whole width of one of them.
        mixing = sizes.mixing * (positions / n_ctx) ** 2 * sizes.width
        total += passes * cell.block * 2 * (positions * (sizes.block - sizes.mixing) + mixing)
    return total


def _lengths(study: Study, prompts: str) -> Iterable[int]:
    """Return about how many tokens each prompt of a set has; passages have a set number."""
    if prompts in study.passages:
        return study.passages[prompts].lengths
    sizes = (len("".join(contents(prompt)).encode()) for prompt in study.prompts[prompts])
    return [max(1, round(size / BYTES_A_TOKEN)) for size in sizes]


def _needs(study: Study, entry: str) -> str:
    """Return what an entry needs that is not on this machine, in words; empty: only time."""
    alone = study.model_copy(update={"grids": [], "run": [entry]})
    hub = _from_hub(alone)
    if not hub:
        return ""
    needed = [need for need in downloads.needs(alone) if need.comes == "from the hub"]
    fetched = sum({(need.model, need.blocks): need.fetched or 0 for need in needed}.values())
    memory = max(max(need.prepare, need.cell) for need in needed)
    what = f"weights not at hand: {_gb(fetched)} to fetch from"
    if not fetched:
        what = "configuration and tokenizer not at hand: to be fetched from"
    return f"{what} {', '.join(hub)}; a job asks for up to {_gb(memory * 1e6)} of memory"


def _from_hub(study: Study) -> list[str]:
    """Return the repositories that a study's cells need and that no copy stands in for."""
    found = (study.sources[name] for name in Plan(study).sources)
    return [s.repository for s in found if isinstance(s, HubSource) and s.path is None]


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
