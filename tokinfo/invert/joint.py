"""Nothing known: descent for a start, then search over tokens until the activations match.

Hidden positions are discrete tokens here from the first move on: a free embedding there
absorbs any residual, which is why descent alone does not find them. Moves, from cheap to dear:

1. build: the hidden positions one after another by a beam over the whole vocabulary, the
   visible ones as the descent left them, those not yet built standing at the embedding's mean;
2. permute: the hidden tokens in every other order (early attention barely tells order apart);
3. swap: one position, candidates from the descent's lists and from the gradient;
4. sweep: one position, every token;
5. pair: two hidden positions at once, the best candidates of each;
6. another start of the descent.

A dearer move is made only where the cheaper ones have come to rest above the noise floor, and
the search ends as soon as the prompt is certified: a match to within the floor proves itself,
no exhaustive search is needed. Every token is judged by the forward model alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tokinfo.batches import Batcher
from tokinfo.identify import Identification
from tokinfo.invert import adam
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
    starts = [
        adam.solve(replace(problem, seed=problem.seed + 7919 * number), settings.descent)
        for number in range(settings.restarts)
    ]
    batcher = Batcher()
    ids, loss, evaluations, kept = [], [], [], []
    identified: list[dict[int, Identification]] = []
    for row in range(len(problem.target)):
        one = problem.rows(torch.tensor([row]))
        best: _Search | None = None
        best_start, spent = 0, 0
        for number, start in enumerate(starts):
            search = _Search(one, settings, batcher, start.top_ids[row])
            search.run()
            spent += search.evaluations + int(start.evaluations[row])
            if best is None or search.loss < best.loss:
                best, best_start = search, number
            if best.certified:
                break
        assert best is not None
        if settings.sweep_found:
            own = [p for p in best.hidden if bool(one.batch.scored[0, p])]
            found, _ = sweep(one, best.ids, own, batcher)
            identified.append(found)
            spent += len(own) * problem.decoder.size
        ids.append(best.ids)
        loss.append(best.loss)
        evaluations.append(spent)
        kept.append(best_start)
    every = torch.stack([start.top_ids for start in starts])
    top = every[torch.tensor(kept), torch.arange(len(ids))]
    # The found token leads; the descent's other candidates follow.
    return Result(
        top_ids=torch.cat([torch.stack(ids)[..., None], top[..., :4]], dim=-1),
        loss=torch.tensor(loss),
        first_loss=starts[0].first_loss,
        steps=starts[0].steps,
        restart=torch.tensor(kept),
        restarts=settings.restarts,
        evaluations=torch.tensor(evaluations),
        identified=identified if settings.sweep_found else None,
        around="found" if settings.sweep_found else None,
    )


@dataclass
class _Search:
    """The search for one prompt: the best tokens so far, and what they have cost."""

    problem: Problem  # of a single row
    settings: JointSolver
    batcher: Batcher
    lists: Tensor  # [position, k] tokens the descent proposes, best first
    ids: Tensor = field(init=False)  # [position]
    loss: float = field(init=False)
    evaluations: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        batch = self.problem.batch
        self.length = int(batch.seen[0])
        self.ids = self.lists[:, 0].clone()
        self.ids[self.length :] = batch.ids[0, self.length :]
        shown = batch.visible[0, : self.length].tolist()
        self.visible = [p for p in range(self.length) if shown[p]]
        self.hidden = [p for p in range(self.length) if not shown[p]]
        # Hidden positions that no visible one can see say nothing and cost as much as any.
        self.reached = [
            p for p in self.hidden if not self.problem.probe.causal or p < self.visible[-1]
        ]
        self.loss = self._score(self.ids)

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
        """Make moves until the prompt is certified or none helps."""
        # The descent's visible tokens are often right, and a wrong hidden one can make a wrong
        # visible one look better: hidden positions first, the visible ones when those rest.
        moves: list[Callable[[], None]] = []
        if self.reached:
            moves += [self._build, self._permute]
        moves += [self._swap, self._sweep]
        if len(self.reached) > 1 and self.settings.pair > 1:
            moves.append(self._pairs)
        level = 0
        for _ in range(self.settings.rounds):
            if level == len(moves) or self.certified:
                return
            before = self.loss
            moves[level]()
            # Any gain makes the cheaper moves worth another try, the first one excepted: it
            # depends on the visible tokens alone, and starts over from them.
            gained = self.loss < before * (1 - 1e-6)
            level = min(level, 1 if self.reached else 0) if gained and level else level + 1

    # --- moves ------------------------------------------------------------------------------

    def _build(self) -> None:
        embedding = self.problem.decoder.embedding
        context = embedding[self.ids].clone()
        context[self.hidden] = embedding.mean(0)
        beam: list[tuple[float, tuple[int, ...]]] = [(self.loss, ())]
        for done, position in enumerate(self.reached):
            grown: list[tuple[float, tuple[int, ...]]] = []
            for _, tokens in beam:
                context[self.reached[:done]] = embedding[list(tokens)]
                count = self.settings.screen if done + 1 == len(self.reached) else None
                chosen, losses = self._best(context, position, count)
                width = min(self.settings.beam, len(losses))
                order = losses.topk(width, largest=False)
                grown += [
                    (loss, (*tokens, int(chosen[index])))
                    for loss, index in zip(
                        order.values.tolist(), order.indices.tolist(), strict=True
                    )
                ]
            beam = sorted(grown)[: self.settings.beam]
        for _, tokens in beam:
            ids = self.ids.clone()
            ids[self.reached] = torch.tensor(tokens, device=ids.device)
            self._keep(self._score(ids), ids)
        self._settle([tokens for _, tokens in beam])

    def _settle(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Sweep the hidden positions of each built prompt until it rests; keep the best."""
        for tokens in prompts:
            ids = self.ids.clone()
            ids[self.reached] = torch.tensor(tokens, device=ids.device)
            loss = float("inf")
            while len(self.reached) > 1:
                before = loss
                for position in self.reached:
                    chosen, losses = self._best(
                        self.problem.decoder.embedding[ids], position, self.settings.screen
                    )
                    ids[position] = chosen[int(losses.argmin())]
                    loss = float(losses.min())
                self._keep(loss, ids.clone())
                if self.certified or loss >= before * (1 - 1e-6):
                    break
            if self.certified:
                return

    def _permute(self) -> None:
        if not 1 < len(self.reached) <= 5:
            return
        tokens = self.ids[self.reached].tolist()
        for order in sorted(set(itertools.permutations(tokens))):
            ids = self.ids.clone()
            ids[self.reached] = torch.tensor(order, device=ids.device)
            self._keep(self._score(ids), ids)

    def _swap(self) -> None:
        for position in (*self.reached, *self.visible):
            proposed = torch.cat([self.lists[position], self._by_gradient(position)])
            context = self.problem.decoder.embedding[self.ids]
            self._take(position, proposed, self._substitute(context, position, proposed))
            if self.certified:
                return

    def _sweep(self) -> None:
        for position in (*self.visible, *self.reached):
            context = self.problem.decoder.embedding[self.ids]
            self._take(position, *self._best(context, position, self.settings.screen))
            if self.certified:
                return

    def _pairs(self) -> None:
        context = self.problem.decoder.embedding[self.ids]
        top = {p: self._best(context, p, self.settings.pair)[0] for p in self.reached}
        for first, second in itertools.combinations(self.reached, 2):
            for token in top[first].tolist():
                ids = self.ids.clone()
                ids[first] = token
                context = self.problem.decoder.embedding[ids]
                losses = self._substitute(context, second, top[second])
                ids[second] = top[second][int(losses.argmin())]
                self._keep(float(losses.min()), ids)
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

    def _score(self, ids: Tensor) -> float:
        self.evaluations += 1
        return float(self.problem.token_loss(ids[None])[0])

    def _substitute(
        self, context: Tensor, position: int, tokens: Tensor, upto: int | None = None
    ) -> Tensor:
        self.evaluations += len(tokens)
        moved = Substitution(self.problem, context, position, self.batcher, upto=upto)
        return moved.residuals(tokens)

    def _best(self, context: Tensor, position: int, count: int | None) -> tuple[Tensor, Tensor]:
        """Return the best tokens of the whole vocabulary at a position, and their losses.

        They are screened on the sequence cut after the first ``screen_positions`` visible
        positions that the token can change, which costs a fraction of the whole; the
        ``count`` best are then judged on all of it (None: the screen's losses stand).
        """
        vocabulary = self.problem.decoder.ids
        shown = [p for p in self.visible if p >= position or not self.problem.probe.causal]
        last = shown[: self.settings.screen_positions][-1]
        losses = self._substitute(context, position, vocabulary, upto=last + 1)
        if count is None:
            return vocabulary, losses
        chosen = vocabulary[losses.topk(min(count, len(losses)), largest=False).indices]
        return chosen, self._substitute(context, position, chosen)

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
