"""Hooks on one block: read what attention makes of the residual stream, or take a residual away.

Which way a block adds its attention, one after the other (Llama, GPT-2, Gemma) or beside the MLP
(GPT-J, GPT-NeoX, Falcon), is read from the inputs of its sub-modules while it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tokinfo.models.structure import Block, StructureError


class Reached(Exception):
    """Leaves the decoder's forward at the site, carrying the activations."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.activations = activations


def first(output: Any) -> Tensor:
    """Return a sub-layer's hidden states; many return them in a tuple with attention weights."""
    tensor = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(tensor, Tensor):
        raise StructureError(f"a sub-module of a block returns a {type(tensor).__name__}")
    return tensor


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states a module is called with; raises StructureError without any."""
    tensor = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(tensor, Tensor):
        raise StructureError("a sub-module of a block is called without hidden states")
    return tensor


def add(hooks: ExitStack, handle: Any) -> None:
    """Remove a hook when ``hooks`` is left."""
    remove: Callable[[], None] = handle.remove
    hooks.callback(remove)


def stop_at(module: nn.Module, hooks: ExitStack) -> None:
    """Leave the forward with the output of a module."""

    def reached(_: nn.Module, __: Any, output: Any) -> None:
        raise Reached(first(output))

    add(hooks, module.register_forward_hook(reached))


def stop_at_mlp(module: nn.Module, hooks: ExitStack) -> None:
    """Leave the forward with the output of the MLP alone.

    Some (Bloom, MPT) take the residual stream too and return the sum: those are refused.
    """

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        if _takes_residual(args, kwargs):
            raise StructureError(
                f"{type(module).__name__}: is given the residual stream and adds to it itself, so "
                "the MLP's own output is nowhere returned"
            )

    add(hooks, module.register_forward_pre_hook(enter, with_kwargs=True))
    stop_at(module, hooks)


def stop_after_attention(block: Block, hooks: ExitStack) -> None:
    """Leave the forward with the residual stream after a block's attention has been added.

    A norm or dropout of attention's output (the norm behind attention of Gemma 2) still belongs
    to attention. The input of the next sub-module is the stream as the block has added it up,
    unless it is a tensor from before attention. Then the MLP runs beside attention, the block
    nowhere holds the sum of its input and attention alone, and the sum is formed here. An
    attention that takes the residual too (Bloom) returns the sum.
    """
    attention = block.attention
    before: list[Tensor] = []  # the block's input, and what sub-modules returned before attention
    added: list[Tensor] = []  # attention's output, behind its norm or dropout

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        before[:] = [given(args, kwargs)]

    def attended(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        added[:] = [first(output)]
        if _takes_residual(args, kwargs):
            raise Reached(added[0])

    def entering(_: nn.Module, args: Any, kwargs: Any) -> None:
        if not added:
            return
        new = given(args, kwargs)
        if _same(new, added[0]):
            return
        if any(_same(new, old) for old in before):
            raise Reached(before[0] + added[0])
        raise Reached(new.reshape(before[0].shape))  # OPT's MLP sees positions without rows

    def left(_: nn.Module, __: Any, output: Any) -> None:
        if added:
            added[:] = [first(output)]
        else:
            before.append(first(output))

    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        raise Reached(before[0] + added[0])

    add(hooks, block.module.register_forward_pre_hook(enter, with_kwargs=True))
    add(hooks, block.module.register_forward_hook(leave))
    for child in block.module.children():
        if child is attention:
            add(hooks, child.register_forward_hook(attended, with_kwargs=True))
        else:
            # In front of the hook of `drop_residual`, which replaces the block's tensor.
            add(
                hooks,
                child.register_forward_pre_hook(entering, with_kwargs=True, prepend=True),
            )
            add(hooks, child.register_forward_hook(left))


def drop_residual(block: Block, hooks: ExitStack) -> None:
    """Make a block compute ``attn(norm(x))`` where it computes ``x + attn(norm(x))``.

    The block gets zeros, and each sub-module that would get the block's input (the norm before
    attention) gets the real one. The residual then adds exactly nothing; to subtract x afterwards
    would round. Where attention and MLP run side by side they share one residual, and that one is
    removed: ``attn(norm(x)) + mlp(norm(x))``.
    """
    real: list[Tensor] = []
    zeros: list[Tensor] = []
    restored: list[nn.Module] = []

    def zero(_: nn.Module, args: Any, kwargs: Any) -> Any:
        real[:] = [given(args, kwargs)]
        zeros[:] = [torch.zeros_like(real[0])]
        return _replaced(args, kwargs, zeros[0])

    def restore(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not _same(given(args, kwargs), zeros[0]):
            return None
        restored.append(module)
        return _replaced(args, kwargs, real[0].reshape(given(args, kwargs).shape))

    def check(_: nn.Module, __: Any, ___: Any) -> None:
        if not restored:
            raise StructureError(
                f"{type(block.module).__name__}: no sub-module before attention is given the "
                "block's own input, so its residual cannot be removed"
            )

    add(hooks, block.module.register_forward_pre_hook(zero, with_kwargs=True))
    for child in block.module.children():
        add(hooks, child.register_forward_pre_hook(restore, with_kwargs=True))
    add(hooks, block.attention.register_forward_hook(check, prepend=True))


def _takes_residual(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a sub-layer is called with a second tensor of the hidden states' shape."""
    shape = given(args, kwargs).shape
    others = (*args, *kwargs.values())
    return sum(isinstance(other, Tensor) and other.shape == shape for other in others) > 1


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same memory, in one shape or another."""
    return a is b or (a.data_ptr() == b.data_ptr() and a.numel() == b.numel())


def _replaced(args: tuple[Any, ...], kwargs: dict[str, Any], new: Tensor) -> Any:
    if args:
        return (new, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": new}
