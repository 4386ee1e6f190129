"""Hidden tokens from what the first block's attention returned: convex, so solved by columns.

In head g, visible position j receives o = (N + sum_it p_i(t) e_i(t) v(t)) / (Z + sum_it p_i(t)
e_i(t)) over hidden positions i and candidate tokens t, with e the exponential of a score, v a
value, and N and Z what the certain tokens add above and below. Multiplied out,

    sum_it p_i(t) e_i(t) (v(t) - o)  =  Z o - N

is linear in p. With p_i on a simplex that is convex least squares over a dictionary of one column
for each hidden position and token, in which one column a position is sought, as in compressed
sensing. The dictionary is never formed: columns are generated where the gradient is steepest (P.
Gilmore and R. Gomory, Operations Research 9, 1961; Frank and Wolfe's step is the same choice), and
scoring all tokens is two matrix products a position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokinfo.probe.attention import FirstAttention
from tokinfo.solvers.inversion import Returned
from tokinfo.solvers.simplex import least_squares
from tokinfo.study.solvers import HELD

_ADDED = 32
"""Columns that join a position's list in a round."""
_KEPT = 1e-4
"""Weight from which on a column stays."""
_PART = 8192
"""Tokens whose keys and values are computed at a time."""
_SAME = 1e-4
"""Relative difference at which a score counts as one of the distance between positions alone."""
_STEEPEST = 30.0
"""Largest score above the certain tokens' best; its exponential stays within float32."""


