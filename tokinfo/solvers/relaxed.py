"""How far what descends is from the target: an embedding, a vocabulary vector or a mixture.

A mixture is held as logits over the decoder's candidates. Each candidate is an entry of the
sequence (`tokinfo.probe.mixture`), and the activations of a position are those of its entries,
weighted by probability.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokinfo.io.errors import InvalidError
from tokinfo.models.mixer import MixerStack
from tokinfo.models.structure import StructureError
from tokinfo.probe import mixture
from tokinfo.solvers.problem import Problem, SolverError
from tokinfo.study.solvers import MOST_ENTRIES, MOST_MIXER_ENTRIES


def check(problem: Problem) -> None:
    """Refuse mixtures that a model cannot be given, or that have too many entries.

    Raises:
        SolverError: either, where the parametrisation is ``mixture``.
    """
    if problem.parametrisation != "mixture":
        return
    try:
        mixture.check(problem.probe)
    except (InvalidError, StructureError) as error:
        raise SolverError(str(error)) from error
    _, sought, sure = _places(problem)
    count = len(sought) * problem.decoder.size + len(sure)
    mixer = isinstance(problem.probe.decoder, MixerStack)
    most = MOST_MIXER_ENTRIES if mixer else MOST_ENTRIES
    if count > most:
        raise SolverError(
            f"parametrisation mixture: {count:,} entries of the sequence ({problem.decoder.size:,} "
            f"candidates at each of {len(sought)} positions), allowed: {most:,}; name fewer "
            "candidates in decode.restricted_to"
        )


def loss(problem: Problem, free: Tensor) -> Tensor:
    """Return the distance [row] of what a free variable stands for to the target.

    Args:
        problem: any number of rows.
        free: [row, position, free dimension]; of a mixture its logits [row, position, candidate].
            Where a token is known nothing depends on them.
    """
    if problem.parametrisation != "mixture":
        return problem.loss(problem.embed(free))
    decoder, rows = problem.decoder, len(free)
    certain, sought, sure = _places(problem)
    never = float("-inf")
    chosen = free[:, sought].log_softmax(-1)
    chosen = chosen.masked_fill(certain[:, sought, None], never).flatten(1)
    fixed = chosen.new_zeros(rows, len(sure)).masked_fill(~certain[:, sure], never)
    weights = torch.cat([chosen, fixed], dim=1)
    positions = torch.cat([sought.repeat_interleave(decoder.size), sure])
    candidates = decoder.ids.repeat(len(sought)).expand(rows, -1)
    ids = torch.cat([candidates, problem.known[:, sure].clamp_min(0)], dim=1)
    entries = mixture.mix(problem.probe, decoder.embedding[ids], positions, weights)
    entries = weights.exp()[..., None] * entries.to(weights)
    mixed = entries.new_zeros(rows, free.shape[1], entries.shape[2])
    return problem.away(mixed.index_add(1, positions, entries))


def _places(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return which tokens are certain, and where a row has candidates and where a certain token.

    Rows share the positions of their entries. So that a known suffix costs one entry a position,
    candidates stand only where some row has need of them.

    Returns:
        bool [row, position]; behind a row's own positions, any token is as good as certain.
        int64 [position], those at which some row's token is sought.
        int64 [position], those at which some row's token is certain.
    """
    place = torch.arange(problem.known.shape[1], device=problem.known.device)
    certain = problem.given | (place >= problem.layout.seen[:, None])
    return certain, (~certain).any(0).nonzero()[:, 0], certain.any(0).nonzero()[:, 0]
