"""The noise floor: how far a prompt's own activations are from themselves.

The same prompt gives slightly different activations in another batch: kernels and their
blocking change with the shape, and LLM.int8 picks its outlier columns over the whole batch,
so there the OTHER rows matter. A distance below this floor means nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokinfo.objective import distance
from tokinfo.probe import Probe
from tokinfo.prompts import Batch
from tokinfo.study import MetricName, MetricWeights


def alone(probe: Probe, embedding: Tensor, ids: Tensor, seen: Tensor) -> Tensor:
    """Return activations [row, position, width], each row computed in a batch of its own.

    One composition for every verification: whatever the kernels do with a batch, a row
    computed alone is always computed the same way. Positions beyond a row's own are zero.

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
    reversed, and batches two and eight times its size filled with random tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    size = len(batch)
    worst = distance(
        alone(probe, embedding, batch.ids, batch.seen), target, batch.visible, metric, weights
    )
    with torch.no_grad():
        for copies, order in ((1, 1), (1, -1), (2, 1), (8, 1)):
            strangers = torch.randint(
                len(embedding), ((copies - 1) * size, batch.ids.shape[1]), generator=generator
            ).to(batch.ids.device)
            ids = torch.cat([batch.ids, strangers])
            seen = batch.seen.repeat(copies)
            if order < 0:
                ids, seen = ids.flip(0), seen.flip(0)
            found = probe(embedding[ids], seen)
            found = (found.flip(0) if order < 0 else found)[:size]
            worst = torch.maximum(
                worst, distance(found, target, batch.visible, metric, weights)
            )
    return worst
