"""Detection: how likely each token is at a position while other positions are unknown too.

A position's tokens are distinguished by their *response*, what they change of the visible
activations. The target holds the responses of all unknown tokens at once, so one of them cannot
simply be compared with it: the others are a nuisance. Its mean and covariance are measured, by
drawing random tokens for all unknown positions and taking off what the one in question explains;
with them a token is judged by generalised least squares, which gives no weight to directions in
which the others may have moved the activations anyway. So does the linear detector of one user's
symbol among many (S. Verdu, Multiuser Detection, 1998, chapter 6). Responses add up only roughly
(attention shares one unit of weight, the MLP is not linear); what they miss is in the measured
nuisance. The fewer unknown tokens the compared activations depend on, the less there is of it: in a
causal model the first visible position behind a hidden one depends on nothing to its right.

What has been learned of one position narrows the nuisance of the others: their tokens are drawn
anew, now as likely as they were found to be, and everything is judged again (as soft decisions go
round in turbo multiuser detection: X. Wang and H. V. Poor, IEEE Trans. Communications 47, 1999).
A first judgement is sure of many wrong tokens. So draws are tempered: at first they are spread over
hundreds of tokens, then over fewer from round to round, as a temperature is lowered in annealing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.substitution import Substitution
from tokinfo.study.solvers import COMPONENTS

_SAMPLES = 1024
"""Random prompts from which the nuisance is measured."""
_ROWS = 1024
"""Tokens whose whole activations are held at once, which bounds the memory."""
_SPREAD = 256
"""Tokens that the second draw is spread over at least (perplexity); the last over one."""
_FRESH = 0.1
"""Share of uniform draws in every round, so that no token is ruled out for good."""
_SURE = 0.99
"""Probability from which a position's best token is taken for certain."""
_RIDGE = 0.02
"""Share of the identity in the nuisance's correlation matrix: fewer samples than directions."""


@dataclass(frozen=True)
class Detected:
    """The likeliest tokens of one position, best first.

    Attributes:
        tokens: int64 [k].
        score: float64 [k] logarithm of the probability under a gaussian nuisance; comparable
            between positions.
    """

    tokens: Tensor
    score: Tensor

    @property
    def sure(self) -> bool:
        """Whether the best token is next to certain."""
        return bool(self.score[0] >= math.log(_SURE))


def combinations(ids: Tensor, detected: dict[int, Detected], count: int) -> Tensor:
    """Return the likeliest prompts [prompt, position] that the detected tokens make up.

    Scores add up over positions, so the ``count`` best are found exactly by keeping as many
    after each position.
    """
    score = torch.zeros(1, dtype=torch.float64)
    prompts = ids[None]
    for position, one in detected.items():
        every = (score[:, None] + one.score.cpu()).flatten()
        best = every.topk(min(count, len(every)))
        row, token = best.indices // len(one.score), best.indices % len(one.score)
        prompts = prompts[row.to(prompts.device)].clone()
        prompts[:, position] = one.tokens[token.to(one.tokens.device)]
        score = best.values
    return prompts


