"""Hidden tokens behind any block of attention: descent on the probabilities of all candidates.

1. Each hidden position holds a list of candidates: at first the leading tokens of the vocabulary,
   and all of them at the first such position. All are equally likely.
2. Every candidate's keys and values are computed, in the company of the likeliest candidates of
   earlier positions (`tokinfo.probe.streams`).
3. Adam descends on the logarithms of all probabilities. The keys and values stand still, so a step
   costs no more than the forward of the positions that are certain, with attention to the lists.
4. The likeliest token of each position goes through the model.
5. Keys and values are computed anew, in the company that is now likely. What was learned in the
   last one counts less from then on, because it was partly wrong: logarithms are shrunk, by less
   from stage to stage, as a temperature is lowered in annealing (S. Kirkpatrick, C. Gelatt and M.
   Vecchi, Science 220, 1983). Lists are narrowed from stage to stage.
6. Where that comes to rest, the positions that are least certain get every token again; at last,
   lists become shorter.

With one candidate a position, keys and values are the model's own: a prompt that is found is
certified like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from tokinfo.models.structure import StructureError
from tokinfo.probe.streams import Entries, Streams, joined
from tokinfo.solvers.best import Best
from tokinfo.solvers.detect import Detected, combinations
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.reading import COMPANY, read
from tokinfo.study.solvers import HELD

_STAGES = ((8192, 0.6, 2), (1024, 0.6, 3))
_LATER = ((512, 0.7, 3), (256, 0.8, 3), (128, 0.9, 3))
"""Candidates of a position, what logarithms are shrunk by, and rounds at most; the last time that
lists are narrowed, more follow, and then the lists are as long as the solver's `shortlist` and
nothing is shrunk."""
_RATE = 0.3
"""Adam's step, in nats."""
_COMBINED = 512
"""Prompts, the likeliest combinations of candidates, that go through the model after a stage."""
_STILL = 6
"""Rounds with the same likeliest tokens after which lists are narrowed no further."""
_TIMES = 3
"""Times that lists are narrowed, counting the first."""
_UNSURE = 0.5
"""Probability of the likeliest token below which a position gets every token again."""


def streams(problem: Problem) -> Streams | None:
    """Return the decoder's streams where the search applies, else None.

    It does where attention can be taken apart and a sliding window spans the prompts.
    """
    try:
        found = Streams(problem.probe)
    except StructureError:
        return None
    return None if (found.reach or torch.inf) < int(problem.layout.seen.max()) else found


def search(best: Best, streams: Streams, start: Start) -> None:
    """Search until the prompt is certified, the lists rest or time is up.

    Args:
        best: the prompt so far; the better ones are kept there.
        streams: of the problem's probe; its sliding window spans the prompt.
        start: what other prompts of the problem have computed.
    """

    def mixed(unknown: list[int], judges: list[int]) -> int | None:
        return _annealed(best, _Lists(best, streams, start, unknown, judges))

    best.doubting(mixed, read=lambda: read(best, streams))


def _annealed(best: Best, lists: _Lists) -> int | None:
    """Narrow the lists until the prompt is certified, time is up or they rest a last time.

    Returns:
        The judge whose token is most likely wrong; None: certified, out of time, or all are known.
    """
    every = best.problem.decoder.ids
    lists.reset(lists.unknown, best.leading)
    # Prompts begin with tokens that are rare elsewhere, and those are computed only once.
    lists.reset(lists.unknown[:1], every)
    for again in range(_TIMES):
        if again:
            lists.reset(lists.unsure(len(every)), every)
        lists.anneal(whole=again == _TIMES - 1)
        best.swap(lists.ranked(best.settings.shortlist))
        best.mend()
        if best.certified or best.late():
            return None
    return best.doubtful(lists.judges)


