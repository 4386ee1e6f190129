"""Nothing known: descent for a start, then search over tokens until the activations match.

Hidden positions are discrete tokens here from the first move on: a free embedding there
absorbs any residual, which is why descent alone does not find them. Moves:

1. swap: one position, candidates from the descent's lists and from the gradient; a thousand
   evaluations, and all that a mixer needs where descent has the visible tokens;
2. detect: every token judged by what it changes of the visible activations, while what the
   other unknown positions may add is measured and left out of the comparison
   (`tokinfo.invert.detect`); first the hidden positions, behind the visible tokens as found so
   far, then all of them, then once more around the visible tokens found so; each time the
   likeliest combinations are tried;
3. the whole vocabulary, then another start of the descent.

Each move is made where those before it have come to rest above the noise floor, and the search
ends as soon as the prompt is certified: a match to within the floor proves itself, no exhaustive
search is needed. That is why detection may begin with a vocabulary's leading tokens: byte-pair
tokenizers number them in the order learned, frequent ones first. Every token is judged by the
forward model alone. Sweeps of single positions and of pairs of them were tried and found nothing
that these moves had missed (docs/evidence/joint_sweeps.csv).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tokinfo.batches import Batcher
from tokinfo.identify import Identification
from tokinfo.invert import adam
from tokinfo.invert.detect import Detected, Responses, combinations
from tokinfo.invert.problem import Problem, Result
from tokinfo.invert.sweep import sweep
from tokinfo.noise import alone
from tokinfo.objective import distance
from tokinfo.solvers import JointSolver
from tokinfo.substitute import Substitution


def solve(problem: Problem, settings: JointSolver) -> Result:
    """Search each prompt of the problem; see the module's docstring for the moves.

    Raises:
        SolverError: the descent that gives the start failed.
    """
    batcher = Batcher()
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
            search = _Search(one, settings, batcher, number, start.top_ids[place])
            search.run()
            spent[row] += search.evaluations + start.evaluations[place]
            if row not in best or search.loss < best[row].loss:
                best[row] = search
        left = [row for row in left if not best[row].certified]
        if not left:
            break
    assert first is not None
    searches = [best[row] for row in range(len(best))]
    identified: list[dict[int, Identification]] = []
    if settings.sweep_found:
        for row, search in enumerate(searches):
            own = [p for p in search.hidden if bool(search.problem.batch.scored[0, p])]
            found, _ = sweep(search.problem, search.ids, own, batcher)
            identified.append(found)
            spent[row] += len(own) * problem.decoder.size
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
        identified=identified if settings.sweep_found else None,
        around="found" if settings.sweep_found else None,
    )


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
    ids: Tensor = field(init=False)  # [position]
    loss: float = field(init=False)
    evaluations: int = field(init=False, default=0)
    vocabulary: Tensor = field(init=False)  # [candidate] tokens that detection tries

    def __post_init__(self) -> None:
        batch = self.problem.batch
        self.vocabulary = self.problem.decoder.ids
        self.length = int(batch.seen[0])
        self.drawn = torch.Generator().manual_seed(self.problem.seed)
        self.ids = self.lists[:, 0].clone()
        self.ids[self.length :] = batch.ids[0, self.length :]
        shown = batch.visible[0, : self.length].tolist()
        self.visible = [p for p in range(self.length) if shown[p]]
        self.hidden = [p for p in range(self.length) if not shown[p]]
        # Hidden positions that no visible one can see say nothing and cost as much as any.
        self.reached = [
            p for p in self.hidden if not self.problem.probe.causal or p < self.visible[-1]
        ]
        self.loss = float(self._distances(self.ids[None])[0])

    @property
    def certified(self) -> bool:
        """Whether the tokens found explain the target to within the noise floor.

        A batch may add as much noise again as the floor allows; a candidate that near is
        computed once more alone, as the target was.
        """
        floor = float(self.problem.floor[0])
        if self.loss > 2 * floor:
            return False
        problem = self.problem
        found = alone(problem.probe, problem.decoder.embedding, self.ids[None], problem.batch.seen)
        away = distance(
            found, problem.target, problem.batch.visible, problem.metric, problem.weights
        )
        return float(away[0]) <= floor

    def run(self) -> None:
        """Make moves until the prompt is certified or none helps.

        Any gain makes swaps worth another try.
        """
        every = self.problem.decoder.ids
        for count in sorted({min(self.settings.leading or len(every), len(every)), len(every)}):
            self.vocabulary = every[:count]
            for _ in range(self.settings.rounds):
                if self.certified:
                    return
                if self._gains(self._swap):
                    continue
                if not (self.settings.detections and self._gains(self._detect)):
                    break
                if count < len(every):
                    # Where the right token is not among these, more detections would bring the
                    # prompt a little nearer each, and never there.
                    break

    def _gains(self, move: Callable[[], None]) -> bool:
        """Make a move; return whether it brought the prompt nearer."""
        before = self.loss
        move()
        return self.loss < before * (1 - 1e-6)

    # --- moves ------------------------------------------------------------------------------

    def _detect(self) -> None:
        """Detect the hidden tokens behind random ones, then all tokens, and again around those.

        Responses are kept for as long as the prompt that they are measured from stays the same:
        the second detection adds those of visible positions alone.
        """
        every = (*self.reached, *self.visible)
        candidates = {position: self._candidates(position) for position in every}
        ids = self.ids.clone()
        for _ in range(self.settings.detections):
            ids = ids.clone()
            ids[self.reached] = self._random(len(self.reached))
            responses = Responses(self.problem, ids, candidates, self.batcher, self.drawn)
            if self.reached:
                self._detected(responses, self.reached)
                if self.certified:
                    return
            found = self._detected(responses, every)
            if self.certified:
                return
            for position in self.visible:
                ids[position] = found[position].tokens[0]

    def _detected(self, responses: Responses, unknown: Sequence[int]) -> dict[int, Detected]:
        """Return the likeliest tokens of unknown positions; try their combinations."""
        spent = responses.evaluations
        found = responses.detect(unknown, self.settings.screen, self.settings.detection_rounds)
        self.evaluations += responses.evaluations - spent
        self._keep_best(combinations(responses.ids, found, self.settings.combinations))
        return found

    def _candidates(self, position: int) -> Tensor:
        """Return the tokens tried at a position; at a visible one descent may know better."""
        if position in self.hidden:
            return self.vocabulary
        proposed = self.lists[position]
        return torch.cat([self.vocabulary, proposed[~torch.isin(proposed, self.vocabulary)]])

    def _random(self, count: int) -> Tensor:
        """Return random tokens [count] of the vocabulary tried, to stand in for unknown ones."""
        return self.vocabulary[torch.randint(len(self.vocabulary), (count,), generator=self.drawn)]

    def _swap(self) -> None:
        for position in (*self.reached, *self.visible):
            proposed = torch.cat([self.lists[position], self._by_gradient(position)])
            context = self.problem.decoder.embedding[self.ids]
            self._take(position, proposed, self._substitute(context, position, proposed))
            if self.certified:
                return

    # --- what moves are made of -------------------------------------------------------------

    def _take(self, position: int, tokens: Tensor, losses: Tensor) -> None:
        ids = self.ids.clone()
        ids[position] = tokens[int(losses.argmin())]
        self._keep(float(losses.min()), ids)

    def _keep(self, loss: float, ids: Tensor) -> None:
        if loss < self.loss:
            self.loss, self.ids = loss, ids

    def _keep_best(self, prompts: Tensor) -> None:
        losses = self._distances(prompts)
        best = int(losses.argmin())
        self._keep(float(losses[best]), prompts[best])

    def _distances(self, prompts: Tensor) -> Tensor:
        """Return the distances [prompt] of prompts [prompt, position]."""
        problem = self.problem

        def away(ids: Tensor) -> Tensor:
            with torch.no_grad():
                found = problem.probe(
                    problem.decoder.embedding[ids], problem.batch.seen.expand(len(ids))
                )
            return distance(
                found, problem.target, problem.batch.visible, problem.metric, problem.weights
            )

        self.evaluations += len(prompts)
        return self.batcher.map(away, prompts)

    def _substitute(self, context: Tensor, position: int, tokens: Tensor) -> Tensor:
        self.evaluations += len(tokens)
        return Substitution(self.problem, context, position, self.batcher).residuals(tokens)

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
