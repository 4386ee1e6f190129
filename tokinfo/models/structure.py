"""Where things are inside a decoder: its blocks, and attention and MLP inside a block.

Found from the module tree itself, not from a table of family names. So a new family works when
it is built like the others, and is refused by name when it is not.
`docs/families.md` lists the families that are tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tokinfo.io.errors import TokinfoError

# Self-attention is found by the name of its attribute or class; these cover self_attn,
# self_attention, attention, attn and the mixers' mixing.
_ATTENTION = ("attn", "attention", "mixing")
# The MLP is whatever else holds weights; where several do, the one called like this.
_MLP = ("mlp", "feed_forward", "ffn", "moe")


HELD = "tokinfo_blocks"
"""Key of a config.json: how many blocks the decoder holds, where later ones are left out."""


class StructureError(TokinfoError):
    """A model is not built of a list of blocks with an attention and an MLP inside."""


@dataclass(frozen=True)
class Block:
    """One decoder block.

    Its sub-layers are looked up when they are needed: the output of a block can be read whatever
    is inside.
    """

    module: nn.Module

    @property
    def attention(self) -> nn.Module:
        """The self-attention sub-layer; raises StructureError when it is not recognised."""
        return self._child(self._attentions(), "self-attention")

    @property
    def mlp(self) -> nn.Module:
        """What computes the output of the MLP or mixture of experts.

        OPT keeps the two projections of its MLP in the block itself: there it is the second.

        Raises:
            StructureError: it is not recognised.
        """
        attentions = self._attentions()
        rest = {name: child for name, child in self._weighty().items() if name not in attentions}
        parts = list(rest.values())
        if len(parts) == 2 and all(isinstance(part, nn.Linear) for part in parts):
            up, down = parts
            if (up.in_features, up.out_features) == (down.out_features, down.in_features):
                return down
        if len(rest) > 1:
            rest = {name: child for name, child in rest.items() if _called(name, _MLP)}
        return self._child(rest, "the MLP")

    def _weighty(self) -> dict[str, nn.Module]:
        """Return the sub-modules that hold a matrix: not the norms, dropouts and activations."""
        return {
            name: child
            for name, child in self.module.named_children()
            if any(parameter.ndim > 1 for parameter in child.parameters())
        }

    def _attentions(self) -> dict[str, nn.Module]:
        return {
            name: child
            for name, child in self._weighty().items()
            if _called(name, _ATTENTION) or _called(type(child).__name__.lower(), _ATTENTION)
        }

    def _child(self, found: dict[str, nn.Module], what: str) -> nn.Module:
        if len(found) != 1:
            names = ", ".join(name for name, _ in self.module.named_children())
            raise StructureError(
                f"{type(self.module).__name__}: {len(found)} sub-modules look like {what}; "
                f"it has: {names}"
            )
        (child,) = found.values()
        # One that wraps another together with norms (DBRX) adds the residual itself: what it
        # returns is not the output of a sub-layer.
        parts = dict(child.named_children())
        wraps = any(_called(name, _ATTENTION) and any(p.children()) for name, p in parts.items())
        if wraps and len(parts) > 1:
            raise StructureError(
                f"{type(self.module).__name__}: {type(child).__name__} holds more than {what}: "
                f"{', '.join(parts)}"
            )
        return child


def _called(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name for word in words)


def place_of(table: nn.Embedding) -> torch.device:
    """Return the device that ids are to be on for an embedding.

    Where accelerate holds its weights elsewhere until they are needed, it moves the ids too.
    """
    return torch.device("cpu") if table.weight.is_meta else table.weight.device


def held_blocks(config: object) -> int | None:
    """Return how many blocks a decoder of a configuration holds; None: it does not say."""
    found: int | None = getattr(config, HELD, getattr(config, "num_hidden_layers", None))
    return found


def leave_out_blocks(decoder: nn.Module) -> None:
    """Remove the blocks that a decoder's configuration leaves out.

    The configuration itself stays that of the whole model: some families compute with its depth.
    """
    config: Any = getattr(decoder, "config", None)
    held = getattr(config, HELD, None)
    if held is not None and held < config.num_hidden_layers:
        del find_blocks(decoder, depth=config.num_hidden_layers)[held:]


def find_blocks(decoder: nn.Module, *, depth: int | None = None) -> nn.ModuleList:
    """Return the decoder's list of blocks.

    It is the list that lies in no other (experts and the parts of one block do) and is as long
    as the model is deep by its configuration; without a configuration, the longest. Of several
    that fit, it is the one whose modules hold an attention. ``depth`` is a length to look for
    instead.

    Raises:
        StructureError: no such list exists, or more than one.
    """
    # Of a causal language model, or of one with other parts, the decoder alone.
    inner: nn.Module = getattr(decoder, "get_decoder", lambda: decoder)()
    name = type(decoder).__name__
    lists: dict[str, nn.ModuleList] = {}
    for path, module in inner.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) > 0 and not inside:
            lists[path] = module
    if not lists:
        raise StructureError(f"{name}: no list of decoder blocks was found")
    held = ", ".join(f"{path} ({len(module)})" for path, module in lists.items())
    if depth is None:
        depth = held_blocks(getattr(inner, "config", None))
    if depth is None:
        depth = max(map(len, lists.values()))
    fitting = [module for module in lists.values() if len(module) == depth]
    if len(fitting) > 1:
        fitting = [
            module for module in fitting if any(Block(block)._attentions() for block in module)
        ]
    if len(fitting) != 1:
        raise StructureError(
            f"{name}: {len(fitting)} lists look like its {depth} decoder blocks; it has: {held}"
        )
    return fitting[0]


def blocks_path(decoder: nn.Module) -> str:
    """Return the path of the decoder's list of blocks, such as `layers`; as `find_blocks`."""
    blocks = find_blocks(decoder)
    (path,) = (path for path, module in decoder.named_modules() if module is blocks)
    return str(path)


def find_block(decoder: nn.Module, number: int) -> Block:
    """Return block ``number`` (1-based).

    Raises:
        StructureError: the decoder holds fewer blocks, or its blocks were not found.
    """
    blocks = find_blocks(decoder)
    if not 1 <= number <= len(blocks):
        raise StructureError(
            f"{type(decoder).__name__}: block {number} requested, {len(blocks)} held"
        )
    return Block(blocks[number - 1])
