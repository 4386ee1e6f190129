"""The probe: a decoder and a site, as a function from embeddings to activations.

The decoder's own forward runs, on embeddings instead of tokens, and is left as soon as the
site is reached: block K costs K blocks. Nothing of the model is re-implemented here, so what
is read is what the model computes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokinfo.models.structure import Block, find_block
from tokinfo.sites import Site


class _Reached(Exception):
    """Leaves the decoder's forward at the site, carrying the activations."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.activations = activations


def _first(output: Any) -> Tensor:
    """Return a sub-layer's hidden states; many return them in a tuple with attention weights."""
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


def _replace_input(args: tuple[Any, ...], kwargs: dict[str, Any], new: Tensor) -> Any:
    if args:
        return (new, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": new}


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    tensor = args[0] if args else kwargs["hidden_states"]
    assert isinstance(tensor, Tensor)
    return tensor


@dataclass(frozen=True)
class Prefix:
    """Leading positions, computed once: their activations, and what later ones need of them.

    Attributes:
        activations: [1 or row, position, width] at the site.
        layers: keys and values of each block up to the site's.
    """

    activations: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]


def _new_cache(decoder: nn.Module) -> Any:
    """Return an empty cache: the decoder's own kind, or that of `transformers`."""
    own = getattr(decoder, "new_cache", None)
    if own is not None:
        return own()
    from transformers import DynamicCache

    return DynamicCache(config=decoder.config)  # type: ignore[arg-type]


class Probe:
    """Activations of one decoder at one site.

    Sites: ``embedding`` is the input itself; ``attention.K`` the hidden states after the
    self-attention sub-layer of block K (with its residual; without it, the sub-layer's own
    output); ``mlp.K`` the MLP's own output, before it is added back; ``block.K`` the output
    of block K, before any final normalisation.

    Args:
        decoder: a decoder called as ``decoder(inputs_embeds=..., attention_mask=...,
            use_cache=False)``, in evaluation mode.
        site: a resolved site (no ``last``).
        residual: False removes the residual connection around the self-attention of the
            site's own block; its normalisation still sees the block's real input.
        causal: False lets every position attend to every other. Only for attention models;
            a mixer is causal by construction.
        dtype: what the decoder computes in; embeddings of any dtype are cast to it.

    Raises:
        StructureError: the decoder's blocks or sub-layers were not recognised.
    """

    def __init__(
        self,
        decoder: nn.Module,
        site: Site,
        *,
        residual: bool = True,
        causal: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.decoder = decoder
        self.site = site
        self.residual = residual
        self.causal = causal
        self.dtype = dtype
        self._block: Block | None = None
        if site.place != "embedding":
            self._block = find_block(decoder, site.block)

    def __call__(
        self,
        embeddings: Tensor,
        lengths: Tensor | None = None,
        *,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Return the activations of a batch of embedded prompts.

        Args:
            embeddings: [batch, position, d_model]; rows shorter than the batch are padded
                on the right, where a causal model cannot see them.
            lengths: [batch] tokens of each row; needed without a causal mask, where padding
                would otherwise be seen.
            prefix: what stands before ``embeddings`` in every row, computed once by
                `prefix`; causal probes only.

        Returns:
            [batch, position, width], width = d_model at every site of today.
        """
        if self._block is None:
            return embeddings
        embeddings = embeddings.to(self.dtype)
        with ExitStack() as hooks:
            self._hook(self._block, hooks)
            try:
                self.decoder(
                    inputs_embeds=embeddings,
                    attention_mask=None if self.causal else _see_all(embeddings, lengths),
                    **self._cached(prefix, len(embeddings)),
                )
            except _Reached as reached:
                return reached.activations
        raise RuntimeError(f"the forward of {type(self.decoder).__name__} never met {self.site}")

    def prefix(self, embeddings: Tensor) -> Prefix:
        """Compute the leading positions of many rows once.

        Args:
            embeddings: [1 or row, position, d_model]; at least one position. One row serves
                a batch of any size, several serve a batch of as many.

        Raises:
            ValueError: the probe is not causal, so no position is settled before the last.
        """
        if not self.causal:
            raise ValueError("without a causal mask no leading position can be computed once")
        if self._block is None:
            return Prefix(embeddings.detach(), ())
        cache = _new_cache(self.decoder)
        with torch.no_grad(), ExitStack() as hooks:
            self._hook(self._block, hooks)
            try:
                self.decoder(
                    inputs_embeds=embeddings.to(self.dtype), past_key_values=cache, use_cache=True
                )
            except _Reached as reached:
                layers = cache.layers[: self.site.block]
                return Prefix(
                    reached.activations, tuple((layer.keys, layer.values) for layer in layers)
                )
        raise RuntimeError(f"the forward of {type(self.decoder).__name__} never met {self.site}")

    def _cached(self, prefix: Prefix | None, rows: int) -> dict[str, Any]:
        if prefix is None:
            return {"use_cache": False}
        cache = _new_cache(self.decoder)
        for index, (keys, values) in enumerate(prefix.layers):
            # Views: rows share the prefix until the block joins their own positions to it.
            cache.update(
                keys.expand(rows, *keys.shape[1:]), values.expand(rows, *values.shape[1:]), index
            )
        return {"past_key_values": cache, "use_cache": True}

    def _hook(self, block: Block, hooks: ExitStack) -> None:
        place = self.site.place
        if place == "attention":
            entered: list[Tensor] = []

            def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
                entered.append(_input(args, kwargs))

            def after_attention(_: nn.Module, __: Any, output: Any) -> None:
                out = _first(output)
                raise _Reached(entered[0] + out if self.residual else out)

            _add(hooks, block.module.register_forward_pre_hook(enter, with_kwargs=True))
            _add(hooks, block.attention.register_forward_hook(after_attention))
            return
        if not self.residual:
            _drop_attention_residual(block.module, hooks)

        def reached(_: nn.Module, __: Any, output: Any) -> None:
            raise _Reached(_first(output))

        _add(hooks, (block.mlp if place == "mlp" else block.module).register_forward_hook(reached))


def _add(hooks: ExitStack, handle: Any) -> None:
    remove: Callable[[], None] = handle.remove
    hooks.callback(remove)


def _drop_attention_residual(block: nn.Module, hooks: ExitStack) -> None:
    """Make a pre-norm block compute ``attn(norm(x))`` where it computes ``x + attn(norm(x))``.

    The block is handed zeros, and its first sub-module (the normalisation before attention)
    the real input: the residual then adds exactly nothing, and no rounding is introduced as
    it would be by subtracting x afterwards.
    """
    held: list[Tensor] = []

    def zero(_: nn.Module, args: Any, kwargs: Any) -> Any:
        held.append(_input(args, kwargs))
        return _replace_input(args, kwargs, torch.zeros_like(held[0]))

    def restore(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return _replace_input(args, kwargs, held.pop()) if held else None

    _add(hooks, block.register_forward_pre_hook(zero, with_kwargs=True))
    for child in block.children():
        _add(hooks, child.register_forward_pre_hook(restore, with_kwargs=True))


def _see_all(embeddings: Tensor, lengths: Tensor | None) -> Tensor:
    """Return an additive mask [batch, 1, position, position]: every real position is seen."""
    batch, positions, _ = embeddings.shape
    mask = torch.zeros(
        batch, 1, positions, positions, dtype=embeddings.dtype, device=embeddings.device
    )
    if lengths is not None:
        beyond = torch.arange(positions, device=embeddings.device) >= lengths[:, None]
        mask = mask.masked_fill(beyond[:, None, None, :], torch.finfo(embeddings.dtype).min)
    return mask