def enough(problem: Problem) -> int:
    """Return how many visible positions hold about as many components as are compared."""
    width = problem.target.shape[-1]
    return max(1, (2 * COMPONENTS + width) // (2 * width))


def nearest(problem: Problem, position: int, count: int | None) -> Tensor:
    """Return the nearest visible positions [k] that a token reaches, ascending (None: all visible).

    Where it reaches none, they are any: nothing there distinguishes its tokens.
    """
    length = int(problem.layout.seen[0])
    visible = problem.layout.visible[0, :length].nonzero()[:, 0]
    if count is None:
        return visible
    if problem.probe.causal and bool((visible >= position).any()):
        visible = visible[visible >= position]
    near = (visible - position).abs().argsort(stable=True)[:count]
    return visible[near].sort().values


class Responses:
    """What tokens at single positions change of one prompt's visible activations.

    They are computed once a position, however often its tokens are judged.

    Attributes:
        judges: the visible positions that a position's tokens are judged by, ascending.

    Args:
        problem: a problem of a single row.
        ids: int64 [position], the prompt that responses are measured from; its tokens at
            unknown positions are stand-ins.
        candidates: the tokens tried at each position, int64 [candidate], without repeats.
        near: how many visible positions a token is judged by, the nearest that it can reach (the
            token's position too, where it is visible). None: all, those before it too, at which
            the other unknown tokens act.
        batcher: finds the batch size.
        generator: draws components and random prompts.
    """

    def __init__(
        self,
        problem: Problem,
        ids: Tensor,
        candidates: Mapping[int, Tensor],
        near: int | None,
        batcher: Batcher,
        generator: torch.Generator,
    ) -> None:
        self.problem, self.ids, self.candidates = problem, ids, candidates
        self.batcher, self.generator = batcher, generator
        self.evaluations = 0
        self._length = int(problem.layout.seen[0])
        self._baseline = self._activations(ids[None, : self._length])[0]
        self.judges = {position: nearest(problem, position, near) for position in candidates}
        self._chosen = {
            position: _drawn(len(judges) * self._baseline.shape[-1], generator).to(ids.device)
            for position, judges in self.judges.items()
        }
        self._responses: dict[int, Tensor] = {}

    def detect(self, unknown: Sequence[int], count: int, rounds: int = 1) -> dict[int, Detected]:
        """Return the ``count`` likeliest tokens of each position of which none is known.

        Every position is judged up to ``rounds`` times, the nuisance being drawn from what the
        last time said of the others; fewer, where two rounds are sure of the same tokens.
        """
        scores: dict[int, Tensor] = {}
        for spread in _spreads(rounds if len(unknown) > 1 else 1):
            drawn = {p: self._draw(p, scores.get(p), spread) for p in unknown}
            together = self._together(drawn) if len(unknown) > 1 else {}
            before, scores = scores, {}
            for position in unknown:
                left = self._left(position)
                if together:
                    nuisance = together[position] - self._response(position)[drawn[position]]
                    squared = _mahalanobis(left, nuisance)
                else:
                    squared = left.square().sum(1)
                scores[position] = _scores(squared, left.shape[1])
            if before and all(_settled(before[p], scores[p]) for p in unknown):
                break
        found = {}
        for position, score in scores.items():
            best = score.topk(min(count, len(score)))
            found[position] = Detected(self.candidates[position][best.indices], best.values)
        return found

    def explain(self, position: int, count: int) -> Tensor:
        """Return the prompts [count, position] whose token at one position fits the target best.

        The stand-ins elsewhere are taken for right. Responses are all that it needs.
        """
        left = self._left(position).square().sum(1)
        best = left.topk(min(count, len(left)), largest=False).indices
        prompts = self.ids.repeat(len(best), 1)
        prompts[:, position] = self.candidates[position][best]
        return prompts

    def _left(self, position: int) -> Tensor:
        """Return what each token leaves of the target unexplained [candidate, component]."""
        target = self.problem.target[:1, : self._length]
        return self._components(target, position) - self._response(position)

    def _draw(self, position: int, score: Tensor | None, spread: float) -> Tensor:
        """Return the indices [sample] of random tokens among a position's candidates."""
        count, device = len(self.candidates[position]), self.ids.device
        uniform = torch.randint(count, (_SAMPLES,), generator=self.generator)
        if score is None:
            return uniform.to(device)
        likely = torch.multinomial(
            _tempered(score.cpu(), spread), _SAMPLES, replacement=True, generator=self.generator
        )
        fresh = torch.rand(_SAMPLES, generator=self.generator) < _FRESH
        return torch.where(fresh, uniform, likely).to(device)

    def _response(self, position: int) -> Tensor:
        """Return the change [candidate, component] by each token at a position."""
        if position not in self._responses:
            context = self.problem.decoder.embedding[self.ids]
            end = self._end([position])
            moved = Substitution(self.problem, context, position, self.batcher, upto=end)
            parts = []
            for tokens in torch.split(self.candidates[position], _ROWS):
                found = moved.activations(tokens)
                before = self._baseline[: moved.length - found.shape[1]].expand(len(tokens), -1, -1)
                parts.append(self._components(torch.cat([before, found], dim=1), position))
            self._responses[position] = torch.cat(parts)
            self.evaluations += len(self.candidates[position])
        return self._responses[position]

    def _together(self, drawn: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the change [sample, component] by tokens drawn at all unknown positions at once.

        For each of them, in the components that it is judged by.
        """
        prompts = self.ids[None, : self._end(drawn)].repeat(_SAMPLES, 1)
        for position, chosen in drawn.items():
            prompts[:, position] = self.candidates[position][chosen]
        self.evaluations += len(prompts)

        def moved(part: Tensor) -> Tensor:
            found = self._activations(part)
            return torch.cat([self._components(found, position) for position in drawn], dim=1)

        sizes = [len(self._chosen[position]) for position in drawn]
        parts = torch.split(self.batcher.map(moved, prompts), sizes, dim=1)
        return dict(zip(drawn, parts, strict=True))

    def _end(self, positions: Iterable[int]) -> int:
        """Return where the prompt may end for these positions' tokens to be judged."""
        if not self.problem.probe.causal:
            return self._length
        return max(max(p, int(self.judges[p][-1])) for p in positions) + 1

    def _activations(self, prompts: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self.problem.layout.seen.clamp_max(prompts.shape[1]).expand(len(prompts))
            found: Tensor = self.problem.probe(self.problem.decoder.embedding[prompts], seen)
            return found

    def _components(self, activations: Tensor, position: int) -> Tensor:
        """Return the change [row, component] of the activations that a position is judged by."""
        judges = self.judges[position]
        change = (activations[:, judges] - self._baseline[judges]).to(torch.float32)
        return change.flatten(1)[:, self._chosen[position]]


def _drawn(size: int, generator: torch.Generator) -> Tensor:
    """Return which of ``size`` components are compared, in ascending order."""
    return torch.randperm(size, generator=generator)[:COMPONENTS].sort().values


def _mahalanobis(away: Tensor, nuisance: Tensor) -> Tensor:
    """Return the squared distance [candidate] of what is left over under a nuisance [sample, _]."""
    mean = nuisance.mean(0)
    scale = nuisance.std(0)
    scale = scale.clamp_min(1e-6 * float(scale.max()) or 1.0)
    drawn = (nuisance - mean) / scale
    correlation = (1 - _RIDGE) * (drawn.T @ drawn) / len(drawn)
    correlation.diagonal().add_(_RIDGE)
    lower = torch.linalg.cholesky(correlation)
    left = (away - mean) / scale
    squared: Tensor = torch.linalg.solve_triangular(lower, left.T, upper=False).square().sum(0)
    return squared


def _scores(squared: Tensor, dimensions: int) -> Tensor:
    """Return log-probabilities [candidate] of squared distances.

    A gaussian nuisance leaves the right token about as many squared units as dimensions. Where
    even the nearest is further off, the nuisance is larger than measured, and the scores are
    tempered by as much.
    """
    squared = squared.double()
    size = (squared.min() / dimensions).clamp_min(1.0)
    return torch.log_softmax(-squared / (2 * size), dim=0)


def _spreads(rounds: int) -> list[float]:
    """Return how many tokens each round's draws are spread over; the first are uniform."""
    last = max(rounds - 2, 1)
    return [float("inf")] + [_SPREAD ** (1 - number / last) for number in range(rounds - 1)]


def _settled(before: Tensor, after: Tensor) -> bool:
    """Whether two rounds in a row are sure of the same token."""
    token = after.argmax()
    return bool(torch.minimum(before[token], after[token]) >= math.log(_SURE))


def _tempered(score: Tensor, spread: float) -> Tensor:
    """Return probabilities [candidate] with a perplexity of ``spread``, or more.

    Log-probabilities are divided by the smallest temperature from 1 on that does it.
    """
    cold, hot = 1.0, 1.0
    while _perplexity(score / hot) < min(spread, 0.99 * len(score)):
        hot *= 2
    for _ in range(20):
        middle = (cold + hot) / 2
        if _perplexity(score / middle) < spread:
            cold = middle
        else:
            hot = middle
    return (score / hot).softmax(0)


def _perplexity(score: Tensor) -> float:
    return float(torch.special.entr(score.softmax(0)).sum().exp())
