"""What every solver is given, and what every solver returns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokinfo.io.errors import TokinfoError
from tokinfo.probe.batch import Layout
from tokinfo.probe.metrics import distance, doubled, position_distance
from tokinfo.probe.noise import Floor, alone
from tokinfo.probe.probe import Probe
from tokinfo.solvers.decoding import Decoder, lead
from tokinfo.solvers.identification import Identification
from tokinfo.solvers.watch import Watch
from tokinfo.study.fields import MetricName, Parametrisation
from tokinfo.study.solvers import MetricWeights


class SolverError(TokinfoError):
    """A solver cannot go on; the message says why in one line."""


@dataclass(frozen=True)
class Problem:
    """A batch of targets to be explained; per-row quantities are data, never loops.

    It is all that a search receives. Of the prompts' tokens the known ones alone are in it.

    Attributes:
        probe: from embeddings to activations at the site.
        decoder: from embeddings to tokens; holds the embedding matrix [V, d].
        layout: what the model sees, what is visible and what is scored.
        known: int64 [row, position] tokens that the observer is given; -1 where none is.
        target: [row, position, width] activations of the true prompts, each computed alone; zero
            where they are hidden.
        metric: distance over visible positions.
        weights: weights of ``l1+cosine``.
        parametrisation: what descends.
        seed: seed of the starts.
        noise: noise floor of each prompt. A solver may stop there; it is a property of the
            machine's arithmetic, not of the prompt's tokens.
        numbers: [row] which prompt of the cell each row is; starts depend on it, so that a
            row is the same in any batch.
        prior: float64 [candidate] probabilities of the decoder's candidates before anything is
            seen; None: the study names no prior.
        added: how far noise that was added to the target may have taken it, which the observer
            knows; it is in ``noise`` too. None: no noise was added.
        ratio: of that noise to the signal.
        watch: says when a solver is to return what it has so far.
    """

    probe: Probe
    decoder: Decoder
    layout: Layout
    known: Tensor
    target: Tensor
    metric: MetricName
    weights: MetricWeights
    parametrisation: Parametrisation
    seed: int
    noise: Floor
    numbers: Tensor
    prior: Tensor | None = None
    added: Floor | None = None
    ratio: float = 0.0
    watch: Watch = field(default_factory=Watch)

    def rows(self, index: Tensor) -> Problem:
        """Return the problem of these rows only (a row may repeat)."""
        return replace(
            self,
            layout=self.layout.rows(index),
            known=self.known[index],
            target=self.target[index],
            noise=self.noise.rows(index),
            added=None if self.added is None else self.added.rows(index),
            numbers=self.numbers[index],
        )

    @property
    def floor(self) -> Tensor:
        """Noise floor [row] in the metric's units."""
        return self.noise.distance

    @property
    def slack(self) -> Tensor:
        """Distance [row] within which a candidate explains the target.

        The target may lie one floor from the exact activations, and the candidate another. Noise
        that was added is in the target alone.
        """
        if self.added is None:
            return doubled(self.metric) * self.noise.distance
        own = (self.noise.distance - self.added.distance).clamp_min(0)
        if "cosine" in self.metric:  # of squares, the roots add up
            return (2 * own.sqrt() + self.added.distance.sqrt()).square()
        return doubled(self.metric) * own + self.added.distance

    @property
    def given(self) -> Tensor:
        """Which tokens are known, bool [row, position]."""
        return self.known >= 0

    @property
    def independent(self) -> Tensor:
        """Of which tokens nothing visible depends, bool [row, position]; pads may be visible."""
        visible = self.layout.visible
        site = self.probe.site
        # Keys and values of the first block are of their own position's token alone.
        if site.place == "embedding" or (site.place == "kv" and site.block == 1):
            return ~visible
        if not self.probe.causal:
            return torch.zeros_like(visible)
        return visible.flip(1).long().cumsum(1).flip(1) == 0

    def put(self, ids: Tensor) -> Tensor:
        """Return tokens [row, position] with the known ones in place."""
        return torch.where(self.given, self.known, ids)

    def loss(self, embeddings: Tensor) -> Tensor:
        """Return the distance [row] of embedded candidates [row, position, d] to the target."""
        return self.away(self.probe(embeddings, self.layout.seen))

    def away(self, activations: Tensor) -> Tensor:
        """Return the distance [row] of activations [row, position, width] to the target."""
        return distance(activations, self.target, self.layout.visible, self.metric, self.weights)

    def token_loss(self, ids: Tensor) -> Tensor:
        """Return the distance [row] of candidate tokens [row, position] to the target."""
        with torch.no_grad():
            return self.loss(self.decoder.embedding[ids])

    def certified(self, ids: Tensor, loss: float) -> bool:
        """Whether tokens [position] of a single row explain the target to within the noise floor.

        A batch may add as much noise again as the floor allows; a candidate that near is
        computed once more alone, as the target was.

        Args:
            ids: int64 [position].
            loss: their distance, as a batch gave it.
        """
        return loss <= float(self.slack[0]) and bool(self.judged(ids[None])[1][0])

    def judged(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return how far tokens [row, position], each row computed alone, are from the target.

        Returns:
            the distance [row]; whether the tokens explain the target, bool [row], to within the
            noise floor as a whole and at each visible position by itself: one position with large
            activations can hide all others in a sum; and the 2-norm [row, position] of the
            difference.
        """
        found = alone(self.probe, self.decoder.embedding, ids, self.layout.seen)
        away, apart = self.away(found), position_distance(found, self.target)
        within = (apart <= self.noise.positions) | ~self.layout.visible
        return away, (away <= self.floor) & within.all(1), apart

    def embed(self, free: Tensor) -> Tensor:
        """Return the embeddings [row, position, d] that a free variable stands for.

        Those of known tokens are in place: nothing there depends on the free variable. A mixture
        stands for no embedding (`tokinfo.solvers.relaxed`).
        """
        matrix = self.decoder.embedding
        embedded = free @ matrix if self.parametrisation == "vocabulary" else free
        return torch.where(self.given[..., None], matrix[self.known.clamp_min(0)], embedded)

    def decode(self, free: Tensor, k: int = 5) -> Tensor:
        """Return the k best tokens [row, position, k] of a free variable; known ones lead."""
        if self.parametrisation == "embedding":
            lists = self.decoder.top(free, k)
        else:
            if self.parametrisation == "vocabulary":
                free = free[..., self.decoder.ids]
            lists = self.decoder.rank(free, k)
        return lead(lists, self.put(lists[..., 0]))

    def start(self, restart: int) -> Tensor:
        """Return standard normal numbers [row, position, free dimension].

        Each row's come from a generator seeded by (seed, prompt, restart): a prompt
        starts from the same point whatever else is in its batch.
        """
        matrix = self.decoder.embedding
        width = {
            "embedding": matrix.shape[1],
            "vocabulary": len(matrix),
            "mixture": self.decoder.size,
        }[self.parametrisation]
        # The last numbers that torch draws depend on how many there are, unless it is 16 at a time.
        drawn = 16 * -(-width // 16)
        rows = []
        for number in self.numbers.tolist():
            generator = torch.Generator().manual_seed(
                (self.seed * 1_000_003 + number) * 1_000_003 + restart
            )
            rows.append(torch.randn(self.target.shape[1], drawn, generator=generator))
        return torch.stack(rows)[..., :width].to(matrix)


@dataclass(frozen=True)
class Result:
    """What a solver found, one entry per row of its problem.

    Attributes:
        top_ids: int64 [row, position, 5], best first; the first is the found prompt. A sweep
            around the true prompt finds none: -1 where it did not visit a position.
        loss: [row] distance at the end of the descent, of the free variable; not a number where
            nothing was searched.
        first_loss: [row] distance at the start.
        steps: int64 [row] steps taken by the start that was kept.
        restart: int64 [row] which start was kept.
        restarts: number of starts.
        evaluations: int64 [row] forward passes spent on the row, all starts together.
        identified: for each row, what sweeps say about its positions; None: nothing was swept.
        around: which prompt the sweeps were run around, ``true`` or ``found``.
        curve: for each row, its loss at the first of ``curve_steps``; a row that stopped early
            has fewer. None: nothing descended.
        curve_steps: steps at which losses were noted.
        path: for each row, which of a solver's searches was used; None: it has one only.
        stopped: for each row, why the search ended early (see `Watch`), and None where it did not.
    """

    top_ids: Tensor
    loss: Tensor
    first_loss: Tensor
    steps: Tensor
    restart: Tensor
    restarts: int
    evaluations: Tensor
    identified: list[dict[int, Identification]] | None = None
    around: str | None = None
    curve: list[list[float]] | None = None
    curve_steps: tuple[int, ...] = ()
    path: list[str] | None = None
    stopped: list[str | None] | None = None

    @classmethod
    def concatenate(cls, parts: list[Result]) -> Result:
        """Join results of consecutive rows."""
        joined: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("top_ids", "loss", "first_loss", "steps", "restart", "evaluations")
        }
        swept = [part.identified for part in parts if part.identified is not None]
        for name in ("path", "stopped"):
            rows = [getattr(part, name) for part in parts]
            joined[name] = None if None in rows else [row for part in rows for row in part]
        return cls(
            **joined,
            restarts=parts[0].restarts,
            identified=[row for rows in swept for row in rows] if swept else None,
            around=parts[0].around,
            curve=(
                None
                if any(part.curve is None for part in parts)
                else [row for part in parts for row in part.curve or []]
            ),
            curve_steps=max((part.curve_steps for part in parts), key=len),
        )


def check_finite(loss: Tensor, problem: Problem, step: int) -> None:
    """Raise SolverError naming the prompts whose loss is no longer a number."""
    bad = ~torch.isfinite(loss)
    if bad.any():
        prompts = sorted(set(problem.numbers[bad.cpu()].tolist()))
        raise SolverError(
            f"the loss became non-finite at step {step} for prompt(s) {prompts}; "
            "a smaller learning_rate is the usual cure"
        )
