"""Decoding checked by the forward model: the best of a window of candidates at each position."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.problem import Problem


@dataclass(frozen=True)
class Checked:
    """Tokens that the forward model has judged, one entry per row of a problem.

    Attributes:
        ids: int64 [row, position].
        loss: [row] distance of the tokens, all visible positions together.
        evaluations: int64 [row] forward passes spent.
    """

    ids: Tensor
    loss: Tensor
    evaluations: Tensor


def check(problem: Problem, lists: Tensor, batcher: Batcher) -> Checked:
    """Take at each position, from left to right, the candidate that explains the target best.

    The other positions stand at their best tokens so far. In a causal model a candidate at a
    visible position is judged on the activations up to it: those further right depend on
    tokens that have not been checked yet. At a hidden one it is judged on all of them. The
    tokens found are kept where the whole distance says so, the first candidates otherwise: no
    row ends further from its target than its plain decode. Where that is within the noise floor
    there is nothing left to check, and a known token needs no check. When the run is to end early,
    the positions left keep their first candidates.

    Args:
        problem: any number of rows.
        lists: int64 [row, position, candidate], best first.
        batcher: finds the batch size, over rows and candidates together.
    """
    layout = problem.layout
    rows, positions, window = lists.shape
    plain = layout.padded(lists[..., 0])
    every = torch.arange(rows, device=lists.device)
    before = _losses(problem, plain, every, batcher)
    unexplained = ~(before <= problem.floor)  # so that what is no number is not explained
    ids = plain.clone()
    evaluations = torch.ones(rows, dtype=torch.int64, device=lists.device)
    for position in range(positions):
        if problem.watch.late():
            break
        reached = unexplained & (position < layout.seen) & ~problem.given[:, position]
        if problem.probe.causal:
            # A token right of every visible position changes nothing that is compared.
            reached = reached & layout.visible[:, position:].any(1)
        chosen = reached.nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        trial = ids[chosen, None].repeat(1, window, 1)
        trial[:, :, position] = lists[chosen, position]
        owners = chosen.repeat_interleave(window)
        losses = _losses(_judged_on(problem, position), trial.flatten(0, 1), owners, batcher)
        best = losses.view(-1, window).argmin(1)
        ids[chosen, position] = lists[chosen, position, best]
        evaluations[chosen] += window
    moved = (ids != plain).any(1).nonzero()[:, 0]
    after = before.clone()
    if len(moved):
        after[moved] = _losses(problem, ids[moved], moved, batcher)
        evaluations[moved] += 1
    better = after < before
    return Checked(
        ids=torch.where(better[:, None], ids, plain),
        loss=torch.where(better, after, before),
        evaluations=evaluations,
    )


def _losses(problem: Problem, ids: Tensor, rows: Tensor, batcher: Batcher) -> Tensor:
    """Return the distance [candidate] of token sequences to the targets of their rows."""
    width = problem.target.shape[1]

    def score(part: Tensor) -> Tensor:
        # Some of a problem stays on the CPU, wherever its tensors are.
        return problem.rows(part[:, 0].cpu()).token_loss(part[:, 1 : width + 1])

    return batcher.map(score, torch.cat([rows[:, None], ids], dim=1))


def _judged_on(problem: Problem, position: int) -> Problem:
    """Return the problem cut to what judges a candidate at ``position`` (see `check`)."""
    if not problem.probe.causal:
        return problem
    layout = problem.layout
    last = torch.where(layout.visible[:, position], position, layout.seen - 1)
    length = int(last.max()) + 1
    place = torch.arange(length, device=last.device)
    cut = replace(
        layout,
        lengths=layout.lengths.clamp(max=length),
        visible=layout.visible[:, :length] & (place <= last[:, None]),
        scored=layout.scored[:, :length],
        seen=layout.seen.clamp(max=length),
    )
    known, target = problem.known[:, :length], problem.target[:, :length]
    return replace(problem, layout=cut, known=known, target=target)
