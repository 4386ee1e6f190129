"""The noise floor: how far a prompt's activations are from themselves in another batch.

The same prompt gives slightly different activations in another batch: kernels and their
blocking change with the shape, and LLM.int8 picks its outlier columns over the whole batch,
so there the OTHER rows matter. A distance below this floor means nothing. What rounding cannot
explain is no floor: the model then does not compute what is taken for granted of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tokinfo.models.structure import StructureError
from tokinfo.probe.batch import Batch
from tokinfo.probe.metrics import distance, position_distance
from tokinfo.probe.probe import Probe
from tokinfo.study.fields import MetricName
from tokinfo.study.solvers import MetricWeights

_SPLITS = 32
"""Positions of a prompt at which a sweep of it is imitated."""
_SWEPT = 512
"""Rows of such a sweep's batch; kernels change with their number."""
_STRANGERS = 7
"""Random prompts beside a prompt in the batch that says what other rows change."""
_DRAWS, _DEVIATIONS = 64, 5
"""Draws of noise that say how far noise goes, and standard deviations beyond their mean."""
_ALLOWED = 16
"""A path may differ so many times as much as that batch does."""


@dataclass(frozen=True)
class Floor:
    """The noise floor of each prompt.

    Attributes:
        distance: [row] in the metric's units.
        positions: [row, position] largest 2-norm by which activations differed there; 0 where the
            model sees no position.
    """

    distance: Tensor
    positions: Tensor

    def rows(self, index: Tensor) -> Floor:
        """Return the floors of some rows."""
        return Floor(self.distance[index], self.positions[index])

    def __add__(self, other: Floor) -> Floor:
        return Floor(self.distance + other.distance, self.positions + other.positions)


def signal(activations: Tensor) -> Tensor:
    """Return the root mean square [..., 1] of activations [..., width], at least in float32."""
    exact = activations.to(torch.promote_types(activations.dtype, torch.float32))
    return exact.square().mean(-1, keepdim=True).sqrt()


def gaussian(target: Tensor, ratio: float, seed: int) -> Tensor:
    """Return noise [row, position, width], independent at every component of a target.

    Its standard deviation is ``ratio`` times the root mean square of the activations at its
    position. Every row draws from a generator of its own, so that it is the same in any batch;
    another ratio scales the same draw. No solver draws the same numbers (`_drawn`).

    Args:
        target: [row, position, width] activations.
        ratio: of noise to signal.
        seed: of the draw, 0 or more.
    """
    return ratio * _drawn(target, _DRAWS + seed)


def _drawn(target: Tensor, draw: int) -> Tensor:
    """Return noise as large as the signal.

    Its generators' seeds are negative. Those of starts and of a sweep's noise are not: a start that
    held the noise of its target would say what the activations are without it.
    """
    rows = []
    for row in range(len(target)):
        generator = torch.Generator().manual_seed(-1 - draw * 1_000_003 - row)
        rows.append(torch.randn(target.shape[1:], generator=generator))
    return (signal(target) * torch.stack(rows).to(target.device)).to(target)


def noise_floor(
    target: Tensor,
    visible: Tensor,
    ratio: float,
    metric: MetricName,
    weights: MetricWeights | None = None,
) -> Floor:
    """Return how far `gaussian` noise takes a target, so that hardly any draw takes it further.

    It is the mean of some draws and five standard deviations over them. A position's norm is that
    of many independent components, and a distance the sum over more, so that both are close to
    normal: about one draw in three million is further off.

    Args:
        target: [row, position, width] without noise.
        visible: bool [row, position].
        ratio: of noise to signal.
        metric: the distance.
        weights: weights of ``l1+cosine``.
    """
    away, apart = [], []
    for draw in range(_DRAWS):
        noisy = target + ratio * _drawn(target, draw)
        away.append(distance(noisy, target, visible, metric, weights))
        apart.append(position_distance(noisy, target))
    return Floor(*(_high(torch.stack(found)) for found in (away, apart)))


def _high(draws: Tensor) -> Tensor:
    return draws.mean(0) + _DEVIATIONS * draws.std(0)


def alone(probe: Probe, embedding: Tensor, ids: Tensor, seen: Tensor) -> Tensor:
    """Return activations [row, position, width], each row computed in a batch of one.

    One composition for every verification: whatever the kernels do with a batch, a row
    computed alone is always computed the same way. Positions beyond a row's length are zero.

    Args:
        probe: from embeddings to activations.
        embedding: [V, d] embedding matrix.
        ids: int64 [row, position].
        seen: int64 [row], positions of each row that the model sees.
    """
    rows = []
    with torch.no_grad():
        for tokens, length in zip(ids, seen.tolist(), strict=True):
            found = probe(embedding[tokens[None, :length]])[0]
            rows.append(torch.nn.functional.pad(found, (0, 0, 0, len(tokens) - length)))
    return torch.stack(rows)


def moved(
    target: Tensor,
    visible: Tensor,
    metric: MetricName,
    weights: MetricWeights | None,
    share: float,
) -> Tensor:
    """Return the distance [row] of a target from itself with every component off by a share."""
    target = target.to(torch.promote_types(target.dtype, torch.float32))
    sign = torch.ones_like(target)
    sign[..., ::2] = -1
    return distance(target * (1 + share * sign), target, visible, metric, weights)


