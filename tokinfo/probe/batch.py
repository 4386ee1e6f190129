"""Prompts as a batch: token ids, what is visible, what is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokinfo.io.errors import InvalidError
from tokinfo.study.masks import Mask, Spans

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Layout:
    """A batch of prompts without its tokens.

    Attributes:
        lengths: int64 [prompt], tokens of the prompt itself.
        visible: bool [prompt, position], positions whose activations are compared.
        scored: bool [prompt, position], the prompt's own positions.
        seen: int64 [prompt], positions that belong to the sequence the model sees: the
            prompt's own, or all of them when the prompt is padded to n_ctx on purpose.
        pad_id: the token that stands where nothing else does.
    """

    lengths: Tensor
    visible: Tensor
    scored: Tensor
    seen: Tensor
    pad_id: int

    def to(self, device: torch.device) -> Layout:
        """Return the layout on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def rows(self, index: Tensor) -> Layout:
        """Return the layout of these rows only (a row may repeat)."""
        return self._each(lambda tensor: tensor[index])

    def padded(self, ids: Tensor) -> Tensor:
        """Return tokens [prompt, position], padding where the model sees no position."""
        place = torch.arange(ids.shape[1], device=ids.device)
        return torch.where(place < self.seen[:, None], ids, self.pad_id)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Layout:
        return Layout(
            lengths=change(self.lengths),
            visible=change(self.visible),
            scored=change(self.scored),
            seen=change(self.seen),
            pad_id=self.pad_id,
        )


@dataclass(frozen=True)
class Batch:
    """A batch of prompts with its tokens, padded on the right to one length.

    Attributes:
        ids: int64 [prompt, position].
        layout: everything else.
    """

    ids: Tensor
    layout: Layout

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        return Batch(self.ids.to(device), self.layout.to(device))

    def rows(self, index: Tensor) -> Batch:
        """Return the batch with these rows only (a row may repeat)."""
        return Batch(self.ids[index], self.layout.rows(index))


def make_batch(
    token_ids: Sequence[Sequence[int]],
    mask: Mask,
    *,
    pad_id: int,
    pad_to: int | None = None,
    spans: Sequence[Spans] | None = None,
) -> Batch:
    """Pad prompts to one length and mark what is visible.

    Without ``pad_to`` the mask applies to each prompt's own positions and padding is an
    artefact of batching: never visible, never scored. With ``pad_to`` (the published
    arrangement) the prompt is a sequence of that length, pads included: the mask applies to
    all of it, so trailing pads are visible where it includes them; only the prompt's own
    positions are scored. A mask of roles needs ``spans``, one for each prompt.

    Raises:
        ValueError: a prompt is empty, longer than ``pad_to``, has no visible position, or lacks a
            role that the mask hides.
    """
    lengths = [len(ids) for ids in token_ids]
    width = pad_to if pad_to is not None else max(lengths)
    ids = torch.full((len(token_ids), width), pad_id, dtype=torch.int64)
    visible = torch.zeros(len(token_ids), width, dtype=torch.bool)
    for row, (tokens, length) in enumerate(zip(token_ids, lengths, strict=True)):
        if not 0 < length <= width:
            raise InvalidError(f"prompt {row}: {length} tokens, allowed: 1 to {width}")
        ids[row, :length] = torch.tensor(tokens)
        of = None if spans is None else spans[row]
        positions = mask.visible(width if pad_to is not None else length, of)
        if not positions:
            raise InvalidError(
                f"prompt {row}: mask {mask.text!r} leaves none of {length} positions visible"
            )
        visible[row, positions] = True
    count = torch.tensor(lengths)
    layout = Layout(
        lengths=count,
        visible=visible,
        scored=torch.arange(width) < count[:, None],
        seen=count if pad_to is None else torch.full_like(count, width),
        pad_id=pad_id,
    )
    return Batch(ids, layout)
