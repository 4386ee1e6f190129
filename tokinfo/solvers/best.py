"""The best prompt of a search so far: kept, mended and certified by the forward model alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.decoding import lead
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.substitution import Substitution
from tokinfo.study.solvers import MixtureSolver

_PROMPTS = 1024
"""Random prompts in which it is measured how activations vary together."""
_ROUNDING = 1e-9
"""Variance of a direction, as a share of the largest, that may be rounding alone."""
_MASSIVE = 0.01
"""Share of the directions that massive activations may take: a few that some tokens make far larger
than all others (M. Sun et al., arXiv 2402.17762)."""
_RIDGE = 5e-4
"""Variance below which a direction counts less, as a share of the largest but for those."""
_PART = 512
"""Candidates that go through the model at a time."""
_DRAWS = 32
"""Random prompts that the tokens proposed for a visible position are compared in."""


class Best:
    """The best tokens so far for one prompt, and what they have cost.

    Attributes:
        problem: of a single row; its probe is causal.
        length: positions that the model sees.
        visible: the visible ones.
        unknown: hidden positions whose token is sought; one that no visible position sees changes
            nothing that is compared, and is left out.
        proposed: int64 [position, k] tokens that descent proposes, best first.
        leading: int64 [token] candidates that stand for unknown tokens before anything is found.
        ids: int64 [position] the best tokens so far.
        loss: their distance.
        certified: whether they explain the target to within the noise floor.
        evaluations: prompts that went through the model.
        rounds: times that candidates were mixed.

    Args:
        problem: of a single row.
        settings: the solver's.
        batcher: finds the batch size.
        proposed: as above.
    """

    def __init__(
        self,
        problem: Problem,
        settings: MixtureSolver,
        batcher: Batcher,
        proposed: Tensor,
    ) -> None:
        self.problem, self.settings, self.batcher = problem, settings, batcher
        self.proposed = proposed
        self._lists = proposed[:, :5].clone()
        length = self.length = int(problem.layout.seen[0])
        visible = problem.layout.visible[0, :length].tolist()
        self.given: list[bool] = problem.given[0, :length].tolist()
        self.visible = [p for p in range(length) if visible[p]]
        self.unknown = [p for p in range(self.visible[-1]) if not visible[p] and not self.given[p]]
        self.leading = problem.decoder.ids[: settings.leading]
        self.random = torch.Generator().manual_seed(
            problem.seed * 1_000_003 + int(problem.numbers[0])
        )
        self.evaluations = self.rounds = 0
        self.restart(problem.put(problem.layout.padded(proposed[None, :, 0]))[0])

    @property
    def embedding(self) -> Tensor:
        """The embeddings [V, d]."""
        return self.problem.decoder.embedding

    @property
    def top(self) -> Tensor:
        """The five best tokens [position, 5] of each position, the found one first."""
        return lead(self._lists, self.ids)

    def restart(self, ids: Tensor) -> None:
        """Go on from a prompt [position], whatever its distance."""
        self._hold(ids, self._distance(ids))

    def keep(self, ids: Tensor) -> None:
        """Keep a prompt [position] where it is nearer to the target than the best so far."""
        loss = self._distance(ids)
        if loss < self.loss:
            self._hold(ids, loss)

    def among(self, prompts: Tensor) -> None:
        """Keep the nearest of prompts [prompt, position] where that is nearer than the best."""

        def away(part: Tensor) -> Tensor:
            same = self.problem.rows(torch.zeros(len(part), dtype=torch.int64))
            return same.token_loss(part)

        self.evaluations += len(prompts)
        self.keep(prompts[self.batcher.map(away, prompts).argmin()])

    def late(self) -> bool:
        """Return whether the run is to end."""
        return self.problem.watch.late()

    def drawn(self, count: int, unknown: list[int] | None = None) -> Tensor:
        """Return prompts [prompt, position] as found, with random tokens where unknown."""
        places = self.unknown if unknown is None else unknown
        tokens = torch.randint(len(self.leading), (count, len(places)), generator=self.random)
        prompts = self.ids[: self.length].repeat(count, 1)
        prompts[:, places] = self.leading[tokens.to(self.leading.device)]
        return prompts

    def doubting(
        self,
        mixed: Callable[[list[int], list[int]], int | None],
        read: Callable[[], None] | None = None,
    ) -> None:
        """Search with visible tokens as read, and doubt one more each time that it rests.

        Args:
            mixed: searches unknown positions by what is seen at judges, visible positions behind
                the first of them whose tokens are taken for right. Returns the judge whose token is
                most likely wrong; None: certified, out of time, or all are known.
            read: chooses visible tokens that are not known; None: as `Best.read` does.
        """
        if self.certified or not self.unknown or self.late():
            return
        proposed = self.ids
        try:
            (read or self.read)()
            unknown, trusted = list(self.unknown), list(self.visible)
            while unknown and trusted and self.unknown[0] < trusted[-1]:
                judges = [place for place in trusted if place > self.unknown[0]]
                doubtful = mixed(unknown, judges)
                if doubtful is None:
                    return
                # Its token is sought with the hidden ones, by what it does to positions behind it.
                trusted.remove(doubtful)
                last = trusted[-1] if trusted else 0
                unknown = sorted(place for place in (*unknown, doubtful) if place < last)
        finally:
            # Tokens that were read may be further from the target than those that descent proposes.
            self.keep(proposed)

    def whitening(
        self, unknown: list[int], judges: list[int], last: Tensor | None = None
    ) -> Tensor:
        """Return the directions [component, direction] in which random prompts differ.

        Along each direction the spread is 1, less where it is next to none. Where no prompt differs
        from another there is one direction, of length 0.

        Args:
            unknown: positions at which random tokens stand.
            judges: positions whose activations, one after another, are the components.
            last: int64 [token], those that take turns at the last judge, in as many prompts each:
                prompts are compared with those of the same token. None: the one found so far.
        """

        def seen(prompts: Tensor) -> Tensor:
            return self.problem.probe(self.embedding[prompts])[:, judges].float().flatten(1)

        tokens = self.ids[judges[-1], None] if last is None else last
        prompts = self.drawn(_PROMPTS, unknown)[:, : judges[-1] + 1]
        prompts = prompts[: len(prompts) // len(tokens) * len(tokens)]
        prompts[:, judges[-1]] = tokens.repeat(len(prompts) // len(tokens))
        self.evaluations += len(prompts)
        with torch.no_grad():
            drawn = self.batcher.map(seen, prompts).double()
        drawn = drawn.view(-1, len(tokens), drawn.shape[-1])
        drawn = (drawn - drawn.mean(0)).flatten(0, 1)
        # The covariance is as large as the components are many; the Gram matrix has the same roots.
        values, vectors = torch.linalg.eigh(drawn @ drawn.T / len(drawn))
        kept = values > _ROUNDING * values[-1]
        if not bool(kept.any()):
            return drawn.new_zeros(drawn.shape[1], 1).float()
        values, vectors = values[kept], vectors[:, kept]
        directions = drawn.T @ (vectors / (len(drawn) * values).sqrt())
        ridge = _RIDGE * values[-1 - int(_MASSIVE * len(values))]
        found: Tensor = (directions / (values + ridge).sqrt()).float()
        return found

    def parts(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yield the embeddings of tokens [token, d] in parts that go through the model at a time.

        Raises:
            Stopped: the run is to end.
        """
        for part in torch.split(tokens, _PART):
            self.problem.watch.check(len(part))
            self.evaluations += len(part)
            yield self.embedding[part]

    def read(self) -> None:
        """Choose each visible token that is not known, among those that descent proposes.

        Before random hidden tokens the right one gives activations that come near to the
        target's; a wrong one hardly does.
        """
        for place in (place for place in self.visible if not self.given[place]):
            own = self.proposed[place].repeat_interleave(_DRAWS)
            prompts = self.drawn(len(own))[:, : place + 1]
            prompts[:, place] = own
            with torch.no_grad():
                made = self.problem.probe(self.embedding[prompts])[:, place]
            away = (made - self.problem.target[0, place]).norm(dim=1).view(-1, _DRAWS).amin(1)
            ids = self.ids.clone()
            ids[place] = self.proposed[place][away.argmin()]
            self.restart(ids)

    def doubtful(self, judges: list[int]) -> int | None:
        """Return which of these visible positions fits its activations least; None: all are known.

        A wrong token moves the activations at its own position most.
        """
        doubted = [place for place in judges if not self.given[place]]
        if not doubted:
            return None
        with torch.no_grad():
            found = self.problem.probe(self.embedding[self.ids[None, : self.length]])[0, doubted]
        target = self.problem.target[0, doubted]
        misfit = (found - target).norm(dim=1) / target.norm(dim=1)
        return doubted[int(misfit.argmax())]

    def swap(self, lists: Mapping[int, Tensor]) -> None:
        """Swap single tokens for as long as that brings the prompt nearer.

        Args:
            lists: int64 [token] by position, those that are tried, the likeliest first.
        """
        for place, tokens in lists.items():
            self._lists[place, : len(tokens)] = tokens[:5]
        while not self.certified:
            before = self.loss
            for place, tokens in lists.items():
                if self.certified:
                    return
                away = self._substituted(self.ids, place, tokens)
                swapped = self.ids.clone()
                swapped[place] = tokens[away.argmin()]
                self.keep(swapped)
            if self.loss >= before * (1 - 1e-6):
                return

    def mend(self) -> None:
        """Mend visible tokens from left to right, as long as all that is visible before matches.

        A visible position depends on nothing to its right: where all before it is right, its
        activations identify its token.
        """
        ids = self.ids.clone()
        slack = float(self.problem.slack[0])
        matched = False
        for place in self.visible:
            if self.certified:
                return
            likely = [ids[place, None]]
            if not self.given[place]:
                every = self.problem.decoder.ids if matched else self.leading
                likely += [self.proposed[place], every]
            for tokens in likely:
                away = self._substituted(ids, place, tokens, place + 1)
                if float(away.min()) <= slack:
                    break
            else:
                return
            ids[place], matched = tokens[away.argmin()], True
            self.keep(ids.clone())

    def _hold(self, ids: Tensor, loss: float) -> None:
        self.ids, self.loss = ids, loss
        self.certified = self.problem.certified(ids, loss)
        self.problem.watch.note(loss / self.problem.floor)

    def _substituted(
        self, ids: Tensor, place: int, tokens: Tensor, end: int | None = None
    ) -> Tensor:
        """Return the distances [token] of a prompt with each token at one position."""
        self.evaluations += len(tokens)
        around = self.embedding[ids]
        return Substitution(self.problem, around, place, self.batcher, upto=end).residuals(tokens)

    def _distance(self, ids: Tensor) -> float:
        self.evaluations += 1
        return float(self.problem.token_loss(ids[None])[0])
