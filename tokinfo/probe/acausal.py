"""Attention without its causal mask: the arguments for a decoder, and whether they work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokinfo.io.errors import first_line
from tokinfo.models.structure import StructureError, place_of
from tokinfo.probe import masking


def arguments(decoder: nn.Module, embeddings: Tensor, lengths: Tensor | None) -> dict[str, Any]:
    """Return the arguments that let each position attend to later ones as to earlier ones.

    Args:
        decoder: a decoder of attention blocks.
        embeddings: [batch, position, d_model].
        lengths: [batch] real positions of each row; None: all of them.

    Raises:
        StructureError: the decoder has a kind of attention that is neither full nor sliding.
    """
    positions = torch.arange(embeddings.shape[1], device=embeddings.device)
    return masking.arguments(decoder, positions, lambda window: _mask(embeddings, lengths, window))


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
    pair = torch.randn(2, 2, table.embedding_dim, generator=generator).to(place_of(table))
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
