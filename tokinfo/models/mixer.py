"""Masked mixers: causal convolutions over positions in the place of attention.

A block is LayerNorm -> masked convolution along the sequence -> residual, then LayerNorm ->
4x GELU MLP -> residual. Embedding, convolutions and linear layers start as PyTorch starts
them, as in the published design (see docs/method.md); a final LayerNorm follows the last
block, which no site lies behind.

Only torch is imported here. A probe of an unquantised mixer has to load in well under the
3 s that `import transformers` alone takes, so `tokinfo.models.checkpoint.load` builds a
`MixerStack` from config.json and the safetensors without it. The `transformers` classes in
`tokinfo.models.modeling_mixer` are the same stack with the same parameter names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokinfo.io.errors import InvalidError

FORMS = ("flat", "expanded", "parallel")
MODEL_TYPE = "masked_mixer"


@dataclass(frozen=True)
class MixerSpec:
    """What a mixer is built from; the fields carry the names they have in config.json."""

    vocab_size: int  # rows of the embedding
    hidden_size: int  # width of an embedding
    num_hidden_layers: int  # blocks
    n_ctx: int  # positions the convolutions are built for
    form: str = "flat"  # one of FORMS
    expansion: float = 1.0  # expanded: inner positions as a multiple of n_ctx
    kernels: int = 2  # parallel: convolutions summed

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InvalidError(f"mixer form {self.form!r}: allowed: {', '.join(FORMS)}")
        if self.expansion <= 0 or self.kernels < 1:
            raise InvalidError(
                f"mixer: expansion {self.expansion} must be above 0, kernels {self.kernels} >= 1"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MixerSpec:
        """Read the spec from the contents of a config.json; raises KeyError for a missing field."""
        return cls(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            num_hidden_layers=int(config["num_hidden_layers"]),
            n_ctx=int(config["n_ctx"]),
            form=str(config["form"]),
            expansion=float(config["expansion"]),
            kernels=int(config["kernels"]),
        )


@dataclass
class StackOutput:
    """What `MixerStack` returns; the field names are those of `transformers`."""

    last_hidden_state: Tensor  # [batch, positions, hidden], after the final LayerNorm
    hidden_states: tuple[Tensor, ...] | None = None  # embedding, block 1, ..., the last one normed


def inner_times(n_ctx: int, expansion: float) -> list[int]:
    """Return the position that each inner position of an expanded mixer belongs to.

    There are ``round(expansion * n_ctx)`` inner positions (at least one), spread evenly: inner
    position ``j`` belongs to position ``floor(j * n_ctx / inner)``. It reads that position and
    earlier ones; that position and later ones read it. This is causal for every factor: what
    position ``i`` reads belongs to a position no later than ``i``, and has read nothing later.

    >>> inner_times(3, 2.0), inner_times(4, 0.5), inner_times(3, 1.0)
    ([0, 0, 1, 1, 2, 2], [0, 2], [0, 1, 2])
    """
    inner = max(1, round(expansion * n_ctx))
    return [j * n_ctx // inner for j in range(inner)]


class MaskedConvolution(nn.Module):
    """A convolution of kernel size 1 along the sequence whose outputs never see later inputs.

    Positions are the channels, so it is a matrix product over positions with one bias per
    position: ``y[b, i, :] = bias[i] + sum_j mask[i, j] * weight[i, j] * x[b, j, :]``. The mask
    admits input ``j`` where ``times_in[j] <= times_out[i]``; entries of ``weight`` outside it
    have no influence and no gradient.

    ``times_in`` and ``times_out`` (ascending) are the positions that the inputs and outputs
    belong to: 0, 1, 2, ... for both makes the mask lower triangular.
    """

    def __init__(self, times_in: Sequence[int], times_out: Sequence[int]) -> None:
        super().__init__()
        # Held as tuples, not buffers: a model built on the meta device gets no buffer values.
        self.times_in = tuple(times_in)
        self.times_out = tuple(times_out)
        self.weight = nn.Parameter(torch.empty(len(self.times_out), len(self.times_in)))
        self.bias = nn.Parameter(torch.empty(len(self.times_out)))
        self._cached: tuple[tuple[Any, ...], Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as `torch.nn.Conv1d` does (kernel size 1)."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(len(self.times_in))
        nn.init.uniform_(self.bias, -bound, bound)

    def leading(self, length: int) -> tuple[Tensor, Tensor]:
        """Return the masked weight [outputs, inputs] and the bias [outputs, 1] of a sequence.

        Only the inputs and outputs that belong to the first ``length`` positions are in them.
        """
        rows = sum(time < length for time in self.times_out)
        columns = sum(time < length for time in self.times_in)
        return self._masked(rows, columns), self.bias[:rows, None]

    def _masked(self, rows: int, columns: int) -> Tensor:
        weight = self.weight
        if weight.requires_grad or weight.is_inference() or weight.is_meta:
            return self._mask(rows, columns)
        # A frozen weight is masked once per length; `_version` moves on any in-place change.
        key = (rows, columns, weight.data_ptr(), weight._version, weight.dtype, weight.device)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, self._mask(rows, columns).detach())
        return self._cached[1]

    def _mask(self, rows: int, columns: int) -> Tensor:
        weight = self.weight[:rows, :columns]
        if self.times_in == self.times_out:
            return weight.tril()
        times_in = torch.tensor(self.times_in[:columns], device=weight.device)
        times_out = torch.tensor(self.times_out[:rows], device=weight.device)
        return weight.masked_fill(times_in[None, :] > times_out[:, None], 0)

    def forward(self, x: Tensor, length: int) -> Tensor:
        """Mix ``x`` [batch, inputs, hidden] of ``length`` positions: [batch, outputs, hidden]."""
        return mix(x, *self.leading(length))


def mix(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a weight [outputs, inputs] and a bias [outputs, 1] over the positions of ``x``.

    The batched product with the bias fused is the fastest form measured on CPU for the short
    sequences of a probe (up to five times faster than `conv1d`).
    """
    return torch.baddbmm(
        bias.expand(x.shape[0], -1, x.shape[2]), weight.expand(x.shape[0], -1, -1), x
    )


