"""Visible tokens that are not known, read from their own activations.

A visible position's activations depend most on its own token. What unknown tokens before it may
add is measured in random prompts: directions in which those differ count less.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokinfo.probe.streams import Entries, Streams, joined
from tokinfo.solvers.best import Best

COMPANY = 64
"""Candidates that keep others company: those that stand for a token that is not known."""
_VARIED = 16
"""Tokens at a visible position that it is measured for."""
_TIMES = 2
"""Times that candidates are compared."""


def read(best: Best, streams: Streams) -> None:
    """Choose each visible token that is not known, among the leading ones and those proposed.

    Candidates are compared behind mixtures of tokens: first by what random tokens change at any
    visible token, then by what they change at the nearest.

    Args:
        best: the prompt so far; it goes on from the one that is read.
        streams: of the problem's probe.
    """
    behind = [place for place in best.visible if not best.given[place]]
    before: Entries | None = None
    weights = best.embedding.new_zeros(0)
    for place in range(behind[-1] + 1 if behind else 0):
        tokens = best.ids[place, None]
        if place in behind:
            tokens = _nearest(best, streams, place, before, weights)
            ids = best.ids.clone()
            ids[place] = tokens[0]
            best.restart(ids)
        elif place in best.unknown:
            drawn = torch.randperm(len(best.leading), generator=best.random)[:COMPANY]
            tokens = best.leading[drawn.to(best.leading.device)]
        entries = streams.entries(best.embedding[tokens], place, before, weights)
        before = entries if before is None else joined([before, entries])
        weights = torch.cat([weights, weights.new_full((len(tokens),), -math.log(len(tokens)))])


def _nearest(
    best: Best, streams: Streams, place: int, before: Entries | None, weights: Tensor
) -> Tensor:
    """Return the token [1] whose activations are nearest to the target's."""
    target = best.problem.target[0, place]
    unknown = [one for one in best.unknown if one < place]
    proposed = best.proposed[place].to(best.leading.device)
    tokens = torch.unique(torch.cat([proposed, best.leading]))
    made = [streams.alone(part, place, before, weights)[1] for part in best.parts(tokens)]
    left = (torch.cat(made) - target).float()
    nearest: Tensor = tokens[left.norm(dim=1).argmin(), None]
    last = best.drawn(_VARIED, [place])[:, place]
    for _ in range(_TIMES if unknown else 0):
        whiten = best.whitening(unknown, [place], last)
        nearest = last = tokens[(left @ whiten).norm(dim=1).argmin(), None]
    return nearest
