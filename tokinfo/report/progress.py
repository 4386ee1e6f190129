"""Progress of one run: a bar on a terminal, lines elsewhere; and Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console

from tokinfo.solvers.watch import Watch, lines


@contextmanager
def watched(name: str, *, shown: bool = True) -> Iterator[Watch]:
    """Give the clock of one run, which Ctrl-C ends early, and show how far it is."""
    # A warning between the lines of the bar would break it.
    ours = logging.getLogger("tokinfo")
    level = ours.level
    ours.setLevel(logging.ERROR)
    try:
        with ExitStack() as stack:
            report = stack.enter_context(progress(name)) if shown else None
            yield stack.enter_context(interruptible(Watch(report)))
    finally:
        ours.setLevel(level)


@contextmanager
def progress(name: str) -> Iterator[Callable[[Watch], None]]:
    """Show a bar on a terminal, and lines elsewhere; yields what reports a run there.

    In a notebook a bar would need widgets, which may not be there.

    How much is left is known of a sweep and where the solver has ``minutes``. Any other search
    ends when it is certified, so its bar only says what it has come to.
    """
    console = Console(stderr=True)
    if not console.is_terminal or console.is_jupyter:
        yield lines(name)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.description}"), TextColumn("{task.fields[words]}", markup=False)
    columns = (text[0], BarColumn(), TimeElapsedColumn(), text[1])
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None, words="")

        def report(watch: Watch) -> None:
            total = None if watch.share is None else 1.0
            # Words are made when the bar is drawn, a few times a second, not at every look.
            bar.update(task, total=total, completed=watch.share or 0, words=watch)

        yield report


@contextmanager
def interruptible(watch: Watch) -> Iterator[Watch]:
    """Let the first Ctrl-C end the search, which returns its best, and the second the process.

    Outside the main thread, where no signal arrives, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return

    def stop(*_: object) -> None:
        watch.interrupt()
        signal.signal(signal.SIGINT, before)
        # The process may end without another word, and the bar has hidden the cursor.
        Console(stderr=True).show_cursor()

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
    try:
        yield watch
    finally:
        signal.signal(signal.SIGINT, before)
