"""Exact search from left to right, every position visible.

In a causal model the activations at position p depend on the tokens up to p alone. Once the
tokens before it are found, one token is left to find, and a found one is proven by the forward
model. The idea is that of SipIt (arXiv 2510.15511, section 4). Here all prompts move together:
the first position is settled by one sweep of the vocabulary that serves every prompt, each later
one by the tokens that the model itself expects there, as far as that has paid for the ones before,
and by a descent of one free embedding, whose nearest tokens are tried as a batch. A descent that
has come to rest elsewhere starts again from the best token it tried. Where that fails too, as it
does behind many blocks, tokens are tried as a surrogate of the model proposes them
(`tokinfo.solvers.surrogate`); a sweep of the vocabulary, which ends with the token that proves
itself, is the last resort. A known token is taken as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokinfo.probe.metrics import distance
from tokinfo.probe.probe import Prefix
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.decoding import lead
from tokinfo.solvers.problem import Problem, Result, SolverError
from tokinfo.solvers.surrogate import Surrogate, directions_of
from tokinfo.solvers.watch import Stopped
from tokinfo.study.solvers import SequentialSolver

_BETAS, _EPSILON = (0.9, 0.999), 1e-12
_PART = 2048
"""Tokens of a sweep between two looks at what is proven."""
_FIRST_GUESSES, _GUESSES = 128, 32
"""Tokens drawn at random for a surrogate, and proposed by it between two fits."""


def solve(problem: Problem, settings: SequentialSolver) -> Result:
    """Find each prompt's tokens one after another, each verified before the next.

    When the run is to end early, what is not found yet holds the first candidates.

    Raises:
        SolverError: a position is hidden, or the model is not causal.
    """
    layout, embedding = problem.layout, problem.decoder.embedding
    if not problem.probe.causal or bool((layout.visible.sum(1) < layout.seen).any()):
        raise SolverError("sequential needs a causal model and every position visible")
    rows, positions = layout.visible.shape
    ids = problem.decoder.ids
    top = ids[torch.arange(5).clamp_max(len(ids) - 1)].repeat(rows, positions, 1)
    top = lead(top, problem.put(top[..., 0]))
    unfinished = torch.zeros(rows, dtype=torch.bool)
    spent = _Spent(rows, embedding.device)
    batcher = Batcher(watch=problem.watch)
    directions = directions_of(embedding[ids])
    expectations = _Expectations(settings.expected, settings.candidates)
    for position in range(positions):
        longer = (layout.seen > position).nonzero()[:, 0]
        before = top[longer, :position, 0]
        prefix = problem.probe.prefix(embedding[before]) if position else None
        step = _Step(problem, settings, longer, before, prefix, spent, batcher)
        try:
            if position:
                _settle(step, expectations, directions)
            else:
                # Descent does not find a first token behind many blocks (SmolLM2, block 15: median
                # rank 14,000 and more after 60 steps), and one sweep does it for all prompts.
                step.sweep(None)
        except Stopped:
            tried = step.nearest.isfinite()
            top[longer[tried], position] = step.answer[tried]
            doubtful = ~problem.given[longer, position] & (step.nearest > step.threshold)
            unfinished[longer] = ((layout.seen[longer] > position + 1) | doubtful).cpu()
            break
        top[longer, position] = step.answer
    return Result(
        top_ids=top,
        loss=problem.token_loss(layout.padded(top[..., 0])),
        first_loss=spent.first_loss,
        steps=spent.steps.cpu(),
        restart=torch.zeros(rows, dtype=torch.int64),
        restarts=1,
        evaluations=spent.evaluations.cpu(),
        stopped=[problem.watch.stopped if one else None for one in unfinished.tolist()],
    )


def _settle(step: _Step, expectations: _Expectations, directions: Tensor) -> None:
    """Find one token of every prompt, behind others that are proven: the cheapest way first."""
    sought = step.open
    if len(sought) == 0:
        return
    expected, worth = step.expected(), expectations.worth()
    step.expect(expected[:, :worth])
    others, before = len(step.open), step.spent.total
    for attempt in range(step.settings.attempts):
        step.descend(attempt)
    step.guess(directions)
    step.sweep(expected if worth and expectations.any_proven else None)
    spent = step.spent.total - before
    expectations.add(expected[sought], step.answer[sought, 0], others, spent)


class _Spent:
    """What the search has cost each prompt so far."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.evaluations = torch.zeros(rows, dtype=torch.int64, device=device)
        self.steps = torch.zeros(rows, dtype=torch.int64, device=device)
        self.first_loss = torch.zeros(rows, device=device)

    @property
    def total(self) -> int:
        """Evaluations of all prompts together."""
        return int(self.evaluations.sum())


