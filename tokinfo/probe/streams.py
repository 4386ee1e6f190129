"""Candidate tokens whose keys and values stand still while their probabilities change.

An entry is a token at a position, in the company of entries before it: its keys and values in every
block up to the site's. Positions behind may then attend to thousands of entries with any weights,
at the cost of their own forward alone. With one entry a position, of weight 1, that is the model's
forward. The model's own code computes everything but the weighted mean between queries, keys and
values, as in `tokinfo.probe.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokinfo.models.structure import StructureError
from tokinfo.probe.attention import replaced
from tokinfo.probe.probe import Probe

_CHECKED = 6
"""Positions of the random prompt that `Streams` is held to."""


@dataclass(frozen=True)
class Entries:
    """Keys and values of entries, by block.

    Attributes:
        positions: int64 [entry].
        keys: for each block, [group, d, entry]; heads share those of their group.
        values: for each block, [group, entry, d].
    """

    positions: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __getitem__(self, index: Tensor) -> Entries:
        """Return some of the entries."""
        return Entries(
            self.positions[index],
            tuple(one[..., index] for one in self.keys),
            tuple(one[:, index] for one in self.values),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(one.nbytes for one in (*self.keys, *self.values))


def joined(parts: Sequence[Entries]) -> Entries:
    """Return the entries of all parts, in their order."""
    return Entries(
        torch.cat([part.positions for part in parts]),
        tuple(torch.cat(one, dim=-1) for one in zip(*(part.keys for part in parts), strict=True)),
        tuple(torch.cat(one, dim=1) for one in zip(*(part.values for part in parts), strict=True)),
    )


class Streams:
    """A causal decoder up to a site, as a function of entries and their weights.

    Args:
        probe: what computes the activations.

    Attributes:
        reach: positions that the narrowest sliding window spans; None: there is none.

    Raises:
        StructureError: it is not causal or has no attention, or attention is not called through
            the interface of `transformers`, or is no weighted mean of values by the exponential
            of scores.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self._name = type(probe.decoder).__name__
        self._config: Any = getattr(probe.decoder, "config", None)
        if not probe.causal or probe.site.place in ("embedding", "norm", "kv"):
            raise StructureError(f"{probe.site} is no site behind causal attention")
        if not hasattr(self._config, "_attn_implementation"):
            raise StructureError(f"{self._name}: its attention has no interface to take it apart")
        self.reach: int | None = getattr(self._config, "sliding_window", None)
        self._check()

    def entries(
        self, embedded: Tensor, position: int, before: Entries | None, weights: Tensor
    ) -> Entries:
        """Return tokens as entries of one position, none of which sees another.

        Args:
            embedded: [token, d_model].
            position: of all of them.
            before: what stands at earlier positions; None: nothing.
            weights: log p of each entry before, in nats.
        """
        return self.alone(embedded, position, before, weights)[0]

    def alone(
        self, embedded: Tensor, position: int, before: Entries | None, weights: Tensor
    ) -> tuple[Entries, Tensor]:
        """Return what `entries` does, and the activations [token, width] of each token."""
        count = len(embedded)
        places = torch.full((count,), position, device=embedded.device)
        alone = embedded.new_full((count, count), -torch.inf).fill_diagonal_(0)
        attend = _Attend(before, weights, places, alone)
        with torch.no_grad():
            found = self._run(embedded, places, attend)
        keys, values = zip(*attend.taken, strict=True)
        return Entries(places, keys, values), found

    def activations(
        self, embedded: Tensor, positions: Tensor, before: Entries | None, weights: Tensor
    ) -> Tensor:
        """Return the activations [token, width] of certain tokens among entries.

        Args:
            embedded: [token, d_model] one token a position.
            positions: int64 [token], ascending; each token sees itself and those before it.
            before: entries, of which a token sees those at earlier positions; None: there are none.
            weights: log p of each entry, in nats; the gradient flows to them.
        """
        later = embedded.new_full((len(embedded), len(embedded)), -torch.inf).triu(1)
        return self._run(embedded, positions, _Attend(before, weights, positions, later))

    def _run(self, embedded: Tensor, positions: Tensor, attend: _Attend) -> Tensor:
        with replaced(self._config, attend):
            return self.probe.run(
                embedded[None], attention_mask=None, use_cache=False, position_ids=positions[None]
            )[0]

    def _check(self) -> None:
        """Hold it to the model's forward of random tokens, each there twice, beside a rival.

        Raises:
            StructureError: they differ, or the model's attention was not met.
        """
        table = self.probe.decoder.get_input_embeddings().weight  # type: ignore[operator]
        generator = torch.Generator().manual_seed(0)
        ids, rivals = torch.randint(len(table), (2, _CHECKED), generator=generator).to(table.device)
        half = torch.tensor([0.5, 0.5, 0.0], device=table.device).log()
        entries: list[Entries] = []
        try:
            with torch.no_grad():
                own = self.probe(table[ids][None])[0]
                for position in range(_CHECKED // 2):
                    tokens = torch.stack([ids[position], ids[position], rivals[position]])
                    before = joined(entries) if entries else None
                    entries.append(
                        self.entries(table[tokens], position, before, half.repeat(position))
                    )
                behind = torch.arange(_CHECKED // 2, _CHECKED, device=table.device)
                weights = half.repeat(_CHECKED // 2)
                found = self.activations(table[ids[behind]], behind, joined(entries), weights)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StructureError(f"{self._name}: its attention cannot be taken apart") from error
        expected = own[behind]
        away = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max()
        if not bool(away <= max(torch.finfo(own.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5):
            raise StructureError(f"{self._name}: its attention is no weighted mean of values")


class _Attend:
    """One forward's attention: to entries, and among the tokens themselves.

    Attributes:
        taken: of each block, the keys [group, d, token] and values [group, token, d] of the tokens.
    """

    def __init__(
        self, before: Entries | None, weights: Tensor, positions: Tensor, own: Tensor
    ) -> None:
        self._before, self._own = before, own
        self.taken: list[tuple[Tensor, Tensor]] = []
        if before is not None:
            self._weights = weights.expand(len(positions), -1).masked_fill(
                before.positions >= positions[:, None], -torch.inf
            )

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Return what attention gives [1, token, head, d] to [1, head or group, token, d]."""
        block = len(self.taken)
        key, value = keys[0].transpose(1, 2), values[0]
        self.taken.append((key.detach(), value.detach()))
        groups, tokens, width = value.shape
        grouped = (scale * queries[0]).reshape(groups, -1, width)
        scores = torch.bmm(grouped, key).view(groups, -1, tokens, tokens) + self._own
        if self._before is not None:
            more = torch.bmm(grouped, self._before.keys[block])
            more = more.view(groups, -1, tokens, more.shape[-1]) + self._weights
            scores = torch.cat([scores, more], dim=-1)
        shares = scores.softmax(-1).flatten(1, 2)
        found = torch.bmm(shares[..., :tokens], value)
        if self._before is not None:
            found = found + torch.bmm(shares[..., tokens:], self._before.values[block])
        return found.view(-1, tokens, width).transpose(0, 1)[None]
