"""The problem that captured activations pose: what a searcher without the prompt has."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokinfo.io.errors import InvalidError
from tokinfo.models.checkpoint import Checkpoint
from tokinfo.probe.batch import Batch, Layout
from tokinfo.probe.captured import Captured
from tokinfo.probe.noise import Floor, alone, floor, moved
from tokinfo.probe.probe import Probe
from tokinfo.solvers.decoding import Decoder
from tokinfo.solvers.problem import Problem
from tokinfo.study.cell import Cell
from tokinfo.study.solvers import MetricWeights

_STRANGERS = 4
"""Random prompts that the rounding of the model is measured on."""


def captured_problem(
    checkpoint: Checkpoint,
    probe: Probe,
    decoder: Decoder,
    cell: Cell,
    given: Captured,
    known: Mapping[int, int],
    tolerance: float | None = None,
) -> Problem:
    """Return the problem of explaining captured activations; nobody knows the truth about it.

    Args:
        checkpoint: the model that they are of.
        probe: it at the site.
        decoder: from embeddings to tokens.
        cell: metric, parametrisation and seed.
        given: the activations.
        known: tokens that are known, by position.
        tolerance: share of their norm by which activations of the true prompt may differ from this
            model's. None: what rounding does to random prompts of this length, here and where the
            activations were stored.

    Raises:
        InvalidError: they are of another width, too long for the model, or a known token is none.
        StructureError: activations depend on how they are computed (`tokinfo.probe.noise.floor`).
    """
    length, limit = given.length, checkpoint.facts.n_ctx
    if limit is not None and length > limit:
        raise InvalidError(f"length {length}: the model holds {limit} positions")
    device = decoder.embedding.device
    place = torch.zeros(1, length, dtype=torch.bool)
    place[0, list(given.positions)] = True
    layout = Layout(
        lengths=torch.tensor([length]),
        visible=place,
        scored=torch.ones_like(place),
        seen=torch.tensor([length]),
        pad_id=checkpoint.pad_id,
    ).to(device)
    width, rounding = _rounding(probe, decoder.embedding, layout, cell.seed)
    if width != given.activations.shape[1]:
        raise InvalidError(
            f"activations: {given.activations.shape[1]} wide, those of {cell.model} at "
            f"{cell.site} are {width}"
        )
    target = torch.zeros(1, length, width, device=device)
    target[0, list(given.positions)] = given.activations.to(target)
    stored = torch.finfo(given.activations.dtype).eps
    share = max(rounding, stored) if tolerance is None else tolerance
    norms = torch.linalg.vector_norm(target, dim=-1)
    weights = MetricWeights()
    return Problem(
        probe=probe,
        decoder=decoder,
        layout=layout,
        known=_known(known, length, len(decoder.embedding)).to(device),
        target=target,
        noise=Floor(moved(target, layout.visible, cell.metric, weights, share), share * norms),
        metric=cell.metric,
        weights=weights,
        parametrisation=cell.parametrisation,
        seed=cell.seed,
        numbers=torch.zeros(1, dtype=torch.int64),
    )


def _rounding(probe: Probe, embedding: Tensor, layout: Layout, seed: int) -> tuple[int, float]:
    """Return the width of activations, and the share by which rounding moves random prompts'."""
    length = int(layout.lengths[0])
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(embedding), (_STRANGERS, length), generator=generator)
    rows = torch.zeros(_STRANGERS, dtype=torch.int64, device=embedding.device)
    batch = Batch(ids.to(embedding.device), layout.rows(rows))
    found = alone(probe, embedding, batch.ids, batch.layout.seen)
    measured = floor(probe, embedding, batch, found, "l2", seed=seed)
    norms = torch.linalg.vector_norm(found.float(), dim=-1)
    shares = (measured.positions / norms).masked_fill(~batch.layout.visible, 0)
    return found.shape[-1], float(shares.nan_to_num(0.0).max())


def _known(known: Mapping[int, int], length: int, rows: int) -> Tensor:
    found = torch.full((1, length), -1, dtype=torch.int64)
    for position, token in known.items():
        if not -length <= position < length:
            raise InvalidError(f"known {position}: allowed: positions 0 to {length - 1}")
        if not 0 <= token < rows:
            raise InvalidError(f"known {position}: token {token}; allowed: 0 to {rows - 1}")
        found[0, position] = token
    return found
