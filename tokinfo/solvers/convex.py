"""Hidden tokens behind the first block: a convex problem once attention's returns are known.

1. What attention returned at each visible position is read off the activations
   (`tokinfo.solvers.inversion`).
2. Mixtures of hidden tokens that explain these returns are found by columns, from the whole
   vocabulary (`tokinfo.solvers.columns`). After every round the likeliest token of each position
   goes through the model: a prompt that matches to within the noise floor proves itself, long
   before the mixtures are sharp. Returns that could not be read at first are read from what the
   mixtures predict.
3. Where that comes to rest, single tokens are swapped within the final lists, and visible tokens
   that are not known are mended. Then the one that fits its activations least is sought with the
   hidden ones, and its position is no longer read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokinfo.models.structure import StructureError, find_block
from tokinfo.probe.attention import FirstAttention
from tokinfo.solvers.best import Best
from tokinfo.solvers.columns import Columns
from tokinfo.solvers.inversion import Inversion, Returned
from tokinfo.solvers.problem import Problem

_SAMPLES = 1024
"""Random prompts that attention's returns are measured in, beyond as many as it has components."""
_COMMON = 128
"""Tokens whose mean effect stands for an unknown one at first."""
_FEW, _MANY = 3, 32
"""Searches begun for what attention returned at a position; and where none was found anywhere."""
_RESTED, _FALLS = 6, 0.9
"""Rounds after which a search has come to rest, where they did not leave less than this share."""


def first_attention(problem: Problem) -> FirstAttention | None:
    """Return the first block's attention where the search applies, else None.

    It does where attention can be taken apart, the block computes in float32, a sliding window
    spans the prompts, and attention returns no more components than there are activations.
    """
    try:
        attention = FirstAttention(problem.probe)
    except StructureError:
        return None
    block = find_block(problem.probe.decoder, 1).module
    if any(one.dtype != torch.float32 for one in (*block.parameters(), *block.buffers())):
        return None
    if attention.reach is not None and attention.reach < int(problem.layout.seen.max()):
        return None
    one = attention.attended(problem.decoder.embedding[:1][None])
    return attention if one.numel() <= problem.target.shape[-1] else None


def search(best: Best, attention: FirstAttention) -> None:
    """Search until the prompt is certified, the mixtures rest or time is up.

    Args:
        best: the prompt so far; the better ones are kept there.
        attention: of the first block; its sliding window spans the prompt.
    """
    best.doubting(lambda unknown, judges: _mixed(best, attention, unknown, judges))


def _mixed(
    best: Best, attention: FirstAttention, unknown: list[int], judges: list[int]
) -> int | None:
    """Mix tokens at unknown positions until the mixtures rest.

    Args:
        best: the prompt so far.
        attention: of the first block.
        unknown: positions that are sought.
        judges: visible positions behind the first hidden one, whose tokens are taken for right.

    Returns:
        The judge whose token is most likely wrong; None: certified, out of time, or all are known.
    """
    decoder, table = best.problem.decoder, best.embedding
    common = torch.randperm(len(best.leading), generator=best.random)[:_COMMON]
    columns = Columns(
        attention,
        table[decoder.ids],
        table[best.ids[: best.length]],
        unknown,
        judges,
        common.to(table.device),
    )
    inversion = Inversion(
        attention,
        torch.tensor(judges, device=table.device),
        table[best.ids[judges]],
        best.problem.target[0, judges],
        _samples(best, attention, unknown, judges),
        best.problem.watch,
    )
    returned: dict[int, Returned] = {}
    for starts in (_FEW, _MANY):
        for number, place in enumerate(() if returned else judges):
            found = inversion.start(number, starts)
            if found is not None:
                returned[place] = found
    if not returned:
        return None
    left: list[float] = []
    for number_of_round in range(best.settings.rounds):
        best.rounds += 1
        left.append(columns.round(returned))
        prompt = best.ids.clone()
        prompt[unknown] = decoder.ids[columns.best()]
        best.keep(prompt)
        if best.certified or best.late():
            return None
        predicted = columns.predicted()
        for number, place in enumerate(judges if number_of_round else ()):
            if place not in returned:
                found = inversion.search(number, predicted[number])
                if found is not None:
                    returned[place], left = found, []
        if len(left) > _RESTED and left[-1] > _FALLS * left[-1 - _RESTED]:
            break
    ranked = columns.ranked(best.settings.shortlist)
    best.swap({place: decoder.ids[one] for place, one in zip(unknown, ranked, strict=True)})
    best.mend()
    doubtful = [number for number, place in enumerate(judges) if not best.given[place]]
    if best.certified or best.late() or not doubtful:
        return None
    misfit = inversion.left(predicted)
    return judges[max(doubtful, key=lambda number: misfit[number])]


def _samples(
    best: Best, attention: FirstAttention, unknown: list[int], judges: list[int]
) -> Tensor:
    """Return attention's returns [sample, judge, component] in prompts drawn at random."""
    one = attention.attended(best.embedding[best.ids[None, :1]])[0, 0]
    prompts = best.drawn(_SAMPLES + one.numel(), unknown)
    return best.batcher.map(
        lambda part: attention.attended(best.embedding[part])[:, judges].flatten(2), prompts
    )
