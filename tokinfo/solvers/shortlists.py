"""Hidden tokens behind any site: descent on mixtures of shortlists, and better shortlists by it.

1. A hidden position's first list are the likeliest tokens by detection (`tokinfo.solvers.detect`).
2. Adam descends on the logarithms of the probabilities, through the model's own forward of the
   mixture (`tokinfo.probe.mixture`). Tokens whose probability vanishes leave the list.
3. The likeliest token of each position goes through the model.
4. How fast the distance would fall as any other token is given a little probability is one
   derivative for all tokens of a pass. The best of them join the list, as columns are generated
   where the gradient is steepest (`tokinfo.solvers.columns`); but here the problem is not convex.

Visible tokens that are not known are mixtures too, of what descent on embeddings proposes: a
visible position's activations are those of its candidates, weighted.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokinfo.probe.mixture import mix
from tokinfo.solvers.best import Best
from tokinfo.solvers.detect import Responses

_ADDED = 64
"""Tokens that join a position's list in a round."""
_TRIED = 512
"""Tokens that are given a little probability in one pass."""
_LITTLE = -12.0
"""Logarithm of that little."""
_KEPT = 1e-3
"""Probability from which on a token stays in its list."""
_RATE = 0.3
"""Adam's step, in nats."""
_DETECTIONS = 8
"""Times that detection judges every position."""
_RESTED = 2
"""Rounds without a change after which the search has come to rest."""


def search(best: Best) -> None:
    """Search until the prompt is certified, the mixtures rest or time is up.

    Args:
        best: the prompt so far; the better ones are kept there.
    """
    if best.certified or not best.unknown or best.late():
        return
    every = best.problem.decoder.ids
    for tokens in (best.leading, every) if len(best.leading) < len(every) else (every,):
        for near in (1, None) if len(best.visible) > 1 else (None,):
            _mixed(_Mixtures(best, _detected(best, tokens, near)), best, tokens)
            if best.certified or best.late():
                return


def _detected(best: Best, tokens: Tensor, near: int | None) -> dict[int, Tensor]:
    """Return each hidden position's likeliest tokens, judged by so many visible positions."""
    unknown = best.unknown
    stand_ins = best.ids.clone()
    stand_ins[: best.length] = best.drawn(1)[0]
    responses = Responses(
        best.problem, stand_ins, dict.fromkeys(unknown, tokens), near, best.batcher, best.random
    )
    found = responses.detect(unknown, best.settings.shortlist, _DETECTIONS)
    best.evaluations += responses.evaluations
    return {place: one.tokens for place, one in found.items()}


def _mixed(mixtures: _Mixtures, best: Best, tokens: Tensor) -> None:
    """Mix tokens until the mixtures rest; then swap and mend single ones."""
    rested, last = 0, best.ids
    for _ in range(best.settings.rounds):
        best.rounds += 1
        mixtures.descend(best.settings.steps)
        prompt = mixtures.likeliest()
        best.keep(prompt)
        rested, last = rested + 1 if torch.equal(prompt, last) else 0, prompt
        if best.certified or best.late():
            return
        if rested >= _RESTED:
            break
        mixtures.widen(tokens)
    best.swap(mixtures.ranked(best.settings.shortlist))
    best.mend()