def floor(
    probe: Probe,
    embedding: Tensor,
    batch: Batch,
    target: Tensor,
    metric: MetricName,
    weights: MetricWeights | None = None,
    *,
    seed: int = 0,
) -> Floor:
    """Return the noise floor of each prompt.

    It is the largest difference between the prompt's activations computed alone (``target``)
    and the same prompt's in: a second pass alone, a batch with random prompts of its length, the
    batch of all prompts, that batch reversed, batches two and eight times its size filled with
    random tokens, and, for a causal probe, the way a sweep computes it: leading positions once,
    the others in a batch that differs in one token. It is never below the rounding of float32
    itself: two kernels that happen to agree on these batches may differ in the last place on
    another.

    Raises:
        StructureError: a way of computing the activations changes them by more than rounding and
            other rows explain, or a later token changes what stands before it although the probe
            is causal.
    """
    visible, inside = batch.layout.visible, _inside(batch)
    norms = torch.linalg.vector_norm(target.to(torch.float32), dim=-1)
    place = torch.finfo(torch.float32).eps
    worst = moved(target, visible, metric, weights, place)
    positions = place * norms
    # Where next to nothing is left of what was added up, rounding is a larger share of it.
    typical = norms.masked_fill(~inside, torch.nan).nanmedian(dim=1, keepdim=True).values
    scale = torch.maximum(norms, typical)
    allowed = probe.tolerance
    for wrong, rows, found in _again(probe, embedding, batch, seed):
        apart = position_distance(found, target[rows]).masked_fill(~inside[rows], 0)
        share = float((apart / scale[rows]).nan_to_num(0.0).max())
        if wrong is None:
            allowed = max(allowed, _ALLOWED * share)
        elif share > allowed:
            raise StructureError(
                f"{type(probe.decoder).__name__}, {probe.site}: {wrong} by {100 * share:.2g} % of "
                f"their norm; rounding explains {100 * allowed:.2g} %"
            )
        away = distance(found, target[rows], visible[rows], metric, weights)
        worst[rows] = torch.maximum(worst[rows], away)
        positions[rows] = torch.maximum(positions[rows], apart)
    return Floor(worst, positions)


def _again(
    probe: Probe, embedding: Tensor, batch: Batch, seed: int
) -> Iterator[tuple[str | None, Tensor, Tensor]]:
    """Yield rows' activations computed in other ways.

    Yields:
        what is wrong where they differ by more than noise (None: whatever differs is noise),
        int64 [row] which rows, and their activations [row, position, width].
    """
    generator = torch.Generator().manual_seed(seed)
    ids, seen = batch.ids, batch.layout.seen
    size, width = ids.shape
    every = torch.arange(size, device=ids.device)

    def strangers(*shape: int) -> Tensor:
        return torch.randint(len(embedding), shape, generator=generator).to(ids.device)

    with torch.no_grad():
        yield None, every, alone(probe, embedding, ids, seen)
        for row, length in enumerate(seen.tolist()):
            one, tokens = every[row : row + 1], ids[row : row + 1, :length]
            among = probe(embedding[torch.cat([tokens, strangers(_STRANGERS, length)])])[:1]
            yield None, one, _padded(among, width)
            if probe.causal and length > 1:
                other = (tokens[:, -1:] + 1) % len(embedding)
                early = probe(embedding[torch.cat([tokens[:, :-1], other], dim=1)])
                early[:, -1] = among[:, -1]
                yield _ACAUSAL, one, _padded(early, width)
                for split, copies in _splits(length):
                    prefix = probe.prefix(embedding[tokens[:, :split]])
                    after = tokens[:, split:].repeat(copies, 1)
                    after[1:, 0] = strangers(copies - 1)
                    rest = probe(embedding[after], prefix=prefix)[:1]
                    whole = torch.cat([prefix.activations, rest], dim=1)
                    yield _FORGETFUL, one, _padded(whole, width)
        for copies, order in ((1, 1), (1, -1), (2, 1), (8, 1)):
            all_ids = torch.cat([ids, strangers((copies - 1) * size, width)])
            all_seen = seen.repeat(copies)
            if order < 0:
                all_ids, all_seen = all_ids.flip(0), all_seen.flip(0)
            found = probe(embedding[all_ids], all_seen)
            yield _PADDED, every, (found.flip(0) if order < 0 else found)[:size]


_ACAUSAL = "`causal: true` does not hold, a later token changes earlier activations"
_FORGETFUL = "keys and values of leading positions, computed once, change activations"
_PADDED = "other rows and padding on the right change activations"


def _splits(length: int) -> list[tuple[int, int]]:
    """Return where sweeps of a prompt split it, and the rows of their batches."""
    places = torch.linspace(1, length - 1, min(_SPLITS, length - 1)).round().int().tolist()
    return [*((place, 2) for place in places), (length - 1, _SWEPT)]


def _inside(batch: Batch) -> Tensor:
    """Return which positions the model sees, bool [row, position]."""
    place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return place < batch.layout.seen[:, None]


def _padded(found: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(found, (0, 0, 0, width - found.shape[1]))
