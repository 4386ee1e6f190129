"""The attention of a decoder's first block, taken apart and put together again.

The model's own code computes queries, keys and values, and carries what attention returns on to the
site; only the weighted mean between them is taken over here. So there is no family to ask for:
`transformers` calls attention through one interface, and what stands there can be replaced by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokinfo.models.structure import StructureError
from tokinfo.probe.probe import Probe

_NAME = "tokinfo"
_TOLERANCE = 1e-4
"""Largest difference between attention written out and the model's own, relative to the largest
activation that attention makes a difference to."""

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""From queries [row, head, position, d], keys and values [row, group, position, d] and the scale of
the scores to what attention returns [row, position, head, d]."""

_attends: list[Attend] = []


class _Taken(Exception):
    """Leaves the forward once queries, keys and values are known."""


@dataclass(frozen=True)
class Parts:
    """What attention is made of, each token alone at its position.

    Attributes:
        queries: [token, head, d], scaled.
        keys: [token, group, d]; heads share those of their group.
        values: [token, group, d].
    """

    queries: Tensor
    keys: Tensor
    values: Tensor


class FirstAttention:
    """The first block's attention as a function that can be called in pieces.

    Args:
        probe: causal, at a site of the first block, with its residual.

    Attributes:
        width: components of a head.
        reach: positions that a sliding window spans; None: there is none.

    Raises:
        StructureError: attention cannot be taken apart: the site lies elsewhere, the decoder does
            not call it through the interface of `transformers`, or it is no weighted mean of
            values by the exponential of scores (sinks, capped scores, biases by distance).
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self._name = type(probe.decoder).__name__
        if (
            probe.site.place in ("kv", "norm")
            or probe.site.block != 1
            or not probe.causal
            or not probe.residual
        ):
            raise StructureError(f"{probe.site} is no site of the first block's causal attention")
        self._config: Any = getattr(probe.decoder, "config", None)
        if not hasattr(self._config, "_attn_implementation"):
            raise StructureError(f"{self._name}: its attention has no interface to take it apart")
        window = getattr(self._config, "sliding_window", None)
        self.reach: int | None = window
        self.width = self._check()

    def parts(self, embedded: Tensor, positions: Tensor) -> Parts:
        """Return the queries, keys and values of tokens, each at its position.

        Args:
            embedded: [token, d_model].
            positions: int64 [token].
        """
        found: list[Parts] = []

        def take(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
            queries, keys, values = (x[0].transpose(0, 1) for x in (queries, keys, values))
            found.append(Parts(scale * queries, keys, values))
            raise _Taken

        with torch.no_grad():
            self._run(embedded[None], positions[None], take)
        return found[0]

    def attended(self, embedded: Tensor) -> Tensor:
        """Return what attention gives [row, position, head, d] in prompts [row, position, d_model].

        It is the weighted mean of values, before the output projection.
        """
        found: list[Tensor] = []

        def take(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
            found.append(_mean(queries, keys, values, scale))
            raise _Taken

        with torch.no_grad():
            self._run(embedded, None, take)
        return found[0]

    def carried(
        self,
        embedded: Tensor,
        attended: Tensor,
        positions: Tensor | None = None,
        probe: Probe | None = None,
    ) -> Tensor:
        """Return the activations [token, width] at the site, given what attention returned.

        Args:
            embedded: [token, d_model].
            attended: [token, head, d]; the gradient flows to it.
            positions: int64 [token], which learned embeddings of positions follow; None: from 0 on.
            probe: another copy of the model (in another precision); None: the model.
        """
        named = None if positions is None else positions[None]
        found = self._run(embedded[None], named, lambda *_: attended[None], probe)
        assert found is not None
        return found[0]

    def _run(
        self,
        embedded: Tensor,
        positions: Tensor | None,
        attend: Attend,
        probe: Probe | None = None,
    ) -> Tensor | None:
        """Run the model up to the site with its attention replaced; None: it was left before."""
        probe = probe or self.probe
        named = {} if positions is None else {"position_ids": positions}
        with replaced(probe.decoder.config, attend):
            try:
                return probe.run(embedded, attention_mask=None, use_cache=False, **named)
            except _Taken:
                return None

    def _check(self) -> int:
        """Compare attention written out with the model's own, on random tokens; return the width.

        Raises:
            StructureError: they differ, or the model's attention was not met.
        """
        probe = self.probe
        table = probe.decoder.get_input_embeddings().weight  # type: ignore[operator]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(len(table), (2, 6), generator=generator).to(table.device)
        embedded = table[ids]
        try:
            with torch.no_grad():
                own = probe(embedded)
                written = torch.stack(
                    [self.carried(row, self.attended(row[None])[0]) for row in embedded]
                )
                attended = self.attended(embedded[:1])[0]
                without = self.carried(embedded[0], 0 * attended)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StructureError(f"{self._name}: its attention cannot be taken apart") from error
        moved = (own[0] - without).abs().max()
        if not bool(moved > 0):
            raise StructureError(f"{self._name}: its attention does not act on {probe.site}")
        if not bool((own - written).abs().max() <= _TOLERANCE * moved):
            raise StructureError(f"{self._name}: its attention is no weighted mean of values")
        return attended.shape[-1]


@contextmanager
def replaced(config: Any, attend: Attend) -> Iterator[None]:
    """Let ``attend`` stand for attention while the context lasts."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_NAME, _interface)
    before = config._attn_implementation
    _attends.append(attend)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _attends.pop()


def _interface(
    _: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Stand where `transformers` calls attention."""
    for name in ("softcap", "s_aux", "position_bias"):
        if more.get(name) is not None:
            raise ValueError(f"attention with {name}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attends[-1](query, key, value, scale), None


def _mean(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Return causal attention [row, position, head, d], written out."""
    share = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
    scores = scale * queries @ keys.transpose(2, 3)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    return (weights @ values).transpose(1, 2)
