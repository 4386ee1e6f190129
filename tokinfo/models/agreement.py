"""Whether a checkpoint computes from embeddings what its whole model computes from tokens.

Asked once, when the checkpoint has been written. A family may look at the tokens themselves (a
second embedding in every block), or at blocks that are left out: it is refused here by name.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokinfo.io.errors import InvalidError, TokinfoError, first_line
from tokinfo.models.checkpoint import (
    Checkpoint,
    empty_decoder,
    family,
    load,
    quiet,
    read_config,
    read_decoder,
    shorter,
    weight_files,
)
from tokinfo.models.structure import find_blocks
from tokinfo.study.sources import COMPARED_MB

PROMPTS, POSITIONS = 2, 12
TOLERANCE = 1e-4
"""Largest relative difference; the two are mostly equal to the bit."""

log = logging.getLogger(__name__)


class _Reached(Exception):
    """Leaves a forward at a block, carrying its output."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output: Tensor = output[0] if isinstance(output, tuple | list) else output


def check_cut(directory: Path, origin: Path | None, blocks: int, name: str) -> None:
    """Compare a checkpoint with the whole model, behind the last block that it holds.

    The whole model has all its blocks; those behind the last one compared lie on the meta device,
    without weights. So its weights take no more memory than the checkpoint's. A checkpoint of more
    than `COMPARED_MB` is not compared, and a line in the log says so.

    Args:
        directory: the checkpoint.
        origin: directory that transformers reads the whole model from, in float32; None: the
            checkpoint's own weights are taken, from tokens.
        blocks: how many the checkpoint holds; without any there is nothing to compare.
        name: what messages call it.

    Raises:
        InvalidError: they differ, or one of them does not run.
    """
    if not blocks:
        return
    if (size := sum(file.stat().st_size for file in weight_files(directory))) > COMPARED_MB * 1e6:
        log.info("%s: %.1f GB, not compared with the whole model", name, size / 1e9)
        return
    checkpoint, config = load(directory), read_config(directory)
    whole: nn.Module = checkpoint.decoder
    if origin is not None:
        whole = read_decoder(origin, shorter(read_config(origin), blocks)).eval()
    ids = _ids(checkpoint)
    found = _of_embeddings(checkpoint, ids, blocks, family(config), name)
    every = find_blocks(whole)
    # The blocks that are left out, without weights.
    every.extend(find_blocks(empty_decoder(shorter(config, config.num_hidden_layers)))[blocks:])
    _compare(found, whole, every, ids, blocks, family(config), name)


def check_embeddings(checkpoint: Checkpoint, blocks: int, name: str) -> None:
    """Compare what a model in memory makes of embeddings and of their tokens, behind a block.

    Raises InvalidError where they differ, or one of them does not run.
    """
    if blocks:
        ids, kind = _ids(checkpoint), checkpoint.facts.family
        found = _of_embeddings(checkpoint, ids, blocks, kind, name)
        held = find_blocks(checkpoint.decoder)
        _compare(found, checkpoint.decoder, held, ids, blocks, kind, name)


def _ids(checkpoint: Checkpoint) -> Tensor:
    rows, limit = len(checkpoint.embedding), checkpoint.facts.n_ctx or POSITIONS
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(rows, (PROMPTS, min(POSITIONS, limit)), generator=generator)
    # Some families count positions from the tokens that are no padding.
    ids[ids == checkpoint.pad_id] = (checkpoint.pad_id + 1) % rows
    return ids.to(checkpoint.embedding.device)


def _of_embeddings(
    checkpoint: Checkpoint, ids: Tensor, blocks: int, kind: str, name: str
) -> Tensor:
    """Return what a checkpoint makes of the embeddings of tokens behind a block."""
    embedded = checkpoint.embedding[ids].to(checkpoint.dtype)
    try:
        held = find_blocks(checkpoint.decoder)
        own = embedded.clone()
        found = _behind(checkpoint.decoder, held, blocks, inputs_embeds=own)
        # Searches put embeddings there that no token has.
        between = (embedded + embedded.flip(1)) / 2
        _behind(checkpoint.decoder, held, blocks, inputs_embeds=between)
    except TokinfoError:
        raise
    except Exception as error:
        raise InvalidError(
            f"{name}: a {kind} does not run on embeddings alone: {first_line(error)}"
        ) from None
    if not torch.equal(own, embedded):
        raise InvalidError(f"{name}: a {kind} writes into the embeddings that it is given")
    if found.shape[:-1] != ids.shape:
        raise InvalidError(
            f"{name}: blocks of a {kind} hand on activations of shape {list(found.shape)} for "
            f"{list(ids.shape)} tokens, not one vector for each"
        )
    return found


def _compare(
    found: Tensor,
    whole: nn.Module,
    every: nn.ModuleList,
    ids: Tensor,
    blocks: int,
    kind: str,
    name: str,
) -> None:
    """Raise InvalidError where the whole model makes something else of the tokens themselves."""
    try:
        expected = _behind(whole, every, blocks, input_ids=ids)
    except Exception as error:
        raise InvalidError(
            f"{name}: the first {blocks} blocks of a {kind} do not run alone: {first_line(error)}"
        ) from None
    away = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
    if away > max(TOLERANCE, 4 * torch.finfo(found.dtype).eps):
        raise InvalidError(
            f"{name}: behind block {blocks}, a {kind} cut there and given embeddings differs from "
            f"the whole model given their tokens by {away:.1e} of the largest activation; "
            "such a model cannot be probed"
        )


def _behind(decoder: nn.Module, blocks: nn.ModuleList, number: int, **inputs: Tensor) -> Tensor:
    """Return the output of block ``number`` (1-based), where the forward is left."""

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        raise _Reached(output)

    handle = blocks[number - 1].register_forward_hook(leave)
    try:
        with torch.no_grad(), quiet():
            decoder(**inputs, use_cache=False)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise InvalidError(f"its forward never met block {number}")
