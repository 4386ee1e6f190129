"""Visible tokens that are not known, read from their own activations.

A visible position's activations depend most on its own token. What unknown tokens before it may
add is measured in random prompts: directions in which those differ count less.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokinfo.probe.streams import Entries, Streams, joined
from tokinfo.solvers.best import PROMPTS, Best, whitening

_COMPANY = 64
"""Tokens that stand for an unknown one, all equally likely."""
_PART = 512
"""Candidates that go through the model at a time."""
_VARIED = 16
"""Tokens at a visible position that it is measured for."""


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
            drawn = torch.randperm(len(best.leading), generator=best.random)[:_COMPANY]
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
    tokens = torch.unique(torch.cat([best.proposed[place], best.leading]))
    made = []
    for part in torch.split(tokens, _PART):
        best.problem.watch.check(len(part))
        made.append(streams.alone(best.embedding[part], place, before, weights)[1])
    best.evaluations += len(tokens)
    left = (torch.cat(made) - target).float()
    nearest: Tensor = tokens[left.norm(dim=1).argmin(), None]
    for first in (True, False) if unknown else ():
        whiten = _whitening(best, unknown, place, None if first else nearest)
        nearest = tokens[(left @ whiten).norm(dim=1).argmin(), None]
    return nearest


def _whitening(best: Best, unknown: list[int], place: int, tokens: Tensor | None = None) -> Tensor:
    """Return the whitening of what random tokens at unknown positions change at a later one.

    Args:
        best: the prompt so far.
        unknown: positions before the later one.
        place: the later one.
        tokens: int64 [token] that stand there; None: random ones.
    """
    if tokens is None:
        tokens = best.drawn(_VARIED, [place])[:, place]
    prompts = best.drawn(PROMPTS // len(tokens) * len(tokens), unknown)[:, : place + 1]
    prompts[:, place] = tokens.repeat(len(prompts) // len(tokens))
    best.evaluations += len(prompts)

    def seen(part: Tensor) -> Tensor:
        return best.problem.probe(best.embedding[part])[:, place].float()

    with torch.no_grad():
        made = best.batcher.map(seen, prompts)
    made = made.view(-1, len(tokens), made.shape[-1])
    return whitening((made - made.mean(0)).flatten(0, 1))
