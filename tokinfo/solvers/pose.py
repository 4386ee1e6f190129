"""From a cell and its checkpoint to the problem that its solver receives, and to the truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokinfo.io.errors import InvalidError
from tokinfo.models.checkpoint import Checkpoint
from tokinfo.probe.batch import Batch, Layout, make_batch
from tokinfo.probe.metrics import distance
from tokinfo.probe.noise import alone, floor, gaussian, noise_floor
from tokinfo.probe.probe import Probe
from tokinfo.solvers.decoding import Decoder
from tokinfo.solvers.problem import Problem
from tokinfo.study import targets
from tokinfo.study.cell import Cell
from tokinfo.study.known import VISIBLE
from tokinfo.study.prompts import Prompt
from tokinfo.study.solvers import MetricWeights, Solver

Activations = tuple[Batch, Tensor]
"""A batch of prompts, and the activations [prompt, position, width] of each, computed alone."""


def make_problem(
    checkpoint: Checkpoint,
    inverse_gram: Tensor,
    cell: Cell,
    solver: Solver,
    weights: MetricWeights,
    prompts: Sequence[Prompt],
    *,
    other: Activations | None = None,
    prior: Tensor | None = None,
    ratio: float = 0.0,
) -> tuple[Problem, Tensor]:
    """Return the problem that a cell poses: targets of all its prompts, each computed alone.

    Beside it are the prompts' true tokens, int64 [row, position]; in it are the known ones alone.

    The noise floor is this model's with the prompts themselves, whatever the target.

    Args:
        checkpoint: the cell's model.
        inverse_gram: of its embedding.
        cell: the cell.
        solver: settings of its solver.
        weights: weights of ``l1+cosine``.
        prompts: texts and chats.
        other: `activations` of the same prompts in the model that the cell's target names.
        prior: float64 [V], probability of each token before anything is seen.
        ratio: of gaussian noise to the signal, added to the visible activations
            (`tokinfo.probe.noise.gaussian`). The observer knows it, so the noise floor holds it.

    Raises:
        ValueError: a prompt does not suit the mask, the model's number of positions or the
            target, or explains a control's; the target's model reads the prompts as other tokens
            or is of another width; the prior is of another vocabulary; or embeddings or visible
            activations are no finite numbers.
        StructureError: activations depend on how they are computed (`tokinfo.probe.noise.floor`).
    """
    embedding = checkpoint.embedding
    restricted = solver.decode.restricted_to
    candidates = (
        torch.tensor(sorted(set(checkpoint.tokenizer.encode(restricted).ids)))
        if restricted
        else None
    )
    decoder = Decoder(
        embedding,
        inverse_gram.to(embedding.device),
        solver.decode.method,
        None if candidates is None else candidates.to(embedding.device),
    )
    probe = make_probe(checkpoint, cell)
    batch, true_activations = activations(checkpoint, cell, prompts)
    visible = batch.layout.visible
    _check_finite(cell.model, probe, embedding, true_activations, visible)
    noise = floor(probe, embedding, batch, true_activations, cell.metric, weights)
    target = _target(cell, batch, true_activations, other)
    if cell.target != targets.OWN:
        away = distance(true_activations, target, visible, cell.metric, weights)
        for number in (away <= noise.distance).nonzero()[:, 0].tolist():
            raise InvalidError(
                f"prompt {number}: explains target {cell.target!r}, which is then no control"
            )
    added = None
    if ratio:
        added = noise_floor(target, visible, ratio, cell.metric, weights)
        target = target + gaussian(target, ratio, cell.seed)
        noise = noise + added
    problem = Problem(
        probe=probe,
        decoder=decoder,
        layout=batch.layout,
        known=known_tokens(cell, batch, checkpoint.special),
        target=target.masked_fill(~visible[..., None], 0),
        noise=noise,
        metric=cell.metric,
        weights=weights,
        parametrisation=cell.parametrisation,
        seed=cell.seed,
        numbers=torch.arange(len(prompts)),
        added=added,
        ratio=ratio,
        prior=None if prior is None else _of_candidates(prior, decoder),
    )
    return problem, batch.ids


def make_probe(checkpoint: Checkpoint, cell: Cell) -> Probe:
    """Return a model as a cell reads it; raises InvalidError where it lacks blocks."""
    kept, depth = checkpoint.facts.blocks_kept, checkpoint.facts.depth
    if cell.site.place == "norm" and kept < depth:
        raise InvalidError(f"site norm: {cell.model} holds {kept} of its {depth} blocks")
    return Probe(
        checkpoint.decoder,
        cell.site,
        residual=cell.residual,
        causal=cell.causal,
        dtype=checkpoint.dtype,
    )


def activations(checkpoint: Checkpoint, cell: Cell, prompts: Sequence[Prompt]) -> Activations:
    """Return what a model makes of a cell's prompts, on the model's device.

    Raises:
        ValueError: a prompt does not suit the mask, the model's number of positions or its chat
            template.
    """
    read = checkpoint.read(prompts)
    batch = make_batch(
        [one.ids for one in read],
        cell.mask,
        spans=[one.spans for one in read],
        pad_id=checkpoint.pad_id,
        pad_to=checkpoint.facts.n_ctx if cell.padding == "n_ctx" else None,
    )
    batch = batch.to(checkpoint.embedding.device)
    probe = make_probe(checkpoint, cell)
    return batch, alone(probe, checkpoint.embedding, batch.ids, batch.layout.seen)


def known_tokens(cell: Cell, batch: Batch, special: Sequence[int]) -> Tensor:
    """Return the tokens [row, position] that a cell gives; -1 where it gives none, as at pads.

    Those among ``special`` tokens it always gives: whoever knows the model knows where its
    tokenizer or chat template puts them.
    """
    given = batch.layout.visible & batch.layout.scored
    if cell.known.text != VISIBLE:
        given = torch.zeros_like(given)
        for row, length in enumerate(batch.layout.lengths.tolist()):
            given[row, cell.known.positions(cell.mask, length)] = True
    given |= (
        torch.isin(batch.ids, torch.tensor(special, dtype=torch.int64, device=given.device))
        & batch.layout.scored
    )
    return torch.where(given, batch.ids, -1)


def _check_finite(
    model: str, probe: Probe, embedding: Tensor, activations: Tensor, visible: Tensor
) -> None:
    """Raise InvalidError where a distance could come out as no number."""
    rows = (~embedding.isfinite().all(1)).nonzero()[:, 0].tolist()
    if rows:
        raise InvalidError(
            f"model {model}: the embedding of token {rows[0]} is not finite "
            f"({len(rows)} of {len(embedding)} tokens)"
        )
    prompts, positions = (visible & ~activations.isfinite().all(-1)).nonzero().unbind(1)
    if len(prompts):
        what = f"prompt {int(prompts[0])}, position {int(positions[0])}: activations"
        raise InvalidError(f"model {model}, {probe.overflows(what)}")


def shuffled(target: Tensor, layout: Layout) -> Tensor:
    """Return a target whose positions are permuted within each prompt's length.

    Position p gets the activations of position `derangement(length)[p]`, which is never p; pads
    that the model sees keep theirs. What is visible stays so.

    Raises:
        ValueError: fewer than two of a prompt's tokens are visible. One position alone may well
            be explained: in an attention model by its token repeated.
    """
    moved = target.clone()
    visible = (layout.visible & layout.scored).sum(1).tolist()
    for row, (length, count) in enumerate(zip(layout.lengths.tolist(), visible, strict=True)):
        if count < 2:
            raise InvalidError(
                f"prompt {row}: {count} of its {length} positions visible; target "
                f"{targets.SHUFFLED!r} needs two"
            )
        moved[row, :length] = target[row, targets.derangement(length)]
    return moved


def _target(
    cell: Cell, batch: Batch, true_activations: Tensor, other: Activations | None
) -> Tensor:
    if cell.target == targets.SHUFFLED:
        return shuffled(true_activations, batch.layout)
    if cell.target == targets.OWN:
        return true_activations
    assert other is not None, f"{cell.target} without its activations"
    theirs, target = other
    if not torch.equal(theirs.ids, batch.ids):
        raise InvalidError(f"target {cell.target}: its tokenizer reads the prompts as other tokens")
    if target.shape != true_activations.shape:
        raise InvalidError(
            f"target {cell.target}: its activations are {target.shape[-1]} wide, "
            f"this model's {true_activations.shape[-1]}"
        )
    return target.to(true_activations)


def _of_candidates(prior: Tensor, decoder: Decoder) -> Tensor:
    """Return a prior [V] cut to the decoder's candidates, in their order, summing to one."""
    if len(prior) != len(decoder.embedding):
        raise InvalidError(
            f"the prior has {len(prior)} tokens, the embedding {len(decoder.embedding)} rows"
        )
    kept = prior.to(decoder.embedding.device)[decoder.ids]
    return kept / kept.sum()
