"""Nothing known: descent for a start, then search over tokens until the activations match.

Hidden positions are discrete tokens here from the first move on: a free embedding there
absorbs any residual, which is why descent alone does not find them. Moves, from cheap to dear:

1. detect: every token judged by what it changes of the visible activations, while the other
   unknown positions stand at random tokens and what they may add is left out of the comparison
   (`tokinfo.invert.detect`); the likeliest combinations are tried, the surest token is settled,
   and the rest detected again around it;
2. dive: the hidden positions one after another, whichever shows most first: a sweep of every
   position that is still open, the best tokens of each judged by what the others can still
   explain as free embeddings (`tokinfo.invert.relax`), the best few kept side by side;
3. permute: the hidden tokens in every other order (early attention barely tells order apart);
4. swap: one position, candidates from the descent's lists and from the gradient;
5. read: the visible positions from left to right, every token judged by the activations at its
   own position, the hidden ones standing at whichever of some random tokens explains most;
   then dive once more, from those stand-ins;
6. sweep: one position, every token;
7. pair: two hidden positions at once, the best candidates of each;
8. the whole vocabulary, then another start of the descent.

A dearer move is made only where the cheaper ones have come to rest above the noise floor, and
the search ends as soon as the prompt is certified: a match to within the floor proves itself,
no exhaustive search is needed. That is why the moves may begin with a vocabulary's leading
tokens: byte-pair tokenizers number them in the order learned, frequent ones first. Every token
is judged by the forward model alone.
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
from tokinfo.invert.detect import Detected, Responses, combinations
from tokinfo.invert.problem import Problem, Result
from tokinfo.invert.relax import relax
from tokinfo.invert.sweep import sweep
from tokinfo.noise import alone
from tokinfo.objective import distance
from tokinfo.solvers import JointSolver
from tokinfo.substitute import Substitution

_RELAX_RATE = 0.3
_AT_ONCE = 3
"""Open hidden positions that a dive sweeps before it settles one."""
_SCREENED = 6
"""Tokens that pass a screen, for each that is wanted in the end."""
_SURE = 0.9
"""Probability from which a visible token is settled at once."""
_ORDERS = 5
"""Most hidden tokens that are tried in every order."""


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


@dataclass(frozen=True)
class _Node:
    """A prompt some of whose hidden positions are settled, the others free embeddings."""

    ids: Tensor  # [position]; meaningless where a hidden position is not settled
    settled: frozenset[int]
    context: Tensor  # [position, d]

    def settle(self, position: int, token: int, embedding: Tensor) -> _Node:
        """Return the node with one more hidden position at a token."""
        ids, context = self.ids.clone(), self.context.clone()
        ids[position], context[position] = token, embedding[token]
        return _Node(ids, self.settled | {position}, context)


@dataclass(frozen=True)
class _Open:
    """A prompt with stand-ins at unknown positions, and what settling the others has cost."""

    ids: Tensor  # [position]
    unknown: tuple[int, ...]
    cost: float = 0.0  # minus the log-probability of the tokens settled

    def settle(self, tokens: dict[int, int], cost: float) -> _Open:
        """Return the prompt with these tokens settled too."""
        ids = self.ids.clone()
        for position, token in tokens.items():
            ids[position] = token
        rest = tuple(position for position in self.unknown if position not in tokens)
        return _Open(ids, rest, self.cost + cost)


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
    vocabulary: Tensor = field(init=False)  # [candidate] tokens that sweeps try
    # Prompts whose hidden tokens are stand-ins, once the visible ones have been read so.
    readings: list[Tensor] = field(init=False, default_factory=list)

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
        # Where hidden tokens show first.
        self.first = next(
            (p for p in self.visible if self.reached and p > self.reached[0]), self.visible[0]
        )
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
        moves: list[Callable[[], None]] = []
        if self.settings.combinations:
            moves.append(self._detect)
        if self.reached:
            # Hidden positions before visible ones: a wrong hidden token can make a wrong
            # visible one look better.
            moves.append(self._dive)
        if 1 < len(self.reached) <= _ORDERS:
            moves.append(self._permute)
        moves += [self._swap, self._read]
        if self.reached:
            moves.append(self._dive)
        moves.append(self._sweep)
        if len(self.reached) > 1 and self.settings.pair > 1:
            moves.append(self._pairs)
        every = self.problem.decoder.ids
        for count in sorted({min(self.settings.leading or len(every), len(every)), len(every)}):
            self.vocabulary = every[:count]
            self.readings = []
            level = 0
            for _ in range(self.settings.rounds):
                if level == len(moves) or self.certified:
                    break
                before = self.loss
                moves[level]()
                # Any gain makes the cheaper moves worth another try; the first two follow one
                # another anyway.
                gained = self.loss < before * (1 - 1e-6)
                level = 0 if gained else level + 1
            if self.certified:
                return

    # --- moves ------------------------------------------------------------------------------

    def _detect(self) -> None:
        """Detect the hidden tokens behind random ones, then all tokens; settle the surest first.

        Responses are kept for as long as the prompt that they are measured from stays the same:
        the second detection adds those of visible positions alone.
        """
        ids = self.ids.clone()
        ids[self.reached] = self._random(len(self.reached))
        every = (*self.reached, *self.visible)
        candidates = {position: self._candidates(position) for position in every}
        responses = Responses(self.problem, ids, candidates, self.batcher, self.drawn)
        nodes = [_Open(ids, every)]
        if self.reached:
            self._detected(responses, nodes[0].ids, self.reached)
        while nodes and not self.certified:
            children = []
            for node in nodes:
                if not torch.equal(responses.ids, node.ids):
                    responses = Responses(
                        self.problem, node.ids, candidates, self.batcher, self.drawn
                    )
                found = self._detected(responses, node.ids, node.unknown)
                if self.certified:
                    return
                children += self._settled(node, found)
            nodes = sorted(children, key=lambda node: node.cost)[: self.settings.beam]

    def _detected(
        self, responses: Responses, ids: Tensor, unknown: Sequence[int]
    ) -> dict[int, Detected]:
        """Return the likeliest tokens of unknown positions; try their combinations."""
        spent = responses.evaluations
        found = responses.detect(unknown, self.settings.screen)
        self.evaluations += responses.evaluations - spent
        self._keep_best(list(combinations(ids, found, self.settings.combinations)))
        return found

    def _settled(self, node: _Open, found: dict[int, Detected]) -> list[_Open]:
        """Return the node with more positions settled: the sure visible ones, or the surest."""
        sure = [p for p in node.unknown if p in self.visible and found[p].surely(_SURE)]
        if sure:
            children = [node.settle({p: int(found[p].tokens[0]) for p in sure}, 0.0)]
        else:
            surest = max(node.unknown, key=lambda p: float(found[p].score[0]))
            likely = zip(found[surest].tokens.tolist(), found[surest].score.tolist(), strict=True)
            children = [node.settle({surest: token}, -score) for token, score in likely]
        # Where nothing is left to detect, these tokens have been tried with the combinations.
        return [child for child in children[: self.settings.beam] if child.unknown]

    def _candidates(self, position: int) -> Tensor:
        """Return the tokens tried at a position; at a visible one descent may know better."""
        if position in self.hidden:
            return self.vocabulary
        proposed = self.lists[position]
        return torch.cat([self.vocabulary, proposed[~torch.isin(proposed, self.vocabulary)]])

    def _random(self, count: int) -> Tensor:
        """Return random tokens [count] of the vocabulary tried, to stand in for unknown ones."""
        return self.vocabulary[torch.randint(len(self.vocabulary), (count,), generator=self.drawn)]

    def _read(self) -> None:
        blind = bool(self.reached) and not self.readings
        if blind:
            self.readings = self._readings()
            # Each keeps its own first token, so that they stay different.
            self.readings = [self._left_to_right(ids, self.first) for ids in self.readings]
        read = self.readings if blind else [self._left_to_right(self.ids)]
        losses = self._distances(read)
        best = int(losses.argmin())
        # Blind readings are a new start for the next dive, even where they explain less.
        if float(losses[best]) < self.loss or (blind and self.problem.probe.causal):
            self.ids, self.loss = read[best], float(losses[best])

    def _readings(self) -> list[Tensor]:
        """Return prompts [position] with random hidden tokens and the first visible one read.

        The descent's hidden tokens are as good as none, and so is the embedding's mean, which
        no model has ever seen; of many real tokens some blur the first visible one little.
        """
        drawn = torch.Generator().manual_seed(self.problem.seed)
        shape = (self.settings.fillings, len(self.reached))
        fillings = self.vocabulary[torch.randint(len(self.vocabulary), shape, generator=drawn)]
        found: dict[int, tuple[float, Tensor]] = {}
        for filling in fillings:
            ids = self.ids.clone()
            ids[self.reached] = filling
            tokens, losses = self._at(ids, self.first)
            near = losses.topk(min(self.settings.beam, len(losses)), largest=False)
            for loss, index in zip(near.values.tolist(), near.indices.tolist(), strict=True):
                token = int(tokens[index])
                if loss < found.get(token, (float("inf"),))[0]:
                    ids = ids.clone()
                    ids[self.first] = token
                    found[token] = (loss, ids)
        best = sorted(found.values(), key=lambda pair: pair[0])
        return [ids for _, ids in best[: 2 * self.settings.beam]]

    def _left_to_right(self, ids: Tensor, kept: int | None = None) -> Tensor:
        """Return a prompt whose visible tokens, but one, are read again, given those before."""
        ids = ids.clone()
        for position in self.visible:
            if position != kept:
                tokens, losses = self._at(ids, position)
                ids[position] = tokens[int(losses.argmin())]
        return ids

    def _at(self, ids: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Return tokens for a visible position, judged by the activations up to it."""
        tokens = torch.cat([self.vocabulary, self.lists[position]])
        context = self.problem.decoder.embedding[ids]
        return tokens, self._substitute(context, position, tokens, upto=position + 1)

    def _dive(self) -> None:
        settings, embedding = self.settings, self.problem.decoder.embedding
        nodes: list[_Node] = []
        for ids in self.readings or [self.ids]:
            context = embedding[ids[: self.length]].clone()
            if not self.readings:
                context[self.hidden] = embedding.mean(0)
            nodes.append(_Node(ids, frozenset(), context))
        for _ in range(len(self.reached) - 1):
            nodes = self._relaxed(self._grown(nodes, settings.screen))
        # The last hidden token is judged where it must show first: the visible tokens further
        # right are often wrong until it is known, and read again with it.
        last = [node.ids for node in self._grown(nodes, settings.screen)]
        order = self._distances(last, upto=self.first + 1).argsort()
        near = [last[index] for index in order[: settings.beam].tolist()]
        self._keep_best(near)
        if not self.certified:
            self._keep_best([self._left_to_right(near[0])])

    def _grown(self, nodes: list[_Node], width: int) -> list[_Node]:
        """Return the nodes with one more hidden position settled, at the tokens that fit best."""
        grown: dict[tuple[int, ...], _Node] = {}
        for node in nodes:
            # The nearest to the visible ones, where many are hidden.
            for position in [p for p in self.reached if p not in node.settled][-_AT_ONCE:]:
                chosen, losses = self._best(node.context, position, _SCREENED * width)
                best = losses.topk(min(width, len(losses)), largest=False).indices
                for token in chosen[best].tolist():
                    child = node.settle(position, token, self.problem.decoder.embedding)
                    grown.setdefault((*child.ids.tolist(), *sorted(child.settled)), child)
        return list(grown.values())

    def _relaxed(self, nodes: list[_Node]) -> list[_Node]:
        """Return the few nodes whose open positions, as free embeddings, explain most."""
        contexts = torch.stack([node.context for node in nodes])
        free = torch.zeros(contexts.shape[:2], dtype=torch.bool, device=contexts.device)
        for row, node in enumerate(nodes):
            free[row, [p for p in self.reached if p not in node.settled]] = True
        steps = self.settings.relax_steps
        contexts, losses = relax(self.problem, contexts, free, steps, _RELAX_RATE)
        self.evaluations += len(nodes) * (1 + steps)
        best = losses.topk(min(self.settings.beam, len(losses)), largest=False).indices.tolist()
        return [replace(nodes[row], context=contexts[row]) for row in best]

    def _permute(self) -> None:
        orders = []
        for order in sorted(set(itertools.permutations(self.ids[self.reached].tolist()))):
            orders.append(self.ids.clone())
            orders[-1][self.reached] = torch.tensor(order, device=self.ids.device)
        self._keep_best(orders)

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

    def _keep_best(self, prompts: list[Tensor]) -> None:
        losses = self._distances(prompts)
        best = int(losses.argmin())
        self._keep(float(losses[best]), prompts[best])

    def _score(self, ids: Tensor) -> float:
        return float(self._distances([ids])[0])

    def _distances(self, prompts: list[Tensor], upto: int | None = None) -> Tensor:
        """Return the distances [prompt] of prompts, in a causal model up to a position only."""
        problem, length = self.problem, self.length
        if upto is not None and problem.probe.causal:
            length = upto

        def away(ids: Tensor) -> Tensor:
            with torch.no_grad():
                found = problem.probe(
                    problem.decoder.embedding[ids[:, :length]], problem.batch.seen.expand(len(ids))
                )
            target, visible = problem.target[:, :length], problem.batch.visible[:, :length]
            return distance(found, target, visible, problem.metric, problem.weights)

        self.evaluations += len(prompts)
        return self.batcher.map(away, torch.stack(prompts))

    def _substitute(
        self, context: Tensor, position: int, tokens: Tensor, upto: int | None = None
    ) -> Tensor:
        self.evaluations += len(tokens)
        moved = Substitution(self.problem, context, position, self.batcher, upto=upto)
        return moved.residuals(tokens)

    def _best(self, context: Tensor, position: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the best tokens of the vocabulary at a position, and their losses.

        They are screened on the sequence cut after the first ``screen_positions`` visible
        positions that the token can change, which costs a fraction of the whole; the
        ``count`` best are then judged on all of it.
        """
        losses = self._screened(context, position)
        chosen = self.vocabulary[losses.topk(min(count, len(losses)), largest=False).indices]
        return chosen, self._substitute(context, position, chosen)

    def _screened(self, context: Tensor, position: int) -> Tensor:
        """Return the losses of the vocabulary on the sequence cut after what shows it first."""
        shown = [p for p in self.visible if p >= position or not self.problem.probe.causal]
        last = shown[: self.settings.screen_positions][-1]
        return self._substitute(context, position, self.vocabulary, upto=last + 1)

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
