"""Adam from the embedding's mean and scale, all prompts and starts as one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from tokinfo.solvers import relaxed, windows
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.decoding import lead
from tokinfo.solvers.problem import Problem, Result, check_finite
from tokinfo.solvers.vocabulary import Vocabulary
from tokinfo.solvers.watch import Watch
from tokinfo.study.solvers import AdamSolver

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_EVEN = 1e-3  # nats by which the first start of a mixture is uneven


def solve(problem: Problem, settings: AdamSolver) -> Result:
    """Descend by Adam from several starts and keep each prompt's best.

    A row stops when its decoded tokens have stayed the same for ``stable_checks`` checks and
    its loss is below ``tolerance`` of its first; stopped rows leave the batch, so the rest
    run faster. Kingma and Ba (arXiv 1412.6980), algorithm 1, with a linearly falling rate.

    With ``project: nearest`` the loss and its gradient are those of the nearest tokens, and the
    free variable takes the step (PEZ: Wen et al., arXiv 2302.03668, algorithm 1). A row then
    ends with the best tokens it met, and stops also when those are within the noise floor.

    When the run is to end early, the rows left are decoded as they are.

    Raises:
        SolverError: a loss became non-finite, or the model cannot be given the mixtures.
    """
    relaxed.check(problem)
    prompts = len(problem.target)
    # Row r of the descent is start r // prompts of prompt r % prompts.
    all_rows = problem.rows(torch.arange(prompts).repeat(settings.restarts))
    free = torch.cat([problem.start(restart) for restart in range(settings.restarts)])
    free, unit = _place(free, problem)
    vocabulary = Vocabulary(problem)
    projected = settings.project == "nearest"
    end = _Ends(free, vocabulary, settings)

    active = torch.arange(len(free))
    rows = all_rows
    mean, square = torch.zeros_like(free), torch.zeros_like(free)
    stable = torch.zeros(len(free), dtype=torch.int64)
    before: Tensor | None = None
    for step in range(settings.steps):
        free.requires_grad_(True)
        if projected or settings.nearest_penalty:
            embedded = rows.embed(free)
            nearest = rows.put(vocabulary.nearest(embedded))
            loss = rows.loss(vocabulary.projected(embedded, nearest) if projected else embedded)
        else:
            loss = relaxed.loss(rows, free)
        check_finite(loss.detach(), rows, step)
        if step == 0:
            end.first = loss.detach()
            end.note(0, active, loss.detach())
        if projected:
            end.meet(active, nearest, loss.detach())
        objective = loss
        if settings.nearest_penalty:
            away = vocabulary.away(embedded, nearest, rows.layout.seen)
            objective = loss + settings.nearest_penalty * end.first[active] * away
        (gradient,) = torch.autograd.grad(objective.sum(), free)
        mean = _BETAS[0] * mean + (1 - _BETAS[0]) * gradient
        squared = gradient.square()
        if settings.second_moment == "row":
            # A hidden position's gradient is far smaller than a visible one's; divided by its
            # size it would move as fast, and wander off while the visible ones settle.
            squared = squared.mean((1, 2), keepdim=True).expand_as(gradient)
        square = _BETAS[1] * square + (1 - _BETAS[1]) * squared
        first_moment = mean / (1 - _BETAS[0] ** (step + 1))
        second_moment = square / (1 - _BETAS[1] ** (step + 1))
        done = step / max(settings.steps - 1, 1)
        rate = settings.learning_rate * unit * (1 - (1 - settings.final_share) * done)
        free = free.detach() - rate * first_moment / (second_moment.sqrt() + _EPSILON)
        if settings.clamp:
            free = vocabulary.clamp(free)

        problem.watch.note(loss / rows.floor)
        last = step + 1 == settings.steps
        late = problem.watch.late(len(free)) and not last
        if (step + 1) % settings.check_every and not (last or late):
            continue
        tokens = rows.decode(free, k=1)[..., 0].cpu()
        if before is None:
            before = torch.full_like(tokens, -1)
        same = ((tokens == before) | ~rows.layout.scored.cpu()).all(-1)
        stable = torch.where(same, stable + 1, 0)
        before = tokens
        end.note(step + 1, active, loss.detach())
        at_floor = (loss.detach() <= settings.tolerance * end.first[active]).cpu()
        stop = (stable >= settings.stable_checks) & at_floor
        if projected:
            # These very tokens have been through the model: there is nothing left to find.
            stop |= (end.met_loss[active] <= rows.floor).cpu()
        if late:
            end.late[active[~stop]] = True
        if last or late:
            stop[:] = True
        if stop.any():
            end.leave(active[stop], free[stop], rows.rows(stop.nonzero()[:, 0]), step + 1)
            stay = (~stop).nonzero()[:, 0]
            if len(stay) == 0:
                break
            active, stable, before = active[stay], stable[stay], before[stay]
            free, mean, square = free[stay], mean[stay], square[stay]
            rows = all_rows.rows(active)
    return end.best(prompts, settings.restarts, problem.watch)


def _place(normal: Tensor, problem: Problem) -> tuple[Tensor, float]:
    """Return starts at the embedding's mean and scale, and the unit of a step.

    The published N(0, 1) start is some fifty times an untrained Llama's embedding scale.
    In the vocabulary parametrisation a step changes all V coordinates at once; the unit is
    chosen so that the embedding moves about as far as in the embedding parametrisation.
    Of mixtures the unit is one nat, and in each prompt's first start all candidates are as likely.
    """
    matrix = problem.decoder.embedding
    vocabulary, width = matrix.shape
    if problem.parametrisation == "vocabulary":
        return normal / vocabulary**0.5 + 1 / vocabulary, width**0.5 / vocabulary
    if problem.parametrisation == "mixture":
        first = torch.arange(len(normal), device=normal.device) < len(problem.target)
        # With even logits, a position on which nothing depends would always give the same token.
        return torch.where(first[:, None, None], _EVEN * normal, normal), 1.0
    return matrix.mean(0) + matrix.std(0) * normal, float(matrix.std())


class _Ends:
    """Where each row ended, filled in as rows leave the batch."""

    def __init__(self, free: Tensor, vocabulary: Vocabulary, settings: AdamSolver) -> None:
        count, positions = free.shape[:2]
        self.vocabulary = vocabulary
        self.projected = settings.project == "nearest"
        self.window = settings.window
        self.batcher = Batcher()
        self.first = torch.zeros(count)
        self.loss = torch.zeros(count, dtype=torch.float32, device=free.device)
        self.steps = torch.zeros(count, dtype=torch.int64)
        self.top = torch.zeros(count, positions, 5, dtype=torch.int64, device=free.device)
        # The best tokens that a projected row has met, and their loss.
        self.met = torch.zeros(count, positions, dtype=torch.int64, device=free.device)
        self.met_loss = torch.full((count,), float("inf"), device=free.device)
        # What the windows found: the loss of a row's tokens, and what checking them cost.
        self.checked_loss = torch.zeros(count, device=free.device)
        self.checks = torch.zeros(count, dtype=torch.int64)
        self.late = torch.zeros(count, dtype=torch.bool)
        self.curve: list[list[float]] = [[] for _ in range(count)]
        self.curve_steps: list[int] = []

    def note(self, step: int, index: Tensor, loss: Tensor) -> None:
        """Add a point to the loss curves of the rows still in the batch."""
        self.curve_steps.append(step)
        for row, value in zip(index.tolist(), loss.tolist(), strict=True):
            self.curve[row].append(value)

    def meet(self, index: Tensor, ids: Tensor, loss: Tensor) -> None:
        """Keep the tokens of projected rows where none before them explained more."""
        before = self.met_loss[index]
        better = loss < before
        self.met_loss[index] = torch.where(better, loss.to(before), before)
        self.met[index] = torch.where(better[:, None], ids, self.met[index])

    def leave(self, index: Tensor, free: Tensor, rows: Problem, steps: int) -> None:
        lists = rows.decode(free, max(5, self.window))
        with torch.no_grad():
            if self.projected:
                embedded = rows.embed(free)
                nearest = rows.put(self.vocabulary.nearest(embedded))
                loss = rows.loss(self.vocabulary.projected(embedded, nearest))
            else:
                loss = relaxed.loss(rows, free)
        check_finite(loss, rows, steps)
        if self.projected:
            self.meet(index, nearest, loss)
            loss = self.met_loss[index]
            lists = lead(lists, self.met[index])
        if self.window > 1:
            checked = windows.check(rows, lists[..., : self.window], self.batcher)
            lists = lead(lists, checked.ids)
            if rows.watch.stopped:
                self.late[index] |= (checked.loss > rows.floor).cpu()
            self.checked_loss[index] = checked.loss.to(self.checked_loss)
            self.checks[index] = checked.evaluations.cpu()
        self.loss[index] = loss.to(self.loss)
        self.steps[index] = steps
        self.top[index] = lists[..., :5]

    def best(self, prompts: int, restarts: int, watch: Watch) -> Result:
        # Tokens that the model has judged tell starts apart better than where a free variable
        # came to rest: at a hidden position that absorbs what the tokens cannot explain.
        judged = self.checked_loss if self.window > 1 else self.loss
        kept = judged.view(restarts, prompts).argmin(0)
        row = (kept * prompts + torch.arange(prompts, device=kept.device)).cpu()
        spent = self.steps + 1 + self.checks
        late = self.late.view(restarts, prompts).any(0).tolist()
        return Result(
            top_ids=self.top[row],
            loss=self.loss[row],
            first_loss=self.first[row],
            steps=self.steps[row],
            restart=kept.cpu(),
            restarts=restarts,
            evaluations=spent.view(restarts, prompts).sum(0),
            curve=[self.curve[index] for index in row.tolist()],
            curve_steps=tuple(self.curve_steps),
            stopped=[watch.stopped if one else None for one in late],
        )
