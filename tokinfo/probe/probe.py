"""The probe: a decoder and a site, as a function from embeddings to activations.

The decoder's own forward runs, on embeddings instead of tokens, and is left as soon as the
site is reached: block K costs K blocks. Nothing of the model is re-implemented here, so what
is read is what the model computes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tokinfo.io.errors import InvalidError, first_line
from tokinfo.models.structure import Block, StructureError, find_block, place_of
from tokinfo.probe import acausal
from tokinfo.probe.hooks import Reached, drop_residual, stop_after_attention, stop_at, stop_at_mlp
from tokinfo.study.sites import Site

_TRIED = 2
"""Positions of the prefix that is tried once, and of what follows it."""
_PACKED = 0.1
"""Share by which a batch may change the activations of packed weights."""


@dataclass(frozen=True)
class Prefix:
    """Leading positions, computed once: their activations, and what later ones need of them.

    Attributes:
        activations: [1 or row, position, width] at the site.
        layers: keys and values of each block up to the site's.
        again: [1 or row, position, d_model] what to run once more with whatever comes later, where
            a block needs something else than keys and values; else None.
    """

    activations: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]
    again: Tensor | None = None

    def rows(self, index: Tensor) -> Prefix:
        """Return the prefix of some rows."""
        return Prefix(
            self.activations[index],
            tuple((keys[index], values[index]) for keys, values in self.layers),
            None if self.again is None else self.again[index],
        )


def _new_cache(decoder: nn.Module) -> Any:
    """Return an empty cache: of the decoder's kind where it has one, else of `transformers`'.

    The latter without a configuration, which would make the blocks with a sliding window forget
    the positions outside it, and with them how many there were; the mask hides those anyway.
    """
    new_cache = getattr(decoder, "new_cache", None)
    if new_cache is not None:
        return new_cache()
    from transformers import DynamicCache

    return DynamicCache()


class Probe:
    """Activations of one decoder at one site.

    Sites:
        ``embedding``: the input itself.
        ``attention.K``: the residual stream of block K once attention has been added to it: the
            block's input plus attention's output. That output is taken behind its norm where a
            family has one there (Gemma 2 and 3); the sum is taken before a norm of it (OPT-350m).
            Where attention and MLP run side by side (GPT-J, GPT-NeoX, Falcon) it is the same sum,
            without the MLP. Without the residual, what attention adds.
        ``mlp.K``: the output of block K's MLP or mixture of experts itself, before a norm behind
            it and before it is added.
        ``block.K``: the output of block K, before any final normalisation.
        ``norm``: the output of the decoder, behind its last block and final norm.
        ``kv.K``, ``kv.A-B``: keys and values as a key-value cache keeps them, keys behind the
            rotary position: of each block the keys of all heads and then the values, block
            behind block.

    Args:
        decoder: a decoder called as ``decoder(inputs_embeds=..., attention_mask=...,
            use_cache=False)``, in evaluation mode.
        site: a resolved site (no ``last``).
        residual: False removes the residual connection around the self-attention of the
            site's block; its normalisation still sees the block's real input. A block that
            runs attention and MLP side by side has one residual around both: that one is removed.
        causal: False lets every position attend to later ones as to earlier ones: to all, or
            within a sliding window to those less than the window away.
        dtype: what the decoder computes in; embeddings of any dtype are cast to it.

    Raises:
        StructureError: the decoder's blocks or sub-layers were not recognised, or it is causal
            whatever mask it is given (a mixer is, by construction).
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
        if site.place == "embedding":
            return
        block = self._block = find_block(decoder, site.block)
        # Looked up now: a sub-layer that is not recognised is refused before anything runs.
        if site.place == "mlp":
            _ = block.mlp
        if site.place == "attention" or not residual:
            _ = block.attention
        if site.place == "kv" and (hasattr(decoder, "new_cache") or not causal or not residual):
            raise StructureError(
                f"{type(decoder).__name__}, {site}: keys and values are read of attention, causal "
                "and with its residual"
            )
        if site.place == "kv":
            self._check_cache()
        if not causal:
            acausal.check(decoder, self)

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
                on the right, where a causal model cannot see the padding.
            lengths: [batch] tokens of each row; needed without a causal mask, where padding
                would otherwise be seen.
            prefix: what stands before ``embeddings`` in every row, computed once by
                `prefix`; causal probes only.

        Returns:
            [batch, position, width]; width is d_model, at the site `embedding` that of the
            embedding (OPT-350m projects it up to d_model).

        Raises:
            StructureError: the block does not do with its sub-layers what the site needs.
        """
        if self._block is None:
            return embeddings
        embeddings = embeddings.to(self.dtype)
        if prefix is not None and prefix.again is not None:
            before = prefix.again.expand(len(embeddings), -1, -1)
            return self(torch.cat([before, embeddings], dim=1))[:, before.shape[1] :]
        return self.run(
            embeddings,
            **self._masked(embeddings, lengths),
            **self._cached(prefix, len(embeddings)),
        )

    def run(self, embeddings: Tensor, **arguments: Any) -> Tensor:
        """Return the activations of a forward with further arguments (masks, positions, a cache).

        Args:
            embeddings: [batch, entry of the sequence, d_model].
            arguments: of the decoder's forward, besides ``inputs_embeds``.

        Returns:
            [batch, entry of the sequence, width].

        Raises:
            StructureError: the block does not do with its sub-layers what the site needs.
        """
        if self._block is None:
            return embeddings
        given = embeddings.to(self.dtype)
        version = given._version
        if self.site.place == "kv":
            arguments = {"past_key_values": _new_cache(self.decoder)} | arguments
            arguments["use_cache"] = True
        with ExitStack() as hooks:
            self._hook(self._block, hooks)
            try:
                out = self.decoder(inputs_embeds=given, **arguments)
                if self.site.place == "norm":
                    return _by_row(out.last_hidden_state, embeddings)
            except Reached as reached:
                if self.site.place == "kv":
                    cache, count = arguments["past_key_values"], embeddings.shape[1]
                    return self._cache_of(cache, count).to(embeddings.device)
                if given._version != version:
                    name = type(self.decoder).__name__
                    raise StructureError(f"{name}: writes into the embeddings given") from None
                return _by_row(reached.activations, embeddings)
        raise StructureError(f"the forward of {type(self.decoder).__name__} never met {self.site}")

    def prefix(self, embeddings: Tensor) -> Prefix:
        """Compute the leading positions of many rows once.

        Where a block keeps something else of them than keys and values, they are computed again
        with the positions that follow.

        Args:
            embeddings: [1 or row, position, d_model]; at least one position. One row serves
                a batch of any size, several serve a batch of as many.

        Raises:
            ValueError: the probe is not causal, so no position is settled before the last.
        """
        if not self.causal:
            raise InvalidError("without a causal mask no leading position can be computed once")
        if self._block is None:
            return Prefix(embeddings.detach(), ())
        if self._remembers:
            return self._remembered(embeddings)
        with torch.no_grad():
            return Prefix(self(embeddings), (), embeddings.detach().to(self.dtype))

    def overflows(self, what: str) -> str:
        """Return the words for activations ``what`` names that are no finite numbers."""
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{what} at {self.site} are not finite in {dtype}; a compute_dtype of a larger range "
            "is the usual cure"
        )

    @property
    def packed(self) -> bool:
        """Whether weights are quantised: LLM.int8 rounds by what is in the batch."""
        config = getattr(self.decoder, "config", None)
        return bool(getattr(config, "quantization_config", None))

    @property
    def tolerance(self) -> float:
        """The most that rounding changes activations, as a share of their norm at a position."""
        share: float = torch.finfo(self.dtype).eps ** 0.5
        return max(share, _PACKED) if self.packed else share

    @cached_property
    def _remembers(self) -> bool:
        """Whether keys and values are all that later positions need of earlier ones; tried once."""
        if hasattr(self.decoder, "new_cache"):
            return True
        table: nn.Embedding = self.decoder.get_input_embeddings()  # type: ignore[operator]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(table.num_embeddings, (1, 2 * _TRIED), generator=generator)
        with torch.no_grad():
            tokens = table(ids.to(place_of(table)))
            before, later = tokens[:, :_TRIED], tokens[:, _TRIED:]
            try:
                whole, alone = self(tokens)[:, _TRIED:], self(later)
                after = self(later, prefix=self._remembered(before))
            except MemoryError:
                raise
            except Exception:  # of any type: a block finds something else in this cache
                return False
        largest = whole.abs().max()
        # A small share of what the prefix does at all, beside the rounding of the activations.
        rounding = _PACKED if self.packed else 8 * torch.finfo(self.dtype).eps
        allowed = 0.01 * (whole - alone).abs().max() + rounding * largest
        return bool((after - whole).abs().max() <= allowed)

    def _remembered(self, embeddings: Tensor) -> Prefix:
        """Return a prefix of keys and values; raises StructureError where they are not kept."""
        assert self._block is not None
        cache = _new_cache(self.decoder)
        with torch.no_grad():
            found = self.run(embeddings, past_key_values=cache, use_cache=True)
        return Prefix(found, self._kept(cache, embeddings.shape[1]))

    def expected(self, embeddings: Tensor, outputs: Tensor) -> Tensor:
        """Return scores of the next token behind prompts, read out through ``outputs``.

        With tied embeddings, and all of its blocks there, these are the model's logits. Elsewhere
        they are those of the `logit lens` (nostalgebraist, 2020): of some use near the last
        block, noise behind the first ones or where the output head is another matrix.

        Args:
            embeddings: [row, position, d_model]; at least one position.
            outputs: [token, d_model], one direction for each token that may come.

        Returns:
            [row, token] scores, larger for what is more likely; equal ones where the decoder's
            output is not of the width of ``outputs``.
        """
        with torch.no_grad():
            out = self.decoder(
                inputs_embeds=embeddings.to(self.dtype), attention_mask=None, use_cache=False
            )
            last: Tensor = out.last_hidden_state[:, -1].to(outputs)
        if last.shape[1] != outputs.shape[1]:
            return outputs.new_zeros(len(last), len(outputs))
        return last @ outputs.T

    def _kept(self, cache: Any, positions: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the keys and values of the blocks up to the site's; all positions are in them."""
        layers = cache.layers[: self.site.block]
        kept = [layer for layer in layers if getattr(layer, "keys", None) is not None]
        if len(kept) < self.site.block or any(x.keys.shape[-2] != positions for x in kept):
            raise StructureError("a block does not keep the keys and values of all positions")
        return tuple((layer.keys, layer.values) for layer in kept)

    def _cache_of(self, cache: Any, count: int) -> Tensor:
        """Return the last ``count`` keys and values [row, position, width] of the site's blocks."""
        found = []
        layers = cache.layers[self.site.first - 1 : self.site.block]
        # A block that keeps nothing, or reads an earlier one's (Gemma 3n), has none at the end.
        if len(layers) <= self.site.block - self.site.first:
            raise StructureError(
                f"{type(self.decoder).__name__}, {self.site}: block {self.site.block} keeps no "
                "keys and values of its own"
            )
        for layer in layers:
            for states in (getattr(layer, "keys", None), getattr(layer, "values", None)):
                if states is None or states.ndim != 4 or states.shape[-2] < count:
                    raise StructureError(
                        "a block does not keep the keys and values of all positions"
                    )
                found.append(states[:, :, -count:].transpose(1, 2).flatten(2))
        return torch.cat([states.to(found[0].device) for states in found], dim=-1)

    def _check_cache(self) -> None:
        """Read the cache of one token; raises StructureError where a block keeps something else."""
        table: nn.Embedding = self.decoder.get_input_embeddings()  # type: ignore[operator]
        try:
            with torch.no_grad():
                self(table(torch.zeros(1, 1, dtype=torch.int64, device=place_of(table))))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise StructureError(
                f"{type(self.decoder).__name__}, {self.site}: has no cache of keys and values in "
                f"each of these blocks ({first_line(error)})"
            ) from error

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

    def _masked(self, embeddings: Tensor, lengths: Tensor | None) -> dict[str, Any]:
        if self.causal:
            return {"attention_mask": None}
        return acausal.arguments(self.decoder, embeddings, lengths)

    def _hook(self, block: Block, hooks: ExitStack) -> None:
        if not self.residual:
            drop_residual(block, hooks)
        if self.site.place == "attention":
            stop_after_attention(block, hooks)
        elif self.site.place == "mlp":
            stop_at_mlp(block.mlp, hooks)
        elif self.site.place != "norm":
            stop_at(block.module, hooks)


def _by_row(activations: Tensor, embeddings: Tensor) -> Tensor:
    """Return [batch, position, width] of what OPT's MLP returns as [batch * position, width].

    A block on another GPU leaves them there; they come to where the embeddings are.

    Raises StructureError where they are not one vector for each position.
    """
    batch, positions = embeddings.shape[:2]
    if tuple(activations.shape[:-1]) not in ((batch, positions), (batch * positions,)):
        raise StructureError(
            f"a block hands on activations of shape {list(activations.shape)} for {batch} rows of "
            f"{positions} positions, not one vector for each"
        )
    return activations.reshape(batch, positions, -1).to(embeddings.device)
