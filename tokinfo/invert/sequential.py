"""Exact search from left to right, every position visible.

In a causal model the activations at position p depend on the tokens up to p alone. With the
tokens before it known, one token is left to find, and a found one is proven by the forward
model. The idea is that of SipIt (arXiv 2510.15511, section 4); candidates here come from a
descent of the one free embedding, for all prompts at once, and a full sweep of the vocabulary
is the last resort.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokinfo.batches import Batcher
from tokinfo.invert.problem import Problem, Result, SolverError
from tokinfo.objective import distance
from tokinfo.probe import Prefix
from tokinfo.solvers import SequentialSolver
from tokinfo.substitute import Substitution


def solve(problem: Problem, settings: SequentialSolver) -> Result:
    """Find each prompt's tokens one after another, each verified before the next.

    Raises:
        SolverError: a position is hidden, or the model is not causal.
    """
    batch, embedding = problem.batch, problem.decoder.embedding
    own = torch.arange(batch.ids.shape[1], device=batch.ids.device) < batch.seen[:, None]
    if not problem.probe.causal or bool((own & ~batch.visible).any()):
        raise SolverError("sequential needs a causal model and every position visible")
    search = _Search(problem, settings)
    found = torch.zeros_like(batch.ids)
    top = torch.zeros(*batch.ids.shape, 5, dtype=torch.int64, device=batch.ids.device)
    for position in range(batch.ids.shape[1]):
        rows = (batch.seen > position).nonzero()[:, 0]
        prefix = problem.probe.prefix(embedding[found[rows, :position]]) if position else None
        top[rows, position] = search.step(rows, found[rows, :position], prefix)
        found[rows, position] = top[rows, position, 0]
    loss = problem.token_loss(found)
    return Result(
        top_ids=top,
        loss=loss,
        first_loss=search.first_loss,
        steps=search.steps.cpu(),
        restart=torch.zeros(len(found), dtype=torch.int64),
        restarts=1,
        evaluations=search.evaluations.cpu(),
    )


class _Search:
    """The search for one position of many prompts at once, and what it has cost so far."""

    def __init__(self, problem: Problem, settings: SequentialSolver) -> None:
        self.problem = problem
        self.settings = settings
        self.batcher = Batcher()
        rows, device = len(problem.target), problem.target.device
        self.evaluations = torch.zeros(rows, dtype=torch.int64, device=device)
        self.steps = torch.zeros(rows, dtype=torch.int64, device=device)
        self.first_loss = torch.zeros(rows, device=device)

    def step(self, rows: Tensor, before: Tensor, prefix: Prefix | None) -> Tensor:
        """Return the tokens [row, 5] of the position after ``before`` [row, position].

        The first is verified where anything is: its activations are within ``tolerance`` of
        the target's, relative to a random token's. The others are the runners-up tried last.
        """
        position = before.shape[1]
        target = self.problem.target[rows, position : position + 1]
        embedding = self.problem.decoder.embedding
        free = embedding.mean(0).expand(len(rows), 1, -1).clone()
        scale, unit = None, float(embedding.std())
        mean, square = torch.zeros_like(free), torch.zeros_like(free)
        answer = torch.zeros(len(rows), 5, dtype=torch.int64, device=rows.device)
        open_rows = torch.arange(len(rows), device=rows.device)
        tried: list[set[int]] = [set() for _ in range(len(rows))]
        for step in range(self.settings.steps):
            free.requires_grad_(True)
            part = _rows_of(prefix, open_rows)
            loss = self._distance(self.problem.probe(free, prefix=part), target[open_rows])
            (gradient,) = torch.autograd.grad(loss.sum(), free)
            if scale is None:
                # A token from nowhere is about as far away as the start: verified means nearer
                # by orders of magnitude, rounding included.
                scale = loss.detach()
                self.first_loss[rows] += scale
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient.square()
            move = (mean / (1 - 0.9 ** (step + 1))) / (
                (square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-12
            )
            rate = self.settings.learning_rate * unit * (1 - 0.9 * step / self.settings.steps)
            free = free.detach() - rate * move
            self.steps[rows[open_rows]] += 1
            self.evaluations[rows[open_rows]] += 1
            if (step + 1) % self.settings.check_every:
                continue
            solved = self._verify(rows, open_rows, free, part, target, scale, tried, answer)
            stay = (~solved).nonzero()[:, 0]
            open_rows, free, mean, square = open_rows[stay], free[stay], mean[stay], square[stay]
            if len(open_rows) == 0:
                return answer
        for row in open_rows.tolist():
            answer[row] = self._sweep(int(rows[row]), before[row])
        return answer

    def _distance(self, found: Tensor, target: Tensor) -> Tensor:
        shown = torch.ones(found.shape[:2], dtype=torch.bool, device=found.device)
        return distance(found, target, shown, self.problem.metric, self.problem.weights)

    def _verify(
        self,
        rows: Tensor,
        open_rows: Tensor,
        free: Tensor,
        prefix: Prefix | None,
        target: Tensor,
        scale: Tensor,
        tried: list[set[int]],
        answer: Tensor,
    ) -> Tensor:
        """Try each open row's nearest untried candidates; return which rows are solved."""
        embedding = self.problem.decoder.embedding
        ranked = self.problem.decoder.top(free[:, 0], k=self.settings.candidates)
        solved = torch.zeros(len(open_rows), dtype=torch.bool, device=rows.device)
        for column in range(ranked.shape[1]):
            fresh = [
                i
                for i, row in enumerate(open_rows.tolist())
                if not bool(solved[i]) and int(ranked[i, column]) not in tried[row]
            ]
            if not fresh:
                continue
            index = torch.tensor(fresh, device=rows.device)
            tokens = ranked[index, column]
            with torch.no_grad():
                found = self.problem.probe(
                    embedding[tokens[:, None]], prefix=_rows_of(prefix, index)
                )
            row_index = open_rows[index]
            away = self._distance(found, target[row_index])
            self.evaluations[rows[row_index]] += 1
            for row, token in zip(row_index.tolist(), tokens.tolist(), strict=True):
                tried[row].add(token)
            hit = away <= self.settings.tolerance * scale[row_index]
            solved[index[hit]] = True
            answer[row_index[hit]] = ranked[index[hit]][:, :5]
            answer[row_index[hit], 0] = tokens[hit]
        return solved

    def _sweep(self, row: int, before: Tensor) -> Tensor:
        """Return the five best tokens of one row by trying every candidate."""
        decoder, position = self.problem.decoder, len(before)
        one = self.problem.rows(torch.tensor([row], device=before.device))
        only = torch.zeros_like(one.batch.visible)
        only[:, position] = True
        narrow = replace(
            one.batch, visible=only, seen=torch.full_like(one.batch.seen, position + 1)
        )
        around = decoder.embedding[torch.cat([before, before.new_zeros(1)])]
        candidates = decoder.ids
        residuals = Substitution(
            replace(one, batch=narrow), around, position, self.batcher
        ).residuals(candidates)
        self.evaluations[row] += len(candidates)
        return candidates[residuals.topk(5, largest=False).indices]


def _rows_of(prefix: Prefix | None, index: Tensor) -> Prefix | None:
    """Return a prefix with these rows only."""
    if prefix is None:
        return None
    return Prefix(prefix.activations[index], tuple((k[index], v[index]) for k, v in prefix.layers))
