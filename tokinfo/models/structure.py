"""Where things are inside a decoder: its blocks, and attention and MLP inside a block.

Found from the module tree itself, not from a table of family names, so that a family nobody
thought of works when it is built like the others, and is refused by name when it is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

# Sub-layers are known by what their attribute is called; these cover self_attn, attention,
# attn, self_attention and the mixers' mixing; mlp, feed_forward and ffn.
_ATTENTION = ("attn", "attention", "mixing")
_MLP = ("mlp", "feed_forward", "ffn")


class StructureError(ValueError):
    """A model is not built of a list of blocks with an attention and an MLP inside."""


@dataclass(frozen=True)
class Block:
    """One decoder block and its two sub-layers."""

    module: nn.Module
    attention: nn.Module
    mlp: nn.Module


def find_blocks(decoder: nn.Module) -> nn.ModuleList:
    """Return the decoder's list of blocks: its longest list of modules of one class.

    Raises:
        StructureError: no such list exists.
    """
    lists = [
        module
        for module in decoder.modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    if not lists:
        raise StructureError(f"{type(decoder).__name__}: no list of decoder blocks was found")
    return max(lists, key=len)


def _child(block: nn.Module, words: tuple[str, ...], what: str) -> nn.Module:
    found = [
        child
        for name, child in block.named_children()
        if any(word in name for word in words) and "norm" not in name and "dropout" not in name
    ]
    if len(found) != 1:
        names = ", ".join(name for name, _ in block.named_children())
        raise StructureError(
            f"{type(block).__name__}: {len(found)} sub-modules look like {what}; it has: {names}"
        )
    return found[0]


def find_block(decoder: nn.Module, number: int) -> Block:
    """Return block ``number`` (1-based) with its attention and MLP.

    Raises:
        StructureError: the decoder holds fewer blocks, or a sub-layer is not recognised.
    """
    blocks = find_blocks(decoder)
    if not 1 <= number <= len(blocks):
        raise StructureError(
            f"{type(decoder).__name__}: block {number} asked for, {len(blocks)} held"
        )
    block = blocks[number - 1]
    return Block(block, _child(block, _ATTENTION, "self-attention"), _child(block, _MLP, "the MLP"))
