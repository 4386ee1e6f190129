"""The noise floor: how far a prompt's activations are from themselves in another batch.

The same prompt gives slightly different activations in another batch: kernels and their
blocking change with the shape, and LLM.int8 picks its outlier columns over the whole batch,
so there the OTHER rows matter. A distance below this floor means nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokinfo.probe.batch import Batch
from tokinfo.probe.metrics import distance
from tokinfo.probe.probe import Probe
from tokinfo.study.fields import MetricName
from tokinfo.study.solvers import MetricWeights


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


def floor(
    probe: Probe,
    embedding: Tensor,
    batch: Batch,
    target: Tensor,
    metric: MetricName,
    weights: MetricWeights | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    """Return the noise floor [row] of each prompt, in the metric's units.

    It is the largest distance between the prompt's activations computed alone (``target``)
    and the same prompt's in: a second pass alone, the batch of all prompts, that batch
    reversed, batches two and eight times its size filled with random tokens, and, for a
    causal probe, the way a sweep computes it: leading positions once, the others in a batch
    that differs in one token. It is never below the rounding of float32 itself: two kernels
    that happen to agree on these batches may differ in the last place on another.
    """
    generator = torch.Generator().manual_seed(seed)
    size, visible = len(batch.ids), batch.layout.visible
    again = alone(probe, embedding, batch.ids, batch.layout.seen)
    worst = distance(again, target, visible, metric, weights)
    worst = torch.maximum(worst, _rounding(target, visible, metric, weights))
    if probe.causal:
        worst = torch.maximum(
            worst,
            torch.stack(
                [
                    _swept(probe, embedding, batch.rows(row), target[row], metric, weights)
                    for row in torch.arange(size)[:, None]
                ]
            ),
        )
    with torch.no_grad():
        for copies, order in ((1, 1), (1, -1), (2, 1), (8, 1)):
            strangers = torch.randint(
                len(embedding), ((copies - 1) * size, batch.ids.shape[1]), generator=generator
            ).to(batch.ids.device)
            ids = torch.cat([batch.ids, strangers])
            seen = batch.layout.seen.repeat(copies)
            if order < 0:
                ids, seen = ids.flip(0), seen.flip(0)
            found = probe(embedding[ids], seen)
            found = (found.flip(0) if order < 0 else found)[:size]
            worst = torch.maximum(worst, distance(found, target, visible, metric, weights))
    return worst


def _rounding(
    target: Tensor, visible: Tensor, metric: MetricName, weights: MetricWeights | None
) -> Tensor:
    """Return the distance [row] of a target from itself, off by one float32 place everywhere."""
    place = torch.finfo(torch.float32).eps
    target = target.to(torch.promote_types(target.dtype, torch.float32))
    sign = torch.ones_like(target)
    sign[..., ::2] = -1
    moved = distance(target * (1 + place * sign), target, visible, metric, weights)
    # A cosine hardly sees that, and rounds to either side of 0; its own last place is the same,
    # whatever the activations'.
    return moved.clamp_min(0) + place if "cosine" in metric else moved


def _swept(
    probe: Probe,
    embedding: Tensor,
    batch: Batch,
    target: Tensor,
    metric: MetricName,
    weights: MetricWeights | None,
    splits: int = 32,
    rows: int = 2,
) -> Tensor:
    """Return the largest distance [] of one prompt as sweeps of its positions compute it."""
    length = int(batch.layout.lengths[0])
    ids = batch.ids[:, : int(batch.layout.seen[0])]
    worst = target.new_zeros((), dtype=torch.promote_types(target.dtype, torch.float32))
    for split in torch.linspace(1, length - 1, min(splits, length - 1)).round().int().tolist():
        with torch.no_grad():
            prefix = probe.prefix(embedding[ids[:, :split]])
            after = ids[:, split:].repeat(rows, 1)
            after[1:, 0] = torch.arange(rows - 1, device=ids.device)
            rest = probe(embedding[after], prefix=prefix)[:1]
        found = torch.cat([prefix.activations, rest], dim=1)
        end = found.shape[1]
        visible = batch.layout.visible[:, :end]
        away = distance(found, target[:, :end], visible, metric, weights)
        worst = torch.maximum(worst, away[0])
    return worst
