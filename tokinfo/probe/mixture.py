"""Activations of mixtures: several candidate tokens at one position, each with a probability.

Every candidate is an entry of the sequence, with the position it stands for and its own residual
stream through all blocks. As a key it has log p as an additive bias of attention; as a query it
sees itself and the entries of earlier positions, never its rivals. So attention returns the mean
of the values, weighted by p times the exponential of the scores. With p of 0 and 1 alone this is
the model's forward of the tokens that have 1. A mixer has no scores: of each earlier position its
convolutions are given the mean of the entries' normed states, weighted by p.

The decoder's own forward runs, given a mask and positions; of a mixer the output of each block's
convolutions is replaced.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tokinfo.io.errors import InvalidError, first_line
from tokinfo.models.mixer import MixerStack
from tokinfo.models.structure import StructureError, find_block, place_of
from tokinfo.probe import masking
from tokinfo.probe.hooks import add, given
from tokinfo.probe.probe import Probe

CHECKED_POSITIONS = 8
COPIES = 8  # of a token that stands at one position of the mixture that `check` tries


def mix(probe: Probe, embedded: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Return the activations of every entry of a batch of mixtures, each of its own stream.

    An attention model may leave a position out: no entry then has a key there. The gradient
    reaches ``embedded`` and ``weights``.

    Args:
        probe: a causal one; `check` says whether its decoder can be given mixtures.
        embedded: [row, entry, d_model], the embedding of each entry's token.
        positions: int64 [entry], the position of each entry, from 0; several may share one.
        weights: [row, entry], log p of each entry, in nats: 0 for a token that is certain, -inf
            for one that is not there. Not checked to sum to p = 1 at a position.

    Returns:
        [row, entry, width] at the probe's site.

    Raises:
        InvalidError: the probe has no causal mask; of a mixer, a position is missing or lies
            beyond its n_ctx.
        StructureError: a block has attention that takes no mask, or does not do with its
            sub-layers what the site needs.
    """
    _refuse_acausal(probe)
    positions = positions.to(embedded.device)
    weights = weights.to(embedded.device, probe.dtype)
    if isinstance(probe.decoder, MixerStack):
        return _convolved(probe, probe.decoder, embedded, positions, weights)
    masks = masking.arguments(
        probe.decoder, positions, lambda window: _mask(positions, weights, window)
    )
    return probe.run(embedded, **masks, use_cache=False)


def check(probe: Probe) -> None:
    """Compare a mixture that must equal a prompt of random tokens with that prompt.

    Each position holds eight copies of its token and a rival with p = 0. At every other position
    one copy has p = 1, at the others each has 1/8, which shows what scales log p or takes it for a
    choice of keys. The last position comes first, which shows what counts entries or hides later
    ones by itself. A mixer is not tried: nothing of a mixture is left to its own code.

    Raises:
        InvalidError: the probe has no causal mask.
        StructureError: the decoder cannot be called so, or computes something else.
    """
    _refuse_acausal(probe)
    decoder = probe.decoder
    if probe.site.place == "embedding" or isinstance(decoder, MixerStack):
        return
    name = f"{type(decoder).__name__}: cannot be given mixtures of tokens"
    table: nn.Embedding = decoder.get_input_embeddings()  # type: ignore[operator]
    n, place = CHECKED_POSITIONS, place_of(table)
    generator = torch.Generator().manual_seed(0)
    tokens, rivals = torch.randint(table.num_embeddings, (2, n), generator=generator).to(place)
    p = torch.zeros(COPIES + 1, n, device=place)
    p[0, ::2] = 1
    p[:-1, 1::2] = 1 / COPIES
    try:
        with torch.no_grad():
            embedded = table(torch.cat([tokens.repeat(COPIES), rivals]).flip(0))[None]
            positions = torch.arange(n, device=place).repeat(COPIES + 1).flip(0)
            weights = p.log().flatten().flip(0)[None]
            found = mix(probe, embedded, positions, weights)[0].flip(0)[: COPIES * n]
            expected = probe(table(tokens)[None])[0].repeat(COPIES, 1)
    except StructureError:
        raise
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise StructureError(f"{name}: it takes no mask of its keys ({reason})") from error
    # Position by position: the first one of a trained model may be far larger than the others.
    # An embedding of zeros, often that of padding, has keys and values of zeros in the first block.
    norms = expected.norm(dim=-1).clamp_min(torch.finfo(expected.dtype).tiny)
    difference = ((found - expected).norm(dim=-1) / norms).max()
    rounding = max(torch.finfo(dtype).eps for dtype in (probe.dtype, torch.float32))
    if not difference <= rounding**0.5:
        raise StructureError(
            f"{name}: one that is certain gives other activations than its tokens (relative "
            f"difference {float(difference):.1g}); it ignores or scales the mask, ignores the "
            "positions, or adds a bias that counts entries"
        )


def _refuse_acausal(probe: Probe) -> None:
    if not probe.causal:
        raise InvalidError("causal: false: a mixture is seen by later positions alone")


def _mask(positions: Tensor, weights: Tensor, window: int | None) -> Tensor:
    """Return the additive mask [row, 1, query, key] of blocks with that sliding window."""
    distance = positions[:, None] - positions
    earlier = distance > 0
    if window is not None:
        earlier &= distance < window
    others = weights.new_full(earlier.shape, torch.finfo(weights.dtype).min).fill_diagonal_(0)
    return torch.where(earlier, weights[:, None, :], others)[:, None]


def _convolved(
    probe: Probe, decoder: MixerStack, embedded: Tensor, positions: Tensor, weights: Tensor
) -> Tensor:
    """Run a mixer with every entry as a row of one position, which no convolution then mixes.

    What the convolutions would return is put in the place of what they do return.
    """
    rows, entries, _ = embedded.shape
    n = int(positions.max()) + 1
    if n > decoder.spec.n_ctx:
        raise InvalidError(
            f"a mixture of {n} positions is longer than the n_ctx = {decoder.spec.n_ctx} that this "
            "mixer is built for"
        )
    groups = [(positions == i).nonzero()[:, 0] for i in range(n)]
    if missing := [i for i, group in enumerate(groups) if len(group) == 0]:
        raise InvalidError(
            f"a mixture without an entry at position {missing[0]}, of which a mixer knows nothing "
            "to put in its place"
        )
    back = torch.cat(groups).argsort()
    probabilities = weights.exp()[..., None]

    def mixed(mixing: nn.Module, args: Any, kwargs: Any, _: Any) -> Tensor:
        normed = given(args, kwargs).reshape(rows, entries, -1)
        means = normed.new_zeros(rows, n, normed.shape[2])
        means = means.index_add(1, positions, probabilities * normed)
        found = []
        for i, group in enumerate(groups):
            own = normed[:, group, None]
            before = means[:, None, :i].expand(-1, len(group), -1, -1)
            sequences = torch.cat([before, own], dim=2).flatten(0, 1)
            # Its forward, not a call: that would meet this hook.
            found.append(mixing.forward(sequences, first=i).reshape(rows, len(group), -1))
        return torch.cat(found, dim=1)[:, back].reshape(rows * entries, 1, -1)

    with ExitStack() as hooks:
        for number in range(1, probe.site.block + 1):
            mixing = find_block(decoder, number).attention
            add(hooks, mixing.register_forward_hook(mixed, with_kwargs=True))
        alone = probe.run(embedded.reshape(rows * entries, 1, -1), use_cache=False)
    return alone.reshape(rows, entries, -1)
