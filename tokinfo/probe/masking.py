"""Masks of one's own for a decoder: which position sees which, for each kind of block."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokinfo.models.structure import StructureError

_FULL, _SLIDING = "full_attention", "sliding_attention"


def arguments(
    decoder: nn.Module, positions: Tensor, mask: Callable[[int | None], Tensor]
) -> dict[str, Any]:
    """Return the arguments that give a decoder these positions and masks.

    Args:
        decoder: a decoder of attention blocks.
        positions: int64 [entry], the position of each entry of the sequence.
        mask: the additive mask [batch, 1, query, key] of blocks with a sliding window of so many
            positions; None: of blocks without one.

    Returns:
        ``attention_mask``, a dict of masks where the decoder has more than one kind of block, and
        ``position_ids`` where its forward takes them.

    Raises:
        StructureError: the decoder has a kind of attention that is neither full nor sliding.
    """
    config = getattr(decoder, "config", None)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        kinds = {_FULL if window is None else _SLIDING}
    if unknown := kinds - {_FULL, _SLIDING}:
        raise StructureError(
            f"{type(decoder).__name__}: {min(unknown)} takes no mask of which position sees which"
        )
    masks = {kind: mask(window if kind == _SLIDING else None) for kind in kinds}
    found: dict[str, Any] = {"attention_mask": masks if len(masks) > 1 else masks.popitem()[1]}
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        # Some (OPT) count positions in the mask, which is not of the shape they count in.
        found["position_ids"] = positions[None]
    return found