class _Expectations:
    """How many of the tokens that a model expects are worth trying, judged by the ones proven.

    A trained model in front of its output head expects well what comes; one that is cut after its
    first blocks, or is untrained, does not. How dear the other ways to a token are counts as much.

    Args:
        most: most tokens to try.
        batch: tokens tried at a time.
    """

    def __init__(self, most: int, batch: int) -> None:
        self.sizes = range(0, most + 1, min(batch, most) or 1)
        self.batch, self.ranks = batch, torch.zeros(0, dtype=torch.int64)
        self.others, self.spent = 0, 0

    @property
    def any_proven(self) -> bool:
        """Whether any token is proven, by which the others can be judged."""
        return len(self.ranks) > 0

    def add(self, expected: Tensor, proven: Tensor, others: int, spent: int) -> None:
        """Take note of one position.

        Args:
            expected: [row, candidate] what was expected.
            proven: [row] what was there.
            others: tokens that were not found among those tried of the expected ones.
            spent: evaluations which that took.
        """
        ranks = (expected == proven[:, None]).int().argmax(dim=1)
        self.ranks = torch.cat([self.ranks, ranks.cpu()])
        self.others, self.spent = self.others + others, self.spent + spent

    def worth(self) -> int:
        """Return how many to try: what would have cost fewest evaluations so far."""
        if not self.any_proven:
            return self.sizes[min(1, len(self.sizes) - 1)]
        elsewhere = self.spent / self.others if self.others else torch.inf
        tried = self.batch * (1 + self.ranks // self.batch)

        def cost(size: int) -> float:
            missed = float((self.ranks >= size).double().mean())
            return float(tried.clamp(max=size).double().mean()) + (missed and missed * elsewhere)

        return min(self.sizes, key=cost)


class _Step:
    """The search for one position of every prompt that has one.

    Attributes:
        before: int64 [row, position] tokens already proven.
        open: indices into ``rows`` of the prompts whose token is neither known nor yet proven.
        answer: int64 [row, 5] tokens, best first; the first is known or proven where not open.
    """

    def __init__(
        self,
        problem: Problem,
        settings: SequentialSolver,
        rows: Tensor,
        before: Tensor,
        prefix: Prefix | None,
        spent: _Spent,
        batcher: Batcher,
    ) -> None:
        self.problem, self.settings, self.rows, self.before = problem, settings, rows, before
        self.prefix, self.spent, self.batcher = prefix, spent, batcher
        self.embedding = problem.decoder.embedding
        position = before.shape[1]
        self.target = problem.target[rows, position : position + 1]
        known = problem.known[rows, position]
        self.open = (known < 0).nonzero()[:, 0]
        self.answer = known.clamp_min(0)[:, None].repeat(1, 5)
        self.nearest = torch.full((len(rows),), torch.inf, device=rows.device)
        # A token from nowhere is about as far away as the embedding's mean: proven means nearer
        # by orders of magnitude, or within the noise.
        with torch.no_grad():
            nowhere = self._mean(len(rows))
            scale = self._distance(problem.probe(nowhere, prefix=prefix), self.target)
        self.threshold = torch.maximum(settings.tolerance * scale, problem.slack[rows])
        spent.first_loss[rows[self.open]] += scale[self.open]

    def expected(self) -> Tensor:
        """Return each row's candidates [row, candidate], those the model expects most first."""
        decoder = self.problem.decoder
        if not self.settings.expected:
            return decoder.ids.expand(len(self.rows), -1)
        scores = self.problem.probe.expected(self.embedding[self.before], self.embedding)
        return decoder.ids[scores[:, decoder.ids].argsort(dim=1, descending=True)]

    def expect(self, tokens: Tensor) -> None:
        """Try the tokens [row, k], a batch of them at a time, best first."""
        for part in torch.split(tokens, self.settings.candidates, dim=1):
            if len(self.open) and part.shape[1]:
                self._try(part[self.open])

    def descend(self, attempt: int) -> None:
        """Descend by Adam on each open row's one embedding, trying its nearest tokens."""
        problem, settings = self.problem, self.settings
        unit = float(self.embedding.std()) * settings.learning_rate / (1 + attempt)
        free = self._mean(len(self.open))
        if attempt:
            free = self.embedding[self.answer[self.open, :1]].clone()
        mean, square = torch.zeros_like(free), torch.zeros_like(free)
        for step in range(settings.steps):
            if len(self.open) == 0:
                return
            free.requires_grad_(True)
            found = problem.probe(free, prefix=_rows_of(self.prefix, self.open))
            # l2 whatever the metric: it is smooth, and only orders the candidates.
            visible = torch.ones(found.shape[:2], dtype=torch.bool, device=found.device)
            loss = distance(found, self.target[self.open], visible, "l2")
            (gradient,) = torch.autograd.grad(loss.sum(), free)
            mean = _BETAS[0] * mean + (1 - _BETAS[0]) * gradient
            square = _BETAS[1] * square + (1 - _BETAS[1]) * gradient.square()
            move = (mean / (1 - _BETAS[0] ** (step + 1))) / (
                (square / (1 - _BETAS[1] ** (step + 1))).sqrt() + _EPSILON
            )
            free = free.detach() - unit * (1 - 0.9 * step / settings.steps) * move
            self.problem.watch.check(len(self.open))
            self.spent.steps[self.rows[self.open]] += 1
            self.spent.evaluations[self.rows[self.open]] += 1
            if (step + 1) % settings.check_every == 0:
                stay = self._try(self.problem.decoder.top(free[:, 0], k=settings.candidates))
                free, mean, square = free[stay], mean[stay], square[stay]

    def guess(self, directions: Tensor) -> None:
        """Try tokens of each open row in the order of a surrogate, until one is proven.

        Args:
            directions: [candidate, d] of the surrogate.
        """
        ids = self.problem.decoder.ids
        most = min(self.settings.guesses, len(ids))
        for row in self.open[:, None] if most else ():
            prefix = _rows_of(self.prefix, row)
            drawn = torch.Generator().manual_seed(self.problem.seed)
            surrogate = Surrogate(directions, drawn)
            picked = torch.randperm(len(ids), generator=drawn)[:_FIRST_GUESSES].to(ids.device)
            losses, tokens = self.nearest.new_full((1, 5), torch.inf), self.answer[row]
            while True:
                found = self._found(ids[picked], prefix)
                away = self._distance(found, self.target[row])
                self.spent.evaluations[self.rows[row]] += len(picked)
                losses, tokens = _merge(losses, tokens, away[None], ids[picked])
                left = most - len(surrogate.tried) - len(picked)
                if left <= 0 or float(losses[0, 0]) <= float(self.threshold[row]):
                    break
                surrogate.add(picked, found[:, 0])
                picked = surrogate.likeliest(self.target[row][0, 0], min(_GUESSES, left))
            if losses[0, 0] < self.nearest[row]:
                self.nearest[row], self.answer[row] = losses[0, :1], tokens
        self.open = self.open[self.nearest[self.open] > self.threshold[self.open]]

    def sweep(self, order: Tensor | None) -> None:
        """Try the vocabulary on the rows still open, until each is proven.

        Rows that begin alike share the work.

        Args:
            order: [row, candidate] the candidates in the order to try them; None: in that of their
                ids, in which byte-pair tokenizers learned them: frequent ones first.
        """
        for rows in self._alike():
            candidates = self.problem.decoder.ids if order is None else order[rows[0]]
            group, prefix = rows, _rows_of(self.prefix, rows[:1])
            losses = torch.full((len(rows), 5), torch.inf, device=rows.device)
            tokens = self.answer[rows]
            for part in torch.split(candidates, _PART):
                away = self._away(part, prefix, group)
                share = -(-len(part) // len(group))
                self.spent.evaluations[self.rows[group]] += share
                still = torch.isin(rows, group)
                losses[still], tokens[still] = _merge(losses[still], tokens[still], away, part)
                self.answer[rows], self.nearest[rows] = tokens, losses[:, 0]
                group = rows[losses[:, 0] > self.threshold[rows]]
                if len(group) == 0:
                    break
        self.open = self.open[:0]

    def _alike(self) -> list[Tensor]:
        """Return the open rows in groups that have found the same tokens so far."""
        if len(self.open) == 0 or self.prefix is None:
            return [self.open] if len(self.open) else []
        _, group = torch.unique(self.before[self.open], dim=0, return_inverse=True)
        return [self.open[group == number] for number in range(int(group.max()) + 1)]

    def _found(self, tokens: Tensor, prefix: Prefix | None) -> Tensor:
        """Return the activations [token, 1, d_model] of tokens behind one prefix."""

        def found(some: Tensor) -> Tensor:
            with torch.no_grad():
                return self.problem.probe(self.embedding[some[:, None]], prefix=prefix)

        return self.batcher.map(found, tokens)

    def _away(self, part: Tensor, prefix: Prefix | None, group: Tensor) -> Tensor:
        """Return the distance [row, candidate] of candidates to the targets of some rows."""
        targets = self.target[group]

        def away(some: Tensor) -> Tensor:
            with torch.no_grad():
                found = self.problem.probe(self.embedding[some[:, None]], prefix=prefix)
                return torch.stack([self._distance(found, t[None]) for t in targets], dim=1)

        return self.batcher.map(away, part).T

    def _try(self, tokens: Tensor) -> Tensor:
        """Try tokens [open row, k] as one batch; return which of the open rows stay open."""
        count = tokens.shape[1]
        row = self.open.repeat_interleave(count)
        with torch.no_grad():
            found = self.problem.probe(
                self.embedding[tokens.flatten()[:, None]], prefix=_rows_of(self.prefix, row)
            )
            away = self._distance(found, self.target[row]).view(-1, count)
        self.spent.evaluations[self.rows[self.open]] += count
        best = away.topk(min(5, count), dim=1, largest=False)
        nearer = best.values[:, 0] < self.nearest[self.open]
        row = self.open[nearer]
        self.answer[row, : best.indices.shape[1]] = tokens.gather(1, best.indices)[nearer]
        self.nearest[row] = best.values[nearer, 0]
        stay = (self.nearest[self.open] > self.threshold[self.open]).nonzero()[:, 0]
        self.open = self.open[stay]
        return stay

    def _mean(self, rows: int) -> Tensor:
        return self.embedding.mean(0).expand(rows, 1, -1).clone()

    def _distance(self, found: Tensor, target: Tensor) -> Tensor:
        visible = torch.ones(found.shape[:2], dtype=torch.bool, device=found.device)
        return distance(found, target, visible, self.problem.metric, self.problem.weights)


def _merge(losses: Tensor, tokens: Tensor, away: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """Return the five best losses and tokens [row, 5] of those so far and a new part's."""
    losses = torch.cat([losses, away.to(losses)], dim=1)
    tokens = torch.cat([tokens, part.expand(len(away), -1)], dim=1)
    best = losses.topk(5, dim=1, largest=False)
    return best.values, tokens.gather(1, best.indices)


def _rows_of(prefix: Prefix | None, index: Tensor) -> Prefix | None:
    """Return a prefix with these rows only (a row may repeat)."""
    return None if prefix is None else prefix.rows(index)
