"""Parity: what the probe reads against what `transformers` computes of the same tokens.

The reference runs the whole decoder from token ids, with hooks that only record, and takes
nothing from `tokinfo.probe.probe`: the blocks' outputs are `transformers`' own hidden states, a
sub-layer's are recorded, or the sum of two tensors that were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokinfo.io.errors import first_line
from tokinfo.models.checkpoint import input_table, quiet
from tokinfo.models.structure import Block, StructureError, find_blocks, held_blocks
from tokinfo.probe.probe import Probe
from tokinfo.study.sites import Place, Site

TOLERANCE = 1e-5
"""Largest relative error that rounding in float32 explains."""

_INSIDE: tuple[Place, ...] = ("attention", "mlp")


@dataclass(frozen=True)
class Reference:
    """What the activations at one site should be.

    Attributes:
        site: resolved.
        what: where the values come from; without values, why there are none.
        values: [batch, position, width].
    """

    site: Site
    what: str
    values: Tensor | None


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        site: name of the site.
        read: how the probe read it: the prompt as a whole, or after a cached prefix.
        reference: what it was compared with.
        error: max |found - reference| / max |reference|; None where the probe refused.
        refusal: why it refused, or why there is no reference; otherwise empty.
    """

    site: str
    read: str
    reference: str
    error: float | None
    refusal: str = ""

    def passes(self, tolerance: float = TOLERANCE) -> bool:
        """Whether the error is within ``tolerance``; a refusal and a NaN are not."""
        return self.error is not None and self.error <= tolerance


def compare(
    decoder: nn.Module, ids: Tensor, cut: Callable[[int], nn.Module] | None = None
) -> list[Row]:
    """Compare the probe with the reference at blocks 1, 2 and last, and the embedding.

    Args:
        decoder: any decoder in float32, in evaluation mode.
        ids: int64 [batch, position] token ids; two positions at least, of which the first half
            (rounded down) is the prefix.
        cut: returns what is probed at a block, given its number (0: the embedding), such as a
            checkpoint that ends there; None: the decoder itself.

    Raises:
        StructureError: the decoder's blocks were not recognised.
    """
    found: list[Row] = []
    held: dict[int, nn.Module] = {}
    for reference in references(decoder, ids):
        number = reference.site.block
        if number not in held:
            held = {number: decoder if cut is None else cut(number)}
        found += _rows(held[number], input_table(held[number])[ids], reference)
    return found


def _rows(decoder: nn.Module, embeddings: Tensor, reference: Reference) -> Iterator[Row]:
    split = embeddings.shape[1] // 2
    site = str(reference.site)
    for read in ("whole", after_a_prefix := f"after a prefix of {split}"):
        if reference.values is None:
            yield Row(site, read, "", None, reference.what)
            continue
        try:
            probe = Probe(decoder, reference.site)
            with torch.no_grad():
                if read == "whole":
                    found = probe(embeddings)
                else:
                    prefix = probe.prefix(embeddings[:, :split])
                    if prefix.again is not None:
                        read = f"{after_a_prefix}, computed again"
                    after = probe(embeddings[:, split:], prefix=prefix)
                    found = torch.cat([prefix.activations, after], dim=1)
        except MemoryError:
            raise
        except Exception as error:  # of many types: a family that does not run on embeddings
            yield Row(site, read, reference.what, None, first_line(error))
            continue
        difference = (found - reference.values).abs().max() / reference.values.abs().max()
        yield Row(site, read, reference.what, float(difference))


# --- the reference ------------------------------------------------------------------------


@dataclass(eq=False)
class _Call:
    """One call of a module: its input and output, and a copy of the output.

    A copy, because a block may add to what a sub-layer returned in place (Falcon). The tensors
    themselves are kept to follow one from module to module.
    """

    module: nn.Module
    given: Tensor | None
    returned: Tensor
    copy: Tensor


def references(decoder: nn.Module, ids: Tensor) -> list[Reference]:
    """Return what the probe should find at the embedding and at blocks 1, 2 and last.

    Raises:
        StructureError: the decoder's blocks were not recognised.
    """
    # A checkpoint made for the embedding alone holds no block.
    empty = held_blocks(getattr(decoder, "config", None)) == 0
    blocks = nn.ModuleList() if empty else find_blocks(decoder)
    embedding: nn.Module = decoder.get_input_embeddings()  # type: ignore[operator]
    calls, states = _run(decoder, blocks, ids)
    tokens = _one(calls, embedding).copy
    found = [Reference(Site("embedding", 0), "output of the embedding", tokens)]
    for number in sorted({min(number, len(blocks)) for number in (1, 2, len(blocks))} - {0}):
        block = blocks[number - 1]
        whole = _one(calls, block)
        what = _behind(calls, states, whole, number == len(blocks))
        out = whole.copy
        assert whole.given is not None
        inside = [call for call in calls if call.module in set(block.children())]
        try:
            found += _sub_layers(Block(block), number, inside, whole.given, out)
        except StructureError as error:
            found += [Reference(Site(place, number), str(error), None) for place in _INSIDE]
        missing = "transformers returns no hidden state that is the output of this block"
        found.append(Reference(Site("block", number), what or missing, out if what else None))
    return found


