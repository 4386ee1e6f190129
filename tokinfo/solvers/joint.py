"""Descent for a start, then search over tokens until the activations match.

Behind attention hidden tokens are sought by mixtures too, as `tokinfo.solvers.mixture` does. Behind
the first block (`tokinfo.solvers.convex`) that comes before all moves, which go on from the best
prompt where it is not certified. Behind later ones (`tokinfo.solvers.annealing`) it comes before
detection, where more than one token is hidden: one by itself detection finds in less time.

Hidden positions are discrete tokens here from the first move on: a free embedding there
absorbs any residual, which is why descent alone does not find them. Moves:

1. swap: one position, candidates from the descent's lists and from the gradient; a thousand
   evaluations, and all that a mixer needs where descent has the visible tokens;
2. extend: visible tokens from left to right, each judged by the activations at its position, while
   all before it match (as `tokinfo.solvers.sequential` does where everything is visible);
3. detect: every token judged by what it changes of the visible activations, while what the
   other unknown positions may add is measured and left out of the comparison
   (`tokinfo.solvers.detect`); first the hidden positions, behind the visible tokens as found so
   far, then the visible ones too, then once more around the tokens found so. The nearest visible
   positions are the first to judge by: they depend on the fewest tokens and cost least, and
   wrong tokens behind them do no harm. After them, all are. The likeliest combinations are
   tried, and the best of them is extended, and the next detection is made around it;
4. another start of the descent.

Each move is made where those before it have come to rest above the noise floor, and the search
ends as soon as the prompt is certified: a match to within the floor proves itself, no exhaustive
search is needed. That is why detection may begin with a vocabulary's leading tokens: byte-pair
tokenizers number them in the order learned, frequent ones first. The whole vocabulary is last, for
it costs more than to judge the leading tokens by all that is visible. It is tried around what was
found among these: where a single token is rare, the others are right by then.
Every token is judged by the forward model alone, and known ones are in their places from the start
to the end. Sweeps of single positions and of pairs of them
were tried and found nothing that these moves had missed (docs/evidence/joint_sweeps.csv).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tokinfo.probe.metrics import distance
from tokinfo.solvers import adam
from tokinfo.solvers.apart import Search, through_attention
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.best import Best
from tokinfo.solvers.decoding import lead
from tokinfo.solvers.detect import Responses, combinations, enough, nearest
from tokinfo.solvers.problem import Problem, Result
from tokinfo.solvers.substitution import Substitution
from tokinfo.solvers.sweep import around
from tokinfo.solvers.watch import Stopped
from tokinfo.study.solvers import JointSolver, MixtureSolver

_PART = 2048
"""Candidates of one position between two looks at whether one of them fits."""


def solve(problem: Problem, settings: JointSolver) -> Result:
    """Search each prompt of the problem; see the module's docstring for the moves.

    Raises:
        SolverError: the descent that gives the start failed.
    """
    mixed = through_attention(problem) if settings.mixtures else None
    batcher = Batcher(watch=problem.watch)
    stopped: list[str | None] = [None] * len(problem.target)
    best: dict[int, _Search] = {}
    spent = torch.zeros(len(problem.target), dtype=torch.int64)
    first: Result | None = None
    left = list(range(len(problem.target)))
    for number in range(settings.restarts):
        part = replace(problem.rows(torch.tensor(left)), seed=_seed(problem, number))
        start = adam.solve(part, settings.descent)
        first = first or start
        for place, row in enumerate(left):
            one = part.rows(torch.tensor([place]))
            search = _Search(one, settings, batcher, number, start.top_ids[place], mixed)
            with suppress(Stopped):
                search.run()
            stopped[row] = None if search.certified else problem.watch.stopped
            spent[row] += search.evaluations + start.evaluations[place]
            if row not in best or search.loss < best[row].loss:
                best[row] = search
        left = [row for row in left if not best[row].certified]
        if not left:
            break
        if problem.watch.stopped and number + 1 < settings.restarts:
            for row in left:
                stopped[row] = problem.watch.stopped
            break
    assert first is not None
    searches = [best[row] for row in range(len(best))]
    ids = torch.stack([search.ids for search in searches])
    proposed = torch.stack([search.lists for search in searches])
    # The found token leads; the descent's other candidates follow.
    return Result(
        top_ids=torch.cat([ids[..., None], proposed[..., :4]], dim=-1),
        loss=torch.tensor([search.loss for search in searches]),
        first_loss=first.first_loss,
        steps=first.steps,
        restart=torch.tensor([search.start for search in searches]),
        restarts=settings.restarts,
        evaluations=spent,
        path=[search.path for search in searches],
        stopped=stopped,
    )


def judge(problem: Problem, settings: JointSolver, result: Result, truth: Tensor) -> Result:
    """Sweep the hidden positions around the found prompts, where the settings want it.

    Args:
        problem: what was solved.
        settings: the solver's.
        result: what was found.
        truth: int64 [row, position], the true tokens.
    """
    return around(problem, result, truth) if settings.sweep_found else result


def _seed(problem: Problem, start: int) -> int:
    """Return the seed of a start: of its descent, and of what detection draws."""
    return problem.seed + 7919 * start


@dataclass
class _Search:
    """The search for one prompt: the best tokens so far, and what they have cost."""

    problem: Problem  # of a single row
    settings: JointSolver
    batcher: Batcher
    start: int  # which start this is, from 0
    lists: Tensor  # [position, k] tokens the descent proposes, best first
    mixed: Search | None = None  # where mixtures of tokens are sought
    ids: Tensor = field(init=False)  # [position]
    loss: float = field(init=False)
    path: str = field(init=False, default="moves")
    evaluations: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        layout = self.problem.layout
        self.length = int(layout.seen[0])
        self.drawn = torch.Generator().manual_seed(self.problem.seed)
        self.ids = layout.padded(self.lists[None, :, 0])[0]
        visible = layout.visible[0, : self.length].tolist()
        given = self.problem.given[0, : self.length].tolist()
        self.visible = [p for p in range(self.length) if visible[p]]
        # A known token is never searched for. Its activations, where visible, judge the others.
        self.sought = [p for p in self.visible if not given[p]]
        self.hidden = [p for p in range(self.length) if not visible[p] and not given[p]]
        # A hidden position that no visible one can see changes nothing that is compared.
        self.reached = [
            p for p in self.hidden if not self.problem.probe.causal or p < self.visible[-1]
        ]
        self.evaluations += 1
        self.loss = float(self.problem.token_loss(self.ids[None])[0])

    @property
    def certified(self) -> bool:
        """Whether the tokens found explain the target to within the noise floor."""
        return self.problem.certified(self.ids, self.loss)

    def run(self) -> None:
        """Make moves until the prompt is certified or none is left."""
        first = self.mixed is not None and self.mixed.path == "convex"
        if first and self._mixed():
            return
        if self._swapped() or self._extended(self.ids):
            return
        if not first and len(self.reached) > 1 and self._mixed():
            return
        every = self.problem.decoder.ids
        leading = every[: self.settings.leading or len(every)]
        few = enough(self.problem)
        nears = (few, None) if few < len(self.visible) else (None,)
        around: dict[int | None, Tensor] = {}
        # All that is visible costs less with the leading tokens than the nearest with all tokens.
        for vocabulary in (leading, every) if len(leading) < len(every) else (every,):
            for near in nears:
                ids = around[near] if near in around else self._stand_ins(leading)
                around[near] = self._detect(ids, vocabulary, near)
                if self.certified:
                    return

    # --- moves ------------------------------------------------------------------------------

    def _mixed(self) -> bool:
        """Search by mixtures of tokens, where that applies; return if certified."""
        if self.mixed is None:
            return False
        settings = MixtureSolver(leading=self.settings.leading)
        # Visible tokens are read among what descent proposed and what the moves before found.
        best = Best(self.problem, settings, self.batcher, lead(self.lists, self.ids))
        try:
            self.mixed.run(best)
        finally:
            self.evaluations += best.evaluations
            if best.loss < self.loss:
                self._keep(best.loss, best.ids)
                self.path = self.mixed.path
        return self.certified

    def _swapped(self) -> bool:
        """Swap single tokens for as long as that brings the prompt nearer; return if certified."""
        for _ in range(self.settings.rounds):
            before = self.loss
            for position in (*self.reached, *self.sought):
                proposed = torch.cat([self.lists[position], self._by_gradient(position)])
                context = self.problem.decoder.embedding[self.ids]
                self._take(position, proposed, self._substitute(context, position, proposed))
                if self.certified:
                    return True
            if self.loss >= before * (1 - 1e-6):
                break
        return self.certified

    def _stand_ins(self, vocabulary: Tensor) -> Tensor:
        """Return the prompt [position] with random tokens where hidden ones reach.

        What the search holds there when it comes to rest is wrong somewhere: random tokens are as
        good.
        """
        ids = self.ids.clone()
        drawn = torch.randint(len(vocabulary), (len(self.reached),), generator=self.drawn)
        ids[self.reached] = vocabulary[drawn]
        return ids

    def _detect(self, ids: Tensor, vocabulary: Tensor, near: int | None) -> Tensor:
        """Detect hidden tokens, then visible ones too, then again around the best prompt so far.

        Args:
            ids: int64 [position], the prompt that the first detection is made around.
            vocabulary: int64 [candidate], the tokens tried.
            near: how many visible positions they are judged by; these are detected too.

        Returns:
            The best prompt [position], judged up to the last position that hidden tokens were
            judged by: what lies behind may be wrong.
        """
        judging = {int(p) for q in self.reached for p in nearest(self.problem, q, near)}
        every = (*self.reached, *(p for p in self.sought if p in judging or not judging))
        candidates = {position: self._candidates(position, vocabulary) for position in every}
        end = max(judging, default=self.length - 1) + 1
        for _ in range(self.settings.detections):
            # Kept for all proposals: a later one adds the responses of further positions alone.
            responses = Responses(self.problem, ids, candidates, near, self.batcher, self.drawn)
            nearest_yet, spent = math.inf, 0
            certain: dict[int, Tensor] = {}
            for prompts, sure in self._proposed(responses, every):
                certain |= sure
                self.evaluations += responses.evaluations - spent
                spent = responses.evaluations
                away, best = self._distances(prompts, end).min(0)
                before, prompt = self.loss, prompts[best]
                if self._extended(prompt) or (self.loss < before and self._swapped()):
                    return self.ids
                if float(away) < nearest_yet:
                    ids, nearest_yet = prompt, float(away)
            # Behind wrong hidden tokens a wrong visible one may be the nearest: what detection is
            # certain of is kept.
            ids = ids.clone()
            for position, token in certain.items():
                ids[position] = token
        return ids

    def _proposed(
        self, responses: Responses, every: Sequence[int]
    ) -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
        """Yield prompts [prompt, position] of the likeliest tokens, the cheapest to find first.

        Single hidden tokens that explain the target behind the stand-ins as they are: where all
        others are right they are enough, and one position's responses are all that it takes.
        Then combinations of the hidden positions' tokens, and of the visible ones' too. With them
        come the visible tokens, by position, that are certain.
        """
        for position in reversed(self.reached):
            yield responses.explain(position, self.settings.screen), {}
        for unknown in filter(None, dict.fromkeys((tuple(self.reached), tuple(every)))):
            found = responses.detect(unknown, self.settings.screen, self.settings.detection_rounds)
            visible = {p: one for p, one in found.items() if p in self.visible}
            certain = {p: one.tokens[0] for p, one in visible.items() if one.sure}
            yield combinations(responses.ids, found, self.settings.combinations), certain

    def _extended(self, ids: Tensor) -> bool:
        """Mend a prompt's visible tokens from left to right; return if that certifies it.

        In a causal model a visible position depends on nothing to its right. Where all that is
        visible before it matches the target, and no hidden position lies between, the activations
        there identify its token (as in `tokinfo.solvers.sequential`).
        """
        ids, before = ids.clone(), -1
        for position in self.visible if self.problem.probe.causal else ():
            if self._fitting(ids, position, ids[position, None]) is None:
                if position not in self.sought:
                    break
                if any(before < hidden < position for hidden in self.hidden):
                    break
                likely = torch.cat([self.lists[position], self.problem.decoder.ids])
                parts = (self._fitting(ids, position, part) for part in torch.split(likely, _PART))
                token = next((found for found in parts if found is not None), None)
                if token is None:
                    break
                ids[position] = token
            before = position
        self._keep(float(self._distances(ids[None])[0]), ids)
        return self.certified

    def _candidates(self, position: int, vocabulary: Tensor) -> Tensor:
        """Return the tokens tried at a position; at a visible one descent may know better."""
        if position in self.hidden:
            return vocabulary
        proposed = self.lists[position]
        return torch.cat([vocabulary, proposed[~torch.isin(proposed, vocabulary)]])

    # --- what moves are made of -------------------------------------------------------------

    def _take(self, position: int, tokens: Tensor, losses: Tensor) -> None:
        ids = self.ids.clone()
        ids[position] = tokens[int(losses.argmin())]
        self._keep(float(losses.min()), ids)

    def _keep(self, loss: float, ids: Tensor) -> None:
        if loss < self.loss:
            self.loss, self.ids, self.path = loss, ids, "moves"
            self.problem.watch.note(loss / self.problem.floor)

    def _distances(self, prompts: Tensor, end: int | None = None) -> Tensor:
        """Return the distances [prompt] of prompts [prompt, position].

        Those of a causal model up to a position, where ``end`` is given: others need the rest.
        """
        problem = self.problem
        end = end if end and problem.probe.causal else prompts.shape[1]
        seen = problem.layout.seen.clamp_max(end)
        target, visible = problem.target[:, :end], problem.layout.visible[:, :end]

        def away(ids: Tensor) -> Tensor:
            with torch.no_grad():
                found = problem.probe(problem.decoder.embedding[ids], seen.expand(len(ids)))
            return distance(found, target, visible, problem.metric, problem.weights)

        self.evaluations += len(prompts)
        return self.batcher.map(away, prompts[:, :end])

    def _substitute(self, context: Tensor, position: int, tokens: Tensor) -> Tensor:
        self.evaluations += len(tokens)
        return Substitution(self.problem, context, position, self.batcher).residuals(tokens)

    def _fitting(self, ids: Tensor, position: int, tokens: Tensor) -> Tensor | None:
        """Return which token makes all that is visible up to its position match, if any does."""
        self.evaluations += len(tokens)
        context = self.problem.decoder.embedding[ids]
        prompts = Substitution(self.problem, context, position, self.batcher, upto=position + 1)
        away = prompts.residuals(tokens)
        best = int(away.argmin())
        return tokens[best] if float(away[best]) <= float(self.problem.slack[0]) else None

    def _by_gradient(self, position: int) -> Tensor:
        """Return the tokens whose embeddings lie best along the loss's descent direction.

        First-order estimate of the loss after a swap, as in GCG (arXiv 2307.15043, section 2.2).
        """
        embedding = self.problem.decoder.embedding
        free = embedding[self.ids[None]].clone().requires_grad_(True)
        self.evaluations += 1
        (gradient,) = torch.autograd.grad(self.problem.loss(free).sum(), free)
        slope = embedding[self.problem.decoder.ids] @ gradient[0, position]
        count = min(self.settings.gradient_candidates, len(slope))
        return self.problem.decoder.ids[slope.topk(count, largest=False).indices]
