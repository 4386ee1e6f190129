"""Scores: which of the true tokens a solver found, position by position."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from tokinfo.solvers.decoding import Decoder


def found_unordered(found: list[int], true: list[int], visible: list[bool]) -> list[bool]:
    """Say of each true token whether it was found, at its position or at any other.

    A found token counts once: exact places are matched first, then what is left over, from left to
    right, visible tokens before hidden ones. So no hidden token is credited with what the search
    read of a visible copy of it.

    >>> found_unordered([7, 5, 5], [5, 7, 9], [True] * 3)
    [True, True, False]
    >>> found_unordered([9, 5, 8], [5, 8, 5], [False, True, True])
    [False, True, True]
    """
    exact = [a == b for a, b in zip(found, true, strict=True)]
    spare = Counter(token for token, hit in zip(found, exact, strict=True) if not hit)
    result = list(exact)
    for position in sorted(range(len(true)), key=lambda position: not visible[position]):
        if not result[position] and spare[true[position]] > 0:
            spare[true[position]] -= 1
            result[position] = True
    return result


def prompt_scores(found: list[int], true: list[int]) -> tuple[bool, float, float] | None:
    """Return how well the tokens in question were found, as papers on attacks count it.

    Args:
        found: tokens found at their positions, in order.
        true: the true ones there.

    Returns:
        whether all are right; the F1 of the two as bags, which is the share of the true tokens that
        are in both (they are as many); and 1 - d / n with their Levenshtein distance d over their
        number n. None: no token is in question.

    >>> prompt_scores([1, 2, 3], [2, 3, 1])
    (False, 1.0, 0.33333333333333337)
    """
    if not true:
        return None
    shared = sum((Counter(found) & Counter(true)).values())
    return found == true, shared / len(true), 1 - _edits(found, true) / len(true)


def _edits(one: list[int], other: list[int]) -> int:
    """Return the Levenshtein distance of two sequences (V. Levenshtein, 1966)."""
    last = list(range(len(other) + 1))
    for row, token in enumerate(one, 1):
        current = [row]
        for column, right in enumerate(other, 1):
            current.append(
                min(last[column] + 1, current[-1] + 1, last[column - 1] + (token != right))
            )
        last = current
    return last[-1]


def published_reference(decoder: Decoder, ids: Tensor, noise: float, seed: int) -> Tensor:
    """Return the tokens the published score compared with, [row, position].

    The published code re-decoded its reference from the true embedding plus ``noise`` times
    a standard normal; at small embedding scales that changes most tokens. Only the
    published score uses it.
    """
    embedded = decoder.embedding[ids]
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(embedded.shape, generator=generator).to(embedded)
    return decoder.top(embedded + noise * shift, k=1)[..., 0]


def verdict(
    residual: float, true_loss: float, floor: float, *, within: bool, explained: bool = True
) -> str:
    """Judge a found prompt by its activations.

    Args:
        residual: distance of the found TOKENS' activations to the target.
        true_loss: the same for the true prompt.
        floor: the prompt's noise floor.
        within: whether it explains the target, see `tokinfo.solvers.problem.Problem.judged`.
        explained: whether the target is the true prompt's activations, which it explains; false
            for a control's target, which perhaps no prompt explains.

    Returns:
        ``certified`` when the found prompt explains the target to within the floor, ``search
        failure`` when it is worse than the true one by more than the floor, or too far off at one
        position (the solver is to blame, not the model), and ``undecided`` in between. Of a control
        that is not certified, ``unexplained``: there may be nothing to find, so no search can be
        blamed.
    """
    if within:
        return "certified"
    if not explained:
        return "unexplained"
    # In this order a residual that is no number is a failure.
    return "undecided" if floor < residual <= true_loss + floor else "search failure"
