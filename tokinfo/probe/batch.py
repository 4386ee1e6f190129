"""Prompts as a batch: token ids, what is visible, what is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokinfo.io.errors import InvalidError
from tokinfo.study.masks import Mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Batch:
    """A batch of prompts, padded on the right to one length.

    Attributes:
        ids: int64 [prompt, position].
        lengths: int64 [prompt], tokens of the prompt itself.
        visible: bool [prompt, position], positions whose activations are compared.
        scored: bool [prompt, position], the prompt's own positions.
        seen: int64 [prompt], positions that belong to the sequence the model sees: the
            prompt's own, or all of them when the prompt is padded to n_ctx on purpose.
    """

    ids: Tensor
    lengths: Tensor
    visible: Tensor
    scored: Tensor
    seen: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        return Batch(*(getattr(self, f).to(device) for f in self.__dataclass_fields__))

    def rows(self, index: Tensor) -> Batch:
        """Return the batch with these rows only (a row may repeat)."""
        return Batch(*(getattr(self, f)[index] for f in self.__dataclass_fields__))


def encode(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Return each prompt's token ids, special tokens as the tokenizer itself adds them."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(prompts))]


def make_batch(
    token_ids: Sequence[Sequence[int]], mask: Mask, *, pad_id: int, pad_to: int | None = None
) -> Batch:
    """Pad prompts to one length and say what is visible.

    Without ``pad_to`` the mask applies to each prompt's own positions and padding is an
    artefact of batching: never visible, never scored. With ``pad_to`` (the published
    arrangement) the prompt is a sequence of that length, pads included: the mask applies to
    all of it, so trailing pads are visible where it says so; only the prompt's own positions
    are scored.

    Raises:
        ValueError: a prompt is empty, longer than ``pad_to``, or shows no position.
    """
    lengths = [len(ids) for ids in token_ids]
    width = pad_to if pad_to is not None else max(lengths)
    ids = torch.full((len(token_ids), width), pad_id, dtype=torch.int64)
    visible = torch.zeros(len(token_ids), width, dtype=torch.bool)
    for row, (tokens, length) in enumerate(zip(token_ids, lengths, strict=True)):
        if not 0 < length <= width:
            raise InvalidError(f"prompt {row}: {length} tokens, allowed: 1 to {width}")
        ids[row, :length] = torch.tensor(tokens)
        shown = mask.visible(width if pad_to is not None else length)
        if not shown:
            raise InvalidError(f"prompt {row}: mask {mask.text!r} shows none of {length} positions")
        visible[row, shown] = True
    count = torch.tensor(lengths)
    return Batch(
        ids=ids,
        lengths=count,
        visible=visible,
        scored=torch.arange(width) < count[:, None],
        seen=count if pad_to is None else torch.full_like(count, width),
    )