class Start:
    """Candidates of the first unknown position, behind tokens that are certain.

    Nothing that is sought changes their keys and values: they are computed once, and serve all
    prompts that begin alike.

    Args:
        vocabulary: tokens of the model.
    """

    def __init__(self, vocabulary: int) -> None:
        self._places = torch.full((vocabulary,), -1)
        self._before = torch.zeros(0, dtype=torch.int64)
        self._entries: Entries | None = None

    @property
    def held(self) -> int:
        """Entries that are kept."""
        return 0 if self._entries is None else len(self._entries.positions)

    def entries(self, before: Tensor, tokens: Tensor, compute: Callable[[], Entries]) -> Entries:
        """Return tokens as entries.

        Args:
            before: int64 [position], the tokens before them.
            tokens: int64 [token].
            compute: computes their entries.
        """
        before, tokens = before.cpu(), tokens.cpu()
        if self._entries is not None and torch.equal(before, self._before):
            places = self._places[tokens]
            if torch.equal(places, torch.arange(len(self._entries.positions))):
                return self._entries
            if bool((places >= 0).all()):
                return self._entries[places.to(self._entries.positions.device)]
        self._entries, self._before = compute(), before
        self._places.fill_(-1)
        self._places[tokens] = torch.arange(len(tokens))
        return self._entries