class FlatMixing(MaskedConvolution):
    """One masked convolution."""

    def __init__(self, spec: MixerSpec) -> None:
        times = range(spec.n_ctx)
        super().__init__(times, times)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Mix ``x`` [batch, positions, hidden]; return the positions from ``first`` on."""
        return super().forward(x, x.shape[1])[:, first:]


class ExpandedMixing(nn.Module):
    """Two masked convolutions in series with GELU between, through `inner_times` positions."""

    def __init__(self, spec: MixerSpec) -> None:
        super().__init__()
        times, inner = range(spec.n_ctx), inner_times(spec.n_ctx, spec.expansion)
        self.expand = MaskedConvolution(times, inner)
        self.contract = MaskedConvolution(inner, times)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Mix ``x`` [batch, positions, hidden]; return the positions from ``first`` on."""
        length = x.shape[1]
        mixed: Tensor = self.contract(nn.functional.gelu(self.expand(x, length)), length)
        return mixed[:, first:]


class ParallelMixing(nn.Module):
    """Several masked convolutions of the same input, summed.

    The sum of the products is the product with the summed weights, which costs one convolution
    whatever the number of kernels. They are in a ModuleDict, so that the one ModuleList in a
    mixer is that of its blocks, which is how a probe finds them.
    """

    def __init__(self, spec: MixerSpec) -> None:
        super().__init__()
        times = range(spec.n_ctx)
        self.kernels = nn.ModuleDict(
            {str(k): MaskedConvolution(times, times) for k in range(spec.kernels)}
        )

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Mix ``x`` [batch, positions, hidden]; return the positions from ``first`` on."""
        parts = [
            kernel.leading(x.shape[1])
            for kernel in self.kernels.values()
            if isinstance(kernel, MaskedConvolution)
        ]
        weight, bias = parts[0]
        for more_weight, more_bias in parts[1:]:
            weight, bias = weight + more_weight, bias + more_bias
        return mix(x, weight, bias)[:, first:]


class MixerMlp(nn.Module):
    """Linear to four times the width, GELU, linear back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [..., hidden] to the same shape."""
        out: Tensor = self.down(nn.functional.gelu(self.up(x)))
        return out


MIXINGS: dict[str, type[FlatMixing] | type[ExpandedMixing] | type[ParallelMixing]] = {
    "flat": FlatMixing,
    "expanded": ExpandedMixing,
    "parallel": ParallelMixing,
}


@dataclass
class CacheLayer:
    """What one block keeps of the leading positions: for a mixer both are the normed states."""

    keys: Tensor  # [batch, positions, hidden]
    values: Tensor


class MixerCache:
    """Leading positions that later ones are computed after; used as those of `transformers` are.

    A mixer's later positions need of the earlier ones what its convolutions read: their normed
    states in each block.
    """

    def __init__(self) -> None:
        self.layers: list[CacheLayer] = []

    def update(self, keys: Tensor, values: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Append positions to block ``index`` (from 0) and return all that it holds."""
        if index == len(self.layers):
            self.layers.append(CacheLayer(keys, values))
        else:
            layer = self.layers[index]
            joined = torch.cat([layer.keys, keys], dim=1)
            self.layers[index] = CacheLayer(joined, joined)
        return self.layers[index].keys, self.layers[index].values

    def get_seq_length(self) -> int:
        """Return how many positions the cache holds."""
        return self.layers[0].keys.shape[1] if self.layers else 0