class _Mixtures:
    """A list of tokens and their log-probabilities for each position that is not certain."""

    def __init__(self, best: Best, lists: Mapping[int, Tensor]) -> None:
        self._best = best
        problem = best.problem
        device = best.embedding.device
        # Behind the last visible position nothing is compared.
        self._end = best.visible[-1] + 1
        read = [place for place in best.visible if not best.given[place]]
        self._open = sorted([*best.unknown, *read])
        self._certain = [place for place in range(self._end) if place not in set(self._open)]
        self._tokens: dict[int, Tensor] = {}
        self._logits: dict[int, Tensor] = {}
        for place in self._open:
            tokens = lists[place] if place in lists else torch.unique(best.proposed[place])
            self._tokens[place] = tokens
            self._logits[place] = torch.zeros(len(tokens), device=device)
        visible = torch.tensor(best.visible, device=device)
        self._target = problem.target[0, visible]
        self._whiten = best.whitening(best.unknown, best.visible)

    def widen(self, vocabulary: Tensor) -> None:
        """Let the tokens that promise most join each hidden position's list.

        Args:
            vocabulary: int64 [token] the tokens that are tried.
        """
        promised: dict[int, Tensor] = {}
        for place in self._best.unknown:
            promise = torch.cat(
                [self._promise(place, part) for part in torch.split(vocabulary, _TRIED)]
            )
            promise[torch.isin(vocabulary, self._tokens[place])] = -torch.inf
            best = promise.topk(min(_ADDED, len(promise)))
            promised[place] = vocabulary[best.indices[best.values > -torch.inf]]
            if self._best.late():
                return
        for place in self._open:
            kept = self._logits[place].log_softmax(0).exp() > _KEPT
            new = promised.get(place, self._tokens[place][:0])
            self._tokens[place] = torch.cat([self._tokens[place][kept], new])
            self._logits[place] = torch.zeros(len(self._tokens[place]), device=new.device)

    def descend(self, steps: int) -> None:
        """Take steps of Adam on the log-probabilities."""
        free = [self._logits[place].clone().requires_grad_(True) for place in self._open]
        optimizer = torch.optim.Adam(free, lr=_RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self._loss([logits.log_softmax(0) for logits in free])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if self._best.late():
                break
        for place, logits in zip(self._open, free, strict=True):
            self._logits[place] = logits.detach()

    def likeliest(self) -> Tensor:
        """Return the prompt [position] of each position's likeliest token."""
        ids = self._best.ids.clone()
        for place in self._open:
            ids[place] = self._tokens[place][self._logits[place].argmax()]
        return ids

    def ranked(self, count: int) -> dict[int, Tensor]:
        """Return each position's tokens, the likeliest first, at most ``count``."""
        return {
            place: self._tokens[place][self._logits[place].argsort(descending=True)[:count]]
            for place in self._open
        }

    def _promise(self, place: int, tokens: Tensor) -> Tensor:
        """Return how fast the loss falls [token] as tokens at a position are given probability."""
        little = torch.full((len(tokens),), _LITTLE, device=tokens.device, requires_grad=True)
        weights = [self._logits[p].log_softmax(0) for p in self._open]
        loss = self._loss(weights, (place, tokens, little))
        (slope,) = torch.autograd.grad(loss, little)
        return -slope

    def _loss(
        self, weights: list[Tensor], tried: tuple[int, Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return the mean square of what the mixtures leave of the target, in units of its spread.

        Args:
            weights: log-probabilities [token] of each open position's list.
            tried: a position, more tokens there [token] and the logarithms of their probabilities.
        """
        best = self._best
        self._best.evaluations += 1
        device = best.embedding.device
        certain = torch.tensor(self._certain, dtype=torch.int64, device=device)
        tokens = [self._tokens[place] for place in self._open]
        places = [torch.full_like(one, p) for p, one in zip(self._open, tokens, strict=True)]
        logs = list(weights)
        if tried is not None:
            places.append(torch.full_like(tried[1], tried[0]))
            tokens.append(tried[1])
            logs.append(tried[2])
        positions = torch.cat([*places, certain])
        ids = torch.cat([*tokens, best.ids[certain]])
        logs.append(torch.zeros(len(certain), device=device))
        order = positions.argsort(stable=True)
        log_p = torch.cat(logs)[order]
        positions = positions[order]
        found = mix(best.problem.probe, best.embedding[ids[order]][None], positions, log_p[None])[0]
        share = torch.where(
            positions[None, :] == positions.new_tensor(best.visible)[:, None], log_p.exp(), 0
        )
        left = share @ found.float() - self._target
        loss: Tensor = (left.flatten() @ self._whiten).square().mean()
        return loss