def _run(
    decoder: nn.Module, blocks: nn.ModuleList, ids: Tensor
) -> tuple[list[_Call], tuple[Tensor, ...]]:
    """Run the whole decoder on token ids; return the calls it made, in order, and its states.

    Recorded are the blocks, their direct sub-modules, and all that is outside them.
    """
    calls: list[_Call] = []

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        tensor = output[0] if isinstance(output, tuple | list) else output
        if isinstance(tensor, Tensor):
            calls.append(
                _Call(module, given if isinstance(given, Tensor) else None, tensor, tensor.clone())
            )

    within = {module for block in blocks for module in block.modules()}
    within -= {module for block in blocks for module in (block, *block.children())}
    with ExitStack() as hooks, torch.no_grad(), quiet():
        for module in decoder.modules():
            if module not in within:
                handle = module.register_forward_hook(record, with_kwargs=True)
                hooks.callback(handle.remove)
        try:
            out = decoder(input_ids=ids, output_hidden_states=True, use_cache=False)
        except MemoryError:
            raise
        except Exception as error:  # of many types
            name = type(decoder).__name__
            raise StructureError(
                f"{name}: does not run on token ids alone: {first_line(error)}"
            ) from None
    return calls, getattr(out, "hidden_states", None) or ()


def _one(calls: list[_Call], module: nn.Module) -> _Call:
    found = [call for call in calls if call.module is module]
    if len(found) != 1:
        raise StructureError(f"{type(module).__name__}: called {len(found)} times, not once")
    return found[0]


def _behind(calls: list[_Call], states: tuple[Tensor, ...], block: _Call, last: bool) -> str | None:
    """Name the hidden state of `transformers` that equals a block's output; None: there is none.

    Most families begin to count at the embedding, some (Mamba) at the first block. The last state
    is behind the final norm (and OPT's projection): followed back through the modules that made
    it, it must lead to the last block's output.
    """
    for number, state in enumerate(states):
        if state.shape == block.copy.shape and torch.equal(state, block.copy):
            return f"hidden state {number} of transformers"
    if not states or not last:
        return None
    names: list[str] = []
    tensor = states[-1]
    while not _same(tensor, block.returned):
        made = [call for call in calls if _same(tensor, call.returned)]
        if not made or made[-1].given is None:
            return None
        names.insert(0, type(made[-1].module).__name__)
        tensor = made[-1].given
    return f"last hidden state of transformers, before {', '.join(names) or 'nothing'}"


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same memory; GPT-2 views its last state in another shape."""
    return a.data_ptr() == b.data_ptr()


def _sub_layers(
    block: Block, number: int, calls: list[_Call], given: Tensor, out: Tensor
) -> list[Reference]:
    """Return the reference behind attention and that at the MLP of one block.

    The stream after attention is what the next sub-module gets, unless that is something from
    before attention: then attention and MLP run side by side, and the block must be the sum of its
    input, attention and MLP, so that the stream is the sum of the first two.
    """
    attention, mlp = _one(calls, block.attention), _one(calls, block.mlp)
    by_attention, by_mlp = (_followed(call, calls).copy for call in (attention, mlp))
    by_mlp = by_mlp.reshape(out.shape)
    last = calls.index(_followed(attention, calls))
    later = next((call for call in calls[last + 1 :] if call.given is not None), None)
    before = [given, *(call.copy for call in calls[: calls.index(attention)])]
    entered = None if later is None or later.given is None else later.given.reshape(out.shape)
    if later is not None and entered is not None and not _among(entered, before):
        what, after = f"input of {type(later.module).__name__} after attention", entered
    else:
        what, after = "input of the block and what attention adds", given + by_attention
        rest = out.double() - given - by_attention - by_mlp
        if float(rest.abs().max()) > 1e-4 * float(out.abs().max()):
            raise StructureError(
                f"{type(block.module).__name__}: is not the sum of its input, attention and MLP, "
                "and nothing that comes after attention is given their sum"
            )
    return [
        Reference(Site("attention", number), what, after),
        Reference(
            Site("mlp", number),
            f"output of {type(mlp.module).__name__}",
            mlp.copy.reshape(out.shape),
        ),
    ]


def _among(tensor: Tensor, others: list[Tensor]) -> bool:
    return any(
        tensor.numel() == one.numel() and torch.equal(tensor, one.reshape(tensor.shape))
        for one in others
    )


def _followed(call: _Call, calls: list[_Call]) -> _Call:
    """Return the last of the calls that take a sub-layer's output one from another.

    A norm or dropout behind a sub-layer is part of what it adds.
    """
    for later in calls[calls.index(call) + 1 :]:
        if later.given is call.returned:
            call = later
    return call