class Columns:
    """The mixtures of hidden tokens that explain what attention returned.

    Attributes:
        lists: for each unknown position, int64 [column] indices of candidates.
        weights: for each unknown position, float32 [column], summing to 1.

    Args:
        attention: of the first block.
        table: [candidate, d_model] embeddings of the tokens that may be found.
        embedded: [position, d_model] the prompt; rows at unknown positions mean nothing.
        unknown: positions that are sought, each before some visible one.
        visible: positions that attention's returns are read at; none of them unknown.
        common: int64 [token] candidates whose mean effect stands for an unknown token at first.
    """

    def __init__(
        self,
        attention: FirstAttention,
        table: Tensor,
        embedded: Tensor,
        unknown: Sequence[int],
        visible: Sequence[int],
        common: Tensor,
    ) -> None:
        self.attention, self.table, self.common = attention, table, common
        self.unknown, self.visible = list(unknown), list(visible)
        device = table.device
        self._judges = torch.tensor(self.visible, device=device)
        certain = [p for p in range(len(embedded)) if p not in set(unknown)]
        places = torch.tensor(certain, device=device)
        parts = attention.parts(embedded[places], places)
        own = torch.tensor([certain.index(p) for p in visible], device=device)
        groups = parts.keys.shape[1]
        # [group, judge, head of the group, d]
        self._queries = _by_group(parts.queries[own], groups)
        scores = torch.einsum("gjrd,igd->gjri", self._queries, parts.keys)
        scores.masked_fill_(places > self._judges[:, None, None], -torch.inf)
        self._best = scores.amax(-1)
        weights = (scores - self._best[..., None]).exp()
        self._below = weights.sum(-1)
        self._above = torch.einsum("gjri,igd->gjrd", weights, parts.values)
        self._embedded = embedded[self._judges]
        self._shared = self._tables(0) if self._by_distance() else None
        self._kept: dict[int, Tensor] = {}
        # Every position begins as the mean of common tokens, which leave with the first round.
        self.lists = [common] * len(self.unknown)
        self.weights = [torch.full((len(common),), 1 / len(common)).to(table)] * len(self.unknown)
        self._begun = False
        self._unit = self._first_unit()

    # --- what is asked of them --------------------------------------------------------------

    def round(self, returned: Mapping[int, Returned]) -> float:
        """Add the columns that promise most and find the best weights of all that are listed.

        Args:
            returned: what attention returned, by visible position; where it is missing, the
                position has no say.

        Returns:
            What the mixtures leave of the equations, as a share of what there is to explain.
        """
        equations = _Equations(self, returned, self.predicted())
        gradient = equations.back(equations.left(equations.matrix(), torch.cat(self.weights)))
        for n in range(len(self.unknown)):
            promise = equations.promise(n, gradient)
            kept = self.lists[n][self.weights[n] > (_KEPT if self._begun else 1)]
            promise[kept] = -torch.inf
            new = promise.topk(min(_ADDED, len(promise) - len(kept))).indices
            self.lists[n] = torch.cat([kept, new])
        self._begun = True
        sizes = [len(columns) for columns in self.lists]
        matrix = equations.matrix()
        found = least_squares(matrix, equations.target, sizes).to(self.table)
        self.weights = list(torch.split(found, sizes))
        self._unit = 1 / self._sums(self.lists, self.weights)[1]
        return float(equations.left(matrix, found).norm() / equations.target.norm())

    def best(self) -> Tensor:
        """Return the candidate [unknown] of the largest weight at each position."""
        return torch.stack(
            [
                columns[weights.argmax()]
                for columns, weights in zip(self.lists, self.weights, strict=True)
            ]
        )

    def ranked(self, count: int) -> list[Tensor]:
        """Return each position's candidates, the largest weights first, at most ``count``."""
        return [
            columns[weights.argsort(descending=True)[:count]]
            for columns, weights in zip(self.lists, self.weights, strict=True)
        ]

    def predicted(self) -> Tensor:
        """Return what attention returns [visible, component] under the mixtures found."""
        above, below = self._sums(self.lists, self.weights)
        mean = above / below[..., None]
        return mean.permute(1, 0, 2, 3).flatten(1)

    # --- what they are made of --------------------------------------------------------------

    def _sums(self, lists: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        above, below = self._above.clone(), self._below.clone()
        for n, (columns, weight) in enumerate(zip(lists, weights, strict=True)):
            share = self._exponentials(n, columns) * weight
            below += share.sum(-1)
            above += torch.einsum("gjrt,gdt->gjrd", share, self._values(n, columns))
        return above, below

    def _first_unit(self) -> Tensor:
        """Return the first weight of each equation: one over its expected sum."""
        below = self._below.clone()
        for n in range(len(self.unknown)):
            below += self._exponentials(n, self.common).median(-1).values
        return 1 / below

    def _by_distance(self) -> bool:
        """Whether a score depends on the distance of two positions alone, and values on neither."""
        some = self.common[:16]
        at, zero = (
            self.attention.parts(self.table[some], torch.full_like(some, place))
            for place in (self.unknown[-1], 0)
        )
        moved = _by_group(self._moved_queries(self.unknown[-1]), at.keys.shape[1])
        one = torch.einsum("gjrd,tgd->gjrt", self._queries, at.keys)
        other = torch.einsum("gjrd,tgd->gjrt", moved, zero.keys)
        behind = self._judges > self.unknown[-1]
        away = (one - other)[:, behind].abs().max()
        return bool(away <= _SAME * one.abs().max()) and torch.equal(at.values, zero.values)

    def _moved_queries(self, place: int) -> Tensor:
        """Return the judges' queries [judge, head, d], ``place`` positions earlier."""
        return self.attention.parts(self._embedded, (self._judges - place).clamp_min(0)).queries

    def _tables(self, place: int, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the keys and values [group, d, candidate] of some or all at a position."""
        table = self.table if columns is None else self.table[columns]
        parts = [
            self.attention.parts(part, torch.full((len(part),), place, device=part.device))
            for part in torch.split(table, _PART)
        ]
        return (
            torch.cat([part.keys for part in parts]).permute(1, 2, 0).contiguous(),
            torch.cat([part.values for part in parts]).permute(1, 2, 0).contiguous(),
        )

    def _values(self, n: int, columns: Tensor | None = None) -> Tensor:
        """Return the values [group, d, candidate] of some or all at an unknown position."""
        if self._shared is None:
            return self._tables(self.unknown[n], columns)[1]
        values = self._shared[1]
        return values if columns is None else values[..., columns]

    def _exponentials(self, n: int, columns: Tensor | None = None) -> Tensor:
        """Return e [group, judge, head, candidate] of some or all; 0 for judges before."""
        held = self._kept.get(n)
        if held is not None:
            return held if columns is None else held[..., columns]
        place = self.unknown[n]
        if self._shared is None:
            keys, queries = self._tables(place, columns)[0], self._queries
        else:
            keys = self._shared[0] if columns is None else self._shared[0][..., columns]
            queries = _by_group(self._moved_queries(place), len(keys))
        groups, judges, heads, width = queries.shape
        scores = torch.bmm(queries.reshape(groups, -1, width), keys).view(groups, judges, heads, -1)
        scores -= self._best[..., None]
        found = scores.clamp_max_(_STEEPEST).exp_()
        found[:, self._judges < place] = 0
        if columns is None and found.nbytes * len(self.unknown) <= HELD:
            self._kept[n] = found
        return found


class _Equations:
    """The linear equations of one round, where attention's returns are known."""

    def __init__(self, parts: Columns, returned: Mapping[int, Returned], predicted: Tensor) -> None:
        self.parts = parts
        groups, judges, heads, width = parts._queries.shape
        self._shape = (judges, groups, heads, width)
        self._returned = {parts.visible.index(place): one for place, one in returned.items()}
        values = parts.table.new_zeros(judges, groups * heads * width)
        unit = torch.zeros_like(parts._unit)
        for judge, one in self._returned.items():
            values[judge] = one.completed(predicted[judge])
            unit[:, judge] = parts._unit[:, judge]
        self._values = values.view(self._shape).permute(1, 0, 2, 3)  # [group, judge, head, d]
        self._unit = unit
        right = (parts._below[..., None] * self._values - parts._above) * unit[..., None]
        self.target = self._read(right[..., None])[0]

    def columns(self, n: int, columns: Tensor) -> Tensor:
        """Return the columns [column, equation] of candidates at an unknown position."""
        parts = self.parts
        share = parts._exponentials(n, columns) * self._unit[..., None]
        away = parts._values(n, columns)[:, None, None] - self._values[..., None]
        return self._read(share[..., None, :] * away)

    def left(self, matrix: Tensor, weights: Tensor) -> Tensor:
        """Return what columns [equation, column] of some weights leave of the target [equation]."""
        return self.target - matrix @ weights

    def matrix(self) -> Tensor:
        """Return all listed columns [equation, column]."""
        every = [self.columns(n, columns) for n, columns in enumerate(self.parts.lists)]
        return torch.cat(every).T

    def promise(self, n: int, gradient: Tensor) -> Tensor:
        """Return how fast each candidate [candidate] at an unknown position lessens what is left.

        Args:
            n: which unknown position.
            gradient: [group, judge, head, d] what is left, from `back`.
        """
        parts = self.parts
        gradient = gradient * self._unit[..., None]
        groups, judges, heads, width = gradient.shape
        along = torch.bmm(gradient.reshape(groups, -1, width), parts._values(n))
        along = along.view(groups, judges, heads, -1)
        along -= (gradient * self._values).sum(-1)[..., None]
        return torch.einsum("gjrt,gjrt->t", along, parts._exponentials(n))

    def back(self, left: Tensor) -> Tensor:
        """Return what is left [equation] as [group, judge, head, d]."""
        judges, groups, heads, width = self._shape
        found = left.new_zeros(judges, groups * heads * width)
        sizes = [len(one.directions) for one in self._returned.values()]
        for (judge, one), part in zip(
            self._returned.items(), torch.split(left, sizes), strict=True
        ):
            found[judge] = part @ one.directions
        return found.view(self._shape).permute(1, 0, 2, 3)

    def _read(self, found: Tensor) -> Tensor:
        """Return [column, equation] of [group, judge, head, d, column]."""
        flat = found.permute(4, 1, 0, 2, 3).flatten(2)  # [column, judge, component]
        return torch.cat(
            [flat[:, judge] @ one.directions.T for judge, one in self._returned.items()], dim=1
        )


def _by_group(heads: Tensor, groups: int) -> Tensor:
    """Return [group, token, head of the group, d] of [token, head, d]."""
    tokens, count, width = heads.shape
    return heads.view(tokens, groups, count // groups, width).transpose(0, 1)