class MixerBlock(nn.Module):
    """Mixing over positions, then an MLP over features, each behind a LayerNorm and a residual."""

    def __init__(self, spec: MixerSpec) -> None:
        super().__init__()
        self.mixing_norm = nn.LayerNorm(spec.hidden_size)
        self.mixing = MIXINGS[spec.form](spec)
        self.mlp_norm = nn.LayerNorm(spec.hidden_size)
        self.mlp = MixerMlp(spec.hidden_size)

    def forward(self, x: Tensor, cache: MixerCache | None = None, index: int = 0) -> Tensor:
        """Map ``x`` [batch, positions, hidden] to the same shape.

        With a cache, ``x`` follows the positions that the cache holds for block ``index``.
        """
        normed = self.mixing_norm(x)
        if cache is None:
            x = x + self.mixing(normed)
        else:
            held, _ = cache.update(normed, normed, index)
            x = x + self.mixing(held, first=held.shape[1] - x.shape[1])
        x = x + self.mlp(self.mlp_norm(x))
        return x


class MixerStack(nn.Module):
    """Embedding, blocks and final LayerNorm of a masked mixer.

    A sequence of n < n_ctx tokens runs on the leading n rows and columns of every convolution,
    which for causal weights gives the same as the first n positions of a padded one.
    """

    embed_tokens: nn.Embedding
    blocks: nn.ModuleList
    norm: nn.LayerNorm
    spec: MixerSpec

    def __init__(self, spec: MixerSpec) -> None:
        nn.Module.__init__(self)
        self.build(spec)

    def build(self, spec: MixerSpec) -> None:
        """Add the layers; apart from ``__init__`` because `transformers` has another one."""
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.blocks = nn.ModuleList(MixerBlock(spec) for _ in range(spec.num_hidden_layers))
        self.norm = nn.LayerNorm(spec.hidden_size)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding, under the name that `transformers` gives this."""
        return self.embed_tokens

    def new_cache(self) -> MixerCache:
        """Return an empty cache of leading positions."""
        return MixerCache()

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        past_key_values: MixerCache | None = None,
        **_: Any,
    ) -> StackOutput:
        """Run tokens [batch, positions] or embeddings [batch, positions, hidden].

        ``attention_mask`` and ``use_cache`` are accepted and change nothing: no position ever
        sees a later one, so padding on the right is harmless. With ``past_key_values`` the
        sequence follows the positions held there, and is added to them.
        Raises ValueError unless exactly one of the inputs is given, and for a sequence longer
        than n_ctx.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InvalidError("a mixer takes either input_ids or inputs_embeds")
        x = inputs_embeds if input_ids is None else self.embed_tokens(input_ids)
        assert x is not None
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        if before + x.shape[1] > self.spec.n_ctx:
            raise InvalidError(
                f"a sequence of {before + x.shape[1]} positions is longer than the n_ctx = "
                f"{self.spec.n_ctx} that this mixer is built for"
            )
        states = [x]
        for index, block in enumerate(self.blocks):
            x = block(x, past_key_values, index)
            states.append(x)
        x = self.norm(x)
        return StackOutput(x, (*states[:-1], x) if output_hidden_states else None)
