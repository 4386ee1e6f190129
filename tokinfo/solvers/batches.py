"""Batches whose size is found while they run: as large as pays, as small as memory asks."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokinfo.io.errors import is_memory
from tokinfo.solvers.watch import Watch


def free_memory() -> None:
    """Give freed tensors back before a smaller batch is tried."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class Batcher:
    """Applies a function to a long tensor in batches, and remembers the best batch size.

    The size doubles for as long as a doubled batch runs at least 5 % more rows a second, and
    halves when memory runs out. It is kept between calls: one sweep finds it, all use it.

    Attributes:
        size: rows of the next batch.
        limit: most rows of a batch, which bounds the memory.
        watch: looked at before each batch; its rows count as prompts.
    """

    size: int = 64
    limit: int = 4096
    watch: Watch = field(default_factory=Watch)
    _rate: float = 0.0
    _growing: bool = True

    def map(self, function: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
        """Return the concatenation of ``function(batch)`` over batches of ``items`` [n, ...].

        Raises:
            MemoryError: a batch of a single row does not fit.
            Stopped: the run is to end.
        """
        done: list[Tensor] = []
        first = 0
        while first < len(items):
            part = items[first : first + self.size]
            self.watch.check(len(part))
            begun = time.perf_counter()
            try:
                done.append(function(part))
            except (MemoryError, RuntimeError) as error:
                if not is_memory(error):
                    raise
                if len(part) == 1:
                    raise MemoryError("out of memory with a batch of a single row") from error
                self.size, self._growing = len(part) // 2, False
                self.limit = self.size
            else:
                first += len(part)
                if self._growing and len(part) == self.size:
                    self._learn(len(part) / (time.perf_counter() - begun))
                continue
            # Outside the except block: the exception holds the frames that hold the tensors.
            free_memory()
        return torch.cat(done)

    def _learn(self, rate: float) -> None:
        if rate < 1.05 * self._rate:
            self._growing = False
            self.size = max(self.size // 2, 1)
        elif 2 * self.size > self.limit:
            self._growing = False
        else:
            self._rate, self.size = rate, 2 * self.size
