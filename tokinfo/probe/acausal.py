"""Attention without its causal mask: the arguments for a decoder, and whether they work."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokinfo.io.errors import first_line
from tokinfo.models.structure import StructureError

_FULL, _SLIDING = "full_attention", "sliding_attention"


def arguments(decoder: nn.Module, embeddings: Tensor, lengths: Tensor | None) -> dict[str, Any]:
    """Return the arguments that let each position attend to later ones as to earlier ones.

    Args:
        decoder: a decoder of attention blocks.
        embeddings: [batch, position, d_model].
        lengths: [batch] real positions of each row; None: all of them.

    Raises:
        StructureError: the decoder has a kind of attention that is neither full nor sliding.
    """
    found: dict[str, Any] = {"attention_mask": _masks(decoder, embeddings, lengths)}
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        # Some (OPT) count positions in the mask, which is not of the shape they count in.
        found["position_ids"] = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
    return found


def _masks(
    decoder: nn.Module, embeddings: Tensor, lengths: Tensor | None
) -> Tensor | dict[str, Tensor]:
    """Return an additive mask [batch, 1, position, position], or one for each kind of block."""
    config = getattr(decoder, "config", None)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        kinds = {_FULL if window is None else _SLIDING}
    if unknown := kinds - {_FULL, _SLIDING}:
        raise StructureError(
            f"{type(decoder).__name__}: without a causal mask {min(unknown)} has no meaning"
        )
    masks = {
        kind: _mask(embeddings, lengths, window if kind == _SLIDING else None) for kind in kinds
    }
    return masks if len(masks) > 1 else masks.popitem()[1]


def _mask(embeddings: Tensor, lengths: Tensor | None, window: int | None) -> Tensor:
    batch, positions, _ = embeddings.shape
    place = torch.arange(positions, device=embeddings.device)
    hidden = torch.zeros(batch, positions, positions, dtype=torch.bool, device=embeddings.device)
    if window is not None:
        hidden |= (place[:, None] - place).abs() >= window
    if lengths is not None:
        hidden |= (place >= lengths[:, None])[:, None, :]
    mask = torch.zeros(hidden.shape, dtype=embeddings.dtype, device=embeddings.device)
    return mask.masked_fill(hidden, torch.finfo(embeddings.dtype).min)[:, None]


def check(decoder: nn.Module, probe: Callable[[Tensor], Tensor]) -> None:
    """Run it on two positions: the first must see the second.

    Args:
        decoder: what is probed.
        probe: embeddings [batch, position, d_model] to activations, without a causal mask.

    Raises:
        StructureError: the decoder cannot be called so, or stays causal all the same (a mixer,
            GPT-Neo).
    """
    name = f"{type(decoder).__name__}: cannot be probed without a causal mask"
    table: nn.Embedding = decoder.get_input_embeddings()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 2, table.embedding_dim, generator=generator).to(table.weight.device)
    pair[1, 0] = pair[0, 0]
    try:
        with torch.no_grad():
            found = probe(pair)
    except StructureError:
        raise
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise StructureError(f"{name}: it takes no such mask ({reason})") from error
    if torch.equal(found[0, 0], found[1, 0]):
        raise StructureError(f"{name}: its first position does not see the second all the same")
