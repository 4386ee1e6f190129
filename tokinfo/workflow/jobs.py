"""What every job of the workflow shares: its log, and how it fails.

A job's output goes to its log, file descriptors included, so that progress bars and the
warnings of compiled libraries land there too. A failure that this package foresaw ends in one
line, in the log and on the terminal, that says which job it was; any other keeps its traceback
in the log.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tokinfo.io.errors import InvalidError, foreseen, plain
from tokinfo.workflow.devices import claim
from tokinfo.workflow.running import at_work

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def job(log: str | Path, what: str) -> Iterator[None]:
    """Run a block with its output in ``log``; a failure names the job and ends the process.

    Args:
        log: file that receives everything written to standard output and standard error.
        what: what the job makes, as a reader of the terminal should see it.

    Raises:
        SystemExit: with status 1, for any exception of the block.
    """
    with at_work(Path.cwd()), _redirected(Path(log)) as terminal:
        try:
            yield
        except Exception as error:
            text = foreseen(error)
            if text is None:
                traceback.print_exc()
                words = " ".join(str(error).split())
                text = (
                    f"{type(error).__name__}: {plain(words)}".rstrip(": ")
                    + f" (traceback in {log})"
                )
            line = f"tokinfo: {what}: {text}"
            # The message is the last line of the log: the end is what a reader looks at first.
            print(line, file=sys.stderr, flush=True)
            terminal.write(line + "\n")
            terminal.flush()
            raise SystemExit(1) from None


@contextlib.contextmanager
def _redirected(log: Path) -> Iterator[TextIO]:
    """Send everything written to 1 and 2 to a file; yields the terminal's standard error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with (
        log.open("w", encoding="utf-8", errors="replace", buffering=1) as target,
        os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace") as terminal,
        contextlib.redirect_stdout(target),
        contextlib.redirect_stderr(target),
    ):
        for number in (1, 2):
            os.dup2(target.fileno(), number)
        try:
            yield terminal
        finally:
            for number, kept in zip((1, 2), saved, strict=True):
                os.dup2(kept, number)
                os.close(kept)


def lend_package(directory: str) -> None:
    """Let the jobs import the package from ``directory``, whichever environment they run in.

    A conda environment of the rules holds the package's dependencies, not the package.
    """
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if directory not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([directory, *filter(None, paths)])


def device(wanted: str, gpus: int) -> str:
    """Return the torch device of a job that was granted ``gpus`` GPUs, and reserve them for it.

    Call it before anything imports torch, which then sees those GPUs and no other.
    ``--resources gpu=0`` keeps a study that says ``auto`` on the CPU. One that says ``cuda``
    needs a GPU.

    Raises:
        RuntimeError: the study says ``cuda`` and torch finds no GPU here, or there are fewer
            GPUs than were granted.
    """
    if wanted == "cpu" or (wanted == "auto" and gpus < 1):
        return "cpu"
    claim(max(gpus, 1))
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise InvalidError("the study says `device: cuda`, and torch finds no GPU here")
    return "cpu"
