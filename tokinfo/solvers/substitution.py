"""Substitution: every candidate token at one position of a prompt, the other tokens given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokinfo.probe.metrics import distance, position_distance
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.problem import Problem, SolverError


class Substitution:
    """Distances of one prompt's candidates at one position.

    The prefix before the position is computed once (keys and values for attention, normed
    states for mixers), so a candidate costs this position and those behind it.

    Args:
        problem: a problem of a single row.
        context: [position, d], the embedded prompt around the candidates; padding of the
            batch beyond its length is ignored.
        position: where candidates are put.
        batcher: finds the batch size; share one between positions of a model.
        upto: compare the positions before this one only (None: all). For ``l1`` and ``l2``
            that bounds the whole distance from below, for less work.
    """

    def __init__(
        self,
        problem: Problem,
        context: Tensor,
        position: int,
        batcher: Batcher | None = None,
        *,
        upto: int | None = None,
    ) -> None:
        self.problem = problem
        self.position = position
        self.batcher = batcher or Batcher()
        self.length = int(problem.layout.seen[0])
        if upto is not None and problem.probe.causal:
            self.length = min(self.length, upto)
        self.context = context[: self.length]
        # [position] 2-norm of the smallest change; infinite where nothing was looked at.
        self.nearest = torch.full_like(problem.target[0, :, 0], torch.inf)
        self.prefix = (
            problem.probe.prefix(self.context[None, :position])
            if position and problem.probe.causal
            else None
        )

    def residuals(
        self,
        candidates: Tensor,
        progress: Callable[[int], object] | None = None,
        *,
        beside: int | None = None,
    ) -> Tensor:
        """Return the distance [candidate] of the prompt with each candidate in place.

        Args:
            candidates: int64 [candidate] token ids.
            progress: called with the number of candidates after each batch.
            beside: a token; what all others change at each position is kept as `nearest`.

        Raises:
            SolverError: a candidate's activations are not finite.
        """
        if beside is not None:
            self.nearest = torch.full_like(self.problem.target[0, :, 0], torch.inf)

        def score(part: Tensor) -> Tensor:
            found = self._score(part, beside)
            if progress is not None:
                progress(len(part))
            return found

        with torch.no_grad():
            away = self.batcher.map(score, candidates)
        if not bool(away.isfinite().all()):
            token = int(candidates[~away.isfinite()][0])
            what = f"with token {token} at position {self.position}, activations"
            raise SolverError(self.problem.probe.overflows(what))
        return away

    def activations(self, candidates: Tensor) -> Tensor:
        """Return the activations [candidate, position, width] with each candidate in place."""
        with torch.no_grad():
            return self.batcher.map(lambda part: self._found(part)[0], candidates)

    def _score(self, candidates: Tensor, beside: int | None = None) -> Tensor:
        found, first = self._found(candidates)
        problem = self.problem
        if beside is not None:
            place = slice(max(first, self.position if self.prefix is not None else 0), self.length)
            later = found[:, place.start - first :]
            apart = position_distance(later, problem.target[:, place])
            apart[candidates == beside] = torch.inf
            self.nearest[place] = torch.minimum(self.nearest[place], apart.amin(0))
        return distance(
            found,
            problem.target[:, first : self.length],
            problem.layout.visible[:1, first : self.length],
            problem.metric,
            problem.weights,
        )

    def _found(self, candidates: Tensor) -> tuple[Tensor, int]:
        """Return activations [candidate, position, width] and the position they begin at.

        They begin at the candidates' position unless an earlier one is visible.
        """
        problem = self.problem
        rows = len(candidates)
        first = 0 if self.prefix is None else self.position
        embedded = self.context[None, first:].repeat(rows, 1, 1)
        embedded[:, self.position - first] = problem.decoder.embedding[candidates]
        found = problem.probe(embedded, prefix=self.prefix)
        visible = problem.layout.visible[0, : self.length]
        if bool(visible[:first].any()):
            assert self.prefix is not None
            prefix = self.prefix.activations.expand(rows, -1, -1)
            found = torch.cat([prefix, found], dim=1)
            first = 0
        return found, first
