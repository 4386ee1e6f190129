"""Every token at one position, the others known: what could be found at best.

Run around the true prompt it bounds from above what any search could claim; run around a found
prompt it says what an observer without the truth can claim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tokinfo.probe.metrics import distance
from tokinfo.probe.noise import alone, moved, signal
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.identification import Identification, identify
from tokinfo.solvers.problem import Problem, Result
from tokinfo.solvers.substitution import Substitution
from tokinfo.solvers.watch import Stopped
from tokinfo.study.solvers import NoiseSettings, SweepSolver

_NEAR, _MOST = 16, 64
"""Candidates within so many floors, or within what rounding can change at most, are computed once
more, alone: of more than so many, the nearest; none where so many explain the activations."""


def solve(problem: Problem, settings: SweepSolver, truth: Tensor) -> Result:
    """Sweep positions of every true prompt, one position at a time.

    When the run is to end early, the positions left have no verdict.

    Args:
        problem: any number of rows.
        settings: which positions.
        truth: int64 [row, position], the true tokens.
    """
    count = sum(len(positions(problem, settings, row)) for row in range(len(truth)))
    problem.watch.total = count * problem.decoder.size
    identified, top, evaluations, stopped = sweep_rows(problem, settings, truth, truth)
    nothing = torch.full((len(truth),), torch.nan)  # no prompt is searched
    return Result(
        top_ids=top,
        loss=nothing,
        first_loss=nothing,
        steps=torch.zeros_like(evaluations),
        restart=torch.zeros_like(evaluations),
        restarts=1,
        evaluations=evaluations,
        identified=identified,
        around="true",
        stopped=stopped,
    )


def around(problem: Problem, result: Result, truth: Tensor) -> Result:
    """Sweep the hidden positions around found prompts: what an observer could claim of them.

    Args:
        problem: what was solved.
        result: what was found.
        truth: int64 [row, position], the true tokens; the sweeps say how they fare.
    """
    found = result.top_ids[..., 0]
    identified, _, spent, stopped = sweep_rows(problem, SweepSolver(), found, truth)
    before = result.stopped or stopped
    certified = problem.judged(problem.layout.padded(found.to(truth)))[1].tolist()
    identified = [
        row if proven else {place: judged.unclaimed() for place, judged in row.items()}
        for row, proven in zip(identified, certified, strict=True)
    ]
    return replace(
        result,
        identified=identified,
        around="found",
        evaluations=result.evaluations + spent,
        stopped=[one or other for one, other in zip(before, stopped, strict=True)],
    )


def sweep_rows(
    problem: Problem, settings: SweepSolver, ids: Tensor, truth: Tensor
) -> tuple[list[dict[int, Identification]], Tensor, Tensor, list[str | None]]:
    """Sweep positions of every prompt in ``ids`` [row, position]; known ones need no sweep.

    Returns:
        what `sweep` says of each row's positions; the best tokens [row, position, 5], -1 where
        nothing was swept; the evaluations [row]; and, for each row, why positions are missing,
        None where none is.
    """
    top = ids.new_full((*ids.shape, 5), -1)
    identified: list[dict[int, Identification]] = []
    evaluations = torch.zeros(len(ids), dtype=torch.int64)
    stopped: list[str | None] = []
    batcher = Batcher(watch=problem.watch)
    for row in range(len(ids)):
        one = problem.rows(torch.tensor([row]))
        wanted = positions(problem, settings, row)
        found, best = sweep(one, ids[row], truth[row], wanted, batcher, settings.noise)
        identified.append(found)
        for position, tokens in best.items():
            top[row, position] = tokens
        evaluations[row] = len(best) * problem.decoder.size
        stopped.append(problem.watch.stopped if len(best) < len(wanted) else None)
    return identified, top, evaluations, stopped


def positions(problem: Problem, settings: SweepSolver, row: int) -> list[int]:
    """Return the positions of a row that are swept."""
    wanted = problem.layout.scored[row] & ~problem.given[row]
    if settings.positions == "hidden":
        wanted = wanted & ~problem.layout.visible[row]
    every: list[int] = wanted.nonzero()[:, 0].tolist()
    return every[: settings.first]


def sweep(
    problem: Problem,
    ids: Tensor,
    truth: Tensor,
    positions: Sequence[int],
    batcher: Batcher,
    noise: NoiseSettings | None = None,
) -> tuple[dict[int, Identification], dict[int, Tensor]]:
    """Try every candidate at each position of one prompt, the other tokens as in ``ids``.

    Args:
        problem: a problem of a single row.
        ids: int64 [position], the prompt around the candidates.
        truth: int64 [position], the true tokens.
        positions: where to sweep.
        batcher: finds the batch size.
        noise: also find the noise at which each true token is lost.

    Returns:
        what each position's sweep says of the TRUE token, and its five best tokens [5].
        A position whose true token is no candidate is left out. So is one that was not swept
        before the run was to end.
    """
    candidates = problem.decoder.ids
    identified, best = {}, {}
    for position in positions:
        swept = Substitution(problem, problem.decoder.embedding[ids], position, batcher)
        judged: Identification | None = None
        try:
            tried = swept.residuals(candidates, beside=int(ids[position]))
            residuals = _verified(problem, ids, position, tried)
            true = (candidates == truth[position]).nonzero()
            if len(true):
                judged = identify(residuals, int(true), float(problem.slack[0]), problem.prior)
                if noise is not None:
                    level = noise_threshold(swept, residuals, int(true), noise)
                    judged = replace(judged, noise_threshold=level)
        except Stopped:
            break
        if judged is not None:
            identified[position] = replace(judged, carried=carried(problem, swept.nearest))
        top = residuals.topk(min(5, len(residuals)), largest=False).indices
        best[position] = candidates[top[torch.arange(5).clamp_max(len(top) - 1)]]
    return identified, best


def carried(problem: Problem, nearest: Tensor) -> tuple[float | None, ...]:
    """Return what other tokens change of the activations at each visible position, at least.

    Args:
        problem: a problem of a single row.
        nearest: [position] 2-norm of the smallest change; infinite where there can be none.

    Returns:
        Shares of the norm of the activations there, of visible positions in order; None where they
        do not depend on the token, or are nothing.
    """
    norms = torch.linalg.vector_norm(problem.target[0].double(), dim=-1)
    shares = (nearest.double() / norms)[problem.layout.visible[0]].tolist()
    return tuple(share if math.isfinite(share) else None for share in shares)


def _verified(problem: Problem, ids: Tensor, position: int, residuals: Tensor) -> Tensor:
    """Return the residuals [candidate], those of the nearest as computed alone.

    So was the target. In a batch a candidate may be off by more than the floor, which a few batches
    gave: in int8 the rows beside it decide which columns are multiplied in full.
    """
    layout, share = problem.layout, problem.probe.tolerance
    reach = moved(problem.target, layout.visible, problem.metric, problem.weights, share)
    within = residuals <= torch.maximum(reach, _NEAR * problem.floor)
    near = residuals.topk(min(_MOST, int(within.sum())), largest=False).indices
    if not len(near) or int((residuals <= problem.slack).sum()) > _MOST:
        return residuals
    prompts = ids.repeat(len(near), 1)
    prompts[:, position] = problem.decoder.ids[near]
    seen = problem.layout.seen.expand(len(near))
    found = alone(problem.probe, problem.decoder.embedding, prompts, seen)
    away = distance(found, problem.target, problem.layout.visible, problem.metric, problem.weights)
    residuals = residuals.clone()
    residuals[near] = away.to(residuals)
    return residuals


def noise_threshold(
    swept: Substitution, residuals: Tensor, true: int, settings: NoiseSettings
) -> float:
    """Return the noise-to-signal ratio at which the true token stops being the best.

    The noise is gaussian, independent at every component of the visible activations, and its
    standard deviation is the ratio times the root mean square of the activations at its position:
    positions, depths and models differ by orders of magnitude. For each draw the ratio grows until
    some competitor is nearer to the noisy target than the true token; the median over draws is
    returned. Above ``highest`` it is infinite, and 0 where the token is not the only best one
    without noise.

    Args:
        swept: the substitution that gave ``residuals``.
        residuals: [candidate] distances without noise.
        true: index of the true token.
        settings: ratios, draws and competitors.
    """
    problem = swept.problem
    others = residuals.clone()
    others[true] = torch.inf
    if not bool((others > residuals[true]).all()):
        return 0.0
    count = min(settings.candidates, len(residuals) - 1)
    near = others.topk(count, largest=False).indices
    chosen = torch.cat([near.new_tensor([true]), near])
    found = swept.activations(problem.decoder.ids[chosen])
    first = swept.length - found.shape[1]
    target = problem.target[0, first : swept.length].to(found.dtype)
    visible = problem.layout.visible[:1, first : swept.length]
    size = signal(target).to(target)
    levels = torch.logspace(
        torch.tensor(settings.lowest).log10().item(),
        torch.tensor(settings.highest).log10().item(),
        settings.levels,
        dtype=torch.float64,
    ).tolist()
    lost = []
    for draw in range(settings.draws):
        generator = torch.Generator().manual_seed(problem.seed * 1_000_003 + draw)
        noise = torch.randn(target.shape, generator=generator).to(target)
        lost.append(torch.inf)
        for level in levels:
            away = distance(
                found, target + level * size * noise, visible, problem.metric, problem.weights
            )
            if bool((away[1:] <= away[0]).any()):
                lost[-1] = level
                break
    return float(torch.tensor(lost, dtype=torch.float64).quantile(0.5, interpolation="lower"))
