"""When a search is to end before it has come to its own end, and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from torch import Tensor

EVERY = 10.0
"""Seconds between two lines of `lines`."""


class Stopped(Exception):
    """The search is to end: its solver returns the best that it has so far."""


class Watch:
    """The clock of one run.

    Solvers look at it between steps and between batches.

    Attributes:
        tried: prompts that went through the model.
        total: prompts to be tried; None: the search ends when it has found one.
        stopped: why the run is to end early, ``minutes`` or ``interrupted``; None: it is not.

    Args:
        report: called whenever a solver looks at the watch.
    """

    def __init__(self, report: Callable[[Watch], None] | None = None) -> None:
        self._report = report
        self._residual: Tensor | None = None
        self.total: int | None = None
        self.tried = 0
        self.stopped: str | None = None
        self.begin(None)

    def begin(self, minutes: float | None) -> None:
        """Start the clock; after so many minutes the run is to end (None: never)."""
        self._begun = time.monotonic()
        self._ends = None if minutes is None else self._begun + 60 * minutes

    def interrupt(self) -> None:
        """End the run early; safe to call in a signal handler."""
        self.stopped = self.stopped or "interrupted"

    def note(self, residual: Tensor) -> None:
        """Take note of the distances [row] reached, as multiples of the noise floors."""
        self._residual = residual.detach()

    def late(self, tried: int = 0) -> bool:
        """Return whether the run is to end, and count prompts that are about to be tried."""
        self.tried += tried
        if self._ends is not None and time.monotonic() >= self._ends:
            self.stopped = self.stopped or "minutes"
        if self._report is not None:
            self._report(self)
        return self.stopped is not None

    def check(self, tried: int = 0) -> None:
        """As `late`, for what has no result of its own to return.

        Raises:
            Stopped: the run is to end.
        """
        if self.late(tried):
            raise Stopped

    # --- for a reader -----------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._begun

    @property
    def share(self) -> float | None:
        """How much of the run is over, 0 to 1; None: that is not known."""
        shares = []
        if self.total:
            shares.append(self.tried / self.total)
        if self._ends is not None:
            shares.append(self.elapsed / (self._ends - self._begun))
        return min(max(shares), 1.0) if shares else None

    def __str__(self) -> str:
        words = f"{self.tried:,} prompts tried"
        if self._residual is not None:
            # Of several prompts that are searched together, the one that is furthest off.
            words += f", residual {float(self._residual.max()):.3g}"
        if self.share:
            words += f", {clock(self.elapsed * (1 / self.share - 1))} left"
        return words


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds.

    >>> clock(3723.4)
    '1:02:03'
    """
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def lines(name: str) -> Callable[[Watch], None]:
    """Return what reports a run by a line on standard error, one every ten seconds."""
    last = 0.0

    def report(watch: Watch) -> None:
        nonlocal last
        if watch.elapsed >= last + EVERY:
            last = watch.elapsed
            print(f"{name}: {clock(last)}, {watch}", file=sys.stderr, flush=True)

    return report