class _Lists:
    """A list of candidates and their log-probabilities for each position that is sought.

    Args:
        best: the prompt so far.
        streams: of the problem's probe.
        start: of the problem.
        unknown: the positions, ascending, each before the last judge.
        judges: visible positions behind the first of them, whose tokens are taken for right.
    """

    def __init__(
        self,
        best: Best,
        streams: Streams,
        start: Start,
        unknown: list[int],
        judges: list[int],
    ) -> None:
        self._best, self._streams, self.unknown = best, streams, unknown
        self._start = start
        self.judges = judges
        device = best.embedding.device
        # Behind the last judge nothing is compared; what precedes every hidden token is as it is.
        self._behind = torch.tensor(
            [p for p in range(unknown[0], judges[-1] + 1) if p not in set(unknown)], device=device
        )
        self._judged = torch.isin(self._behind, torch.tensor(judges, device=device))
        self._target = best.problem.target[0, judges].float()
        self._whiten = best.whitening(unknown, judges)
        self._tokens: dict[int, Tensor] = {}
        self._logits: dict[int, Tensor] = {}
        self._entry_bytes = self._certain(0, None, best.embedding.new_zeros(0)).nbytes
        self._first: Entries | None = None

    def room(self, places: Iterable[int] = ()) -> int:
        """Return how many candidates may be held at these positions, beside those of all others."""
        held = {place: len(one) for place, one in self._tokens.items()}
        held[self.unknown[0]] = max(held.get(self.unknown[0], 0), self._start.held)
        others = sum(count for place, count in held.items() if place not in places)
        return HELD // self._entry_bytes - others

    def reset(self, places: list[int], tokens: Tensor) -> None:
        """Let positions hold these candidates, as many as fit, all equally likely."""
        held = max(self._best.settings.shortlist, self.room(places) // len(places))
        for place in places:
            self._tokens[place] = tokens[:held]
            self._logits[place] = torch.zeros(len(self._tokens[place]), device=tokens.device)

    def unsure(self, tokens: int) -> list[int]:
        """Return the positions that are least certain, as many as may hold so many candidates."""
        peaks = {place: float(one.softmax(0).max()) for place, one in self._logits.items()}
        order = sorted(peaks, key=lambda place: peaks[place])
        count = max(1, sum(peak < _UNSURE for peak in peaks.values()))
        return order[: max(1, min(count, self.room(order[:count]) // tokens))]

    def anneal(self, *, whole: bool) -> None:
        """Descend in ever narrower lists until the prompt is certified or they rest.

        Args:
            whole: whether to narrow them to the solver's `shortlist`.
        """
        best = self._best
        self._first = self._before()
        last, rounds = best.settings.shortlist, best.settings.rounds
        still, before = 0, best.ids
        later = (*_LATER, (last, 1.0, rounds)) if whole else ()
        for width, shrunk, most in ((None, 1.0, 1), *_STAGES, *later):
            if width is not None:
                self._narrow(max(width, last))
            for _ in range(min(most, rounds)):
                rounds -= 1
                best.rounds += 1
                self._descend(self._computed(), shrunk)
                found = self._likeliest()
                best.keep(found)
                if best.certified or best.late():
                    return
                still, before = (still + 1 if torch.equal(found, before) else 1), found
                if still == _STILL:
                    break
            best.among(self._combined())
            if best.certified or best.late() or still == _STILL or not rounds:
                return

    def ranked(self, count: int) -> dict[int, Tensor]:
        """Return each position's candidates, the likeliest first, at most ``count``."""
        return {
            place: self._tokens[place][one.argsort(descending=True, stable=True)[:count]]
            for place, one in self._logits.items()
        }

    def _narrow(self, width: int) -> None:
        for place, logits in self._logits.items():
            kept = logits.topk(min(width, len(logits))).indices
            self._tokens[place], self._logits[place] = self._tokens[place][kept], logits[kept]

    def _computed(self) -> Entries:
        """Return all candidates as entries, position by position, behind what stands before."""
        best = self._best
        company = [] if self._first is None else [self._first]
        weights = [best.embedding.new_zeros(self.unknown[0])]
        found = list(company)
        for place in range(self.unknown[0], self.unknown[-1] + 1):
            before = joined(company) if company else None
            if place not in self._logits:
                company.append(self._certain(place, before, torch.cat(weights)))
                weights.append(weights[0].new_zeros(1))
                continue
            tokens, logs = self._tokens[place], self._logits[place].log_softmax(0)
            compute = partial(self._candidates, tokens, place, before, torch.cat(weights))
            if place == self.unknown[0]:
                entries = self._start.entries(best.ids[:place], tokens, compute)
            else:
                entries = compute()
            found.append(entries)
            # Shuffled, so that among equally likely ones the first have no preference.
            order = torch.randperm(len(logs), generator=best.random).to(logs.device)
            likely = order[logs[order].topk(min(COMPANY, len(logs))).indices]
            company.append(entries[likely])
            weights.append(logs[likely].log_softmax(0).to(weights[0]))
        return joined(found)

    def _descend(self, entries: Entries, shrunk: float) -> None:
        """Take steps of Adam on the log-probabilities."""
        best = self._best
        known = best.embedding.new_zeros(self.unknown[0])
        embedded = best.embedding[best.ids[self._behind]]
        free = [(shrunk * self._logits[p]).requires_grad_(True) for p in self.unknown]
        optimizer = torch.optim.Adam(free, lr=_RATE)
        for _ in range(best.settings.steps):
            optimizer.zero_grad()
            logs = torch.cat([known, *(one.log_softmax(0) for one in free)])
            found = self._streams.activations(embedded, self._behind, entries, logs.to(known))
            loss = self._loss(found)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            best.evaluations += 1
            if best.late():
                break
        for place, logits in zip(self.unknown, free, strict=True):
            self._logits[place] = logits.detach()

    def _loss(self, found: Tensor) -> Tensor:
        """Return the mean square of what is left of the target, in units of its spread."""
        left = found[self._judged].float() - self._target
        loss: Tensor = (left.flatten() @ self._whiten).square().mean()
        return loss

    def _likeliest(self) -> Tensor:
        """Return the prompt [position] of each position's likeliest candidate."""
        ids = self._best.ids.clone()
        for place, logits in self._logits.items():
            ids[place] = self._tokens[place][logits.argmax()]
        return ids

    def _combined(self) -> Tensor:
        """Return the likeliest prompts [prompt, position] that the candidates make up."""
        likely = {}
        for place, logits in self._logits.items():
            top = logits.double().log_softmax(0).topk(min(COMPANY, len(logits)))
            likely[place] = Detected(self._tokens[place][top.indices], top.values)
        return combinations(self._best.ids, likely, _COMBINED)

    def _candidates(
        self, tokens: Tensor, place: int, before: Entries | None, weights: Tensor
    ) -> Entries:
        parts = self._best.parts(tokens)
        return joined([self._streams.entries(part, place, before, weights) for part in parts])

    def _certain(self, place: int, before: Entries | None, weights: Tensor) -> Entries:
        own = self._best.embedding[self._best.ids[place, None]]
        return self._streams.entries(own, place, before, weights)

    def _before(self) -> Entries | None:
        """Return what stands before the first hidden position."""
        found: Entries | None = None
        for place in range(self.unknown[0]):
            weights = self._best.embedding.new_zeros(place)
            one = self._certain(place, found, weights)
            found = one if found is None else joined([found, one])
        return found
