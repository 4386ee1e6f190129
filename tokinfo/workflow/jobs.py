"""What every job of the workflow shares: its log, and how it fails.

A job's output goes to its log, file descriptors included, so that progress bars and the
warnings of compiled libraries land there too. A failure that this package foresaw ends in one
line, in the log and on the terminal, that says which job it was; any other keeps its traceback
in the log.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tokinfo.io.errors import STAMP, InvalidError, foreseen, plain
from tokinfo.workflow.devices import claim
from tokinfo.workflow.running import at_work

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SKEW = 1.0
"""Seconds by which the clock of a file server may differ from this machine's."""
_NAMED = 3
"""Files that a message names one by one."""


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
    """Let the jobs start, and import the package from ``directory``, whichever environment's.

    A conda environment of the rules holds the package's dependencies, not the package.

    Raises:
        InvalidError: Snakemake would take the directory's name for a pattern.
    """
    if not set("{}").isdisjoint(directory):
        raise InvalidError(
            f"{directory}: Snakemake would take the braces in this directory's name for a pattern; "
            "allowed: a clone in a path without { and }"
        )
    # Snakemake starts a job as a line of the shell, with the interpreter as it is written here.
    if Path(sys.executable).is_file():
        sys.executable = shlex.quote(sys.executable)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if directory not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([directory, *filter(None, paths)])


def check_times(inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Refuse files whose time is in the future.

    What is made from such a file is older than it: Snakemake deletes it, in every run.

    Args:
        inputs: what the jobs of a run read.
        outputs: what they make, whose time will be another.

    Raises:
        InvalidError: with one line that names some of them.
    """
    now, ahead = time.time(), []
    for name in sorted(set(inputs) - set(outputs)):
        path = Path(name) / STAMP if (Path(name) / STAMP).is_file() else Path(name)
        with contextlib.suppress(OSError):
            if max(path.stat().st_mtime, path.lstat().st_mtime) > now + _SKEW:
                ahead.append(path)
    if not ahead:
        return
    names, cure = ", ".join(map(str, ahead)), f"touch {shlex.join(map(str, ahead))}"
    if len(ahead) > _NAMED:
        names = f"{ahead[0]} and {len(ahead) - 1} others"
        top = os.path.commonpath([path.absolute().parent for path in ahead])
        cure = f"find {shlex.quote(os.path.relpath(top))} -newermt now -exec touch {{}} +"
    raise InvalidError(
        f"{names}: last changed after now, {time.ctime(now)}, by its time; Snakemake would delete "
        f"what is made from it. If this machine's clock is right: `{cure}`, then the same command "
        "again"
    )


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
