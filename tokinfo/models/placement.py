"""Where the parts of a checkpoint go: one GPU, several where one is too small, or the CPU.

Blocks are never left on the CPU beside a GPU: that would work, some hundred times slower and
without a message. What lies outside the blocks is on the first GPU.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tokinfo.io.errors import InvalidError
from tokinfo.models.parts import EMBEDDING, block_file
from tokinfo.models.structure import blocks_path

if TYPE_CHECKING:
    from torch import nn

LEFT = 0.2
"""Share of a GPU's free memory that weights leave to activations and their gradients."""

Device = str | int
"""A device as `transformers` takes it; a number is a GPU."""

log = logging.getLogger(__name__)


def pick_device(wanted: str) -> str:
    """Return the torch device that ``auto``, ``cpu`` or ``cuda`` stands for on this machine."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def place(outside: int, blocks: Sequence[int], room: Sequence[float]) -> list[int]:
    """Return the GPU that each block goes to: the first until it is full, then the next.

    >>> place(1, [4, 4, 4], [16])
    [0, 0, 0]
    >>> place(1, [4, 4, 4], [8, 8])
    [0, 1, 1]

    Args:
        outside: bytes of what lies outside the blocks; it goes to the first GPU.
        blocks: bytes of each block.
        room: bytes that each GPU has for weights.

    Raises:
        ValueError: they do not fit on all GPUs together.
    """
    found: list[int] = []
    gpu, left = 0, room[0] - outside
    fits = left >= 0
    for size in blocks:
        while size > left and gpu + 1 < len(room):
            gpu += 1
            left = room[gpu]
        left -= size
        fits = fits and left >= 0
        found.append(gpu)
    if not fits:
        raise InvalidError(
            f"{_gb(outside + sum(blocks))} of weights ({_gb(outside)} beside {len(blocks)} blocks "
            f"of up to {_gb(max(blocks, default=0))}) do not fit into {len(room)} GPUs with "
            f"{', '.join(map(_gb, room))} free for them: read fewer blocks, use int8 or nf4, "
            "or give it more GPUs"
        )
    return found


def device_map(decoder: nn.Module, gpus: Sequence[Device], first: Device = 0) -> dict[str, Device]:
    """Return the device of every module of a decoder, given that of each block.

    ``decoder`` may lie on the meta device; ``first`` is where all that is no block goes.
    """
    path = blocks_path(decoder)
    # Everything that hangs beside the way from the root to the blocks.
    steps = path.split(".")
    way = {".".join(steps[:count]) for count in range(len(steps) + 1)}
    beside = [
        name
        for name, _ in decoder.named_modules()
        if name not in way and name.rpartition(".")[0] in way - {path}
    ]
    found: dict[str, Device] = dict.fromkeys(beside, first)
    return found | {f"{path}.{number}": gpu for number, gpu in enumerate(gpus)}


def gpus_for(directory: Path, blocks: int, widened: float, table: int) -> list[int]:
    """Return the GPU of each block of a checkpoint, by the sizes of its files.

    Args:
        directory: the checkpoint.
        blocks: how many it has.
        widened: how many times larger weights are in memory than in the files.
        table: bytes of the float32 copy of the embedding.

    Raises:
        ValueError: the GPUs of this machine are too small.
    """
    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
    outside, sizes = _sizes(directory, blocks, widened, table)
    return place(outside, sizes, [(1 - LEFT) * count for count in free])


def warn_of_memory(directory: Path, blocks: int, widened: float, table: int) -> None:
    """Log a warning where a checkpoint is larger than what the machine's memory has left."""
    outside, sizes = _sizes(directory, blocks, widened, table)
    needed, free = outside + sum(sizes), _available()
    if needed > free:
        log.warning(
            "%s: %s of weights, and %s of memory free: read fewer blocks, or use int8 or nf4",
            *(directory, _gb(needed), _gb(free)),
        )


def _sizes(directory: Path, blocks: int, widened: float, table: int) -> tuple[int, list[int]]:
    def size(file: str) -> int:
        return int(widened * (directory / file).stat().st_size)

    return size(EMBEDDING) + table, [size(block_file(number + 1)) for number in range(blocks)]


def _available() -> int:
    """Return the bytes of memory that this machine can still give."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
