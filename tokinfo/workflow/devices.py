"""Which GPUs a job takes, where several jobs share a machine: a different one for each.

Snakemake counts GPUs and gives none away: two jobs that were granted one each would both find the
first. So a job takes a lock on each GPU that it uses, one file a GPU, and sees no other. The locks
are POSIX record locks: they belong to the process, not to its children, and end with it however
it ends. Nothing here imports torch, which must see the choice before it first looks for a GPU.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tokinfo.io.errors import InvalidError

VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDDEN = ("", "-1", "NoDevFiles")
"""Values of that variable that hide every GPU."""
SCHEDULERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "FLUX_JOB_ID")
"""Variables by which a scheduler names the job that a process belongs to."""
POLL_SECONDS = 0.5

_held: list[IO[str]] = []


def visible(
    environment: Mapping[str, str] | None = None, devices: Path = Path("/dev")
) -> list[str]:
    """Return the GPUs that a process started here would see, found out without importing torch.

    ``CUDA_VISIBLE_DEVICES`` decides where it is set, by a scheduler or a user. Otherwise there is
    one for each of the driver's device files, numbered from 0 as CUDA does, whatever
    the numbers of the files.
    """
    chosen = (os.environ if environment is None else environment).get(VISIBLE)
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        # CUDA itself stops at the first name that stands for no GPU.
        hidden = next((n for n, name in enumerate(names) if name in HIDDEN), len(names))
        return names[:hidden]
    files = [path for path in devices.glob("nvidia*") if re.fullmatch("nvidia[0-9]+", path.name)]
    return [str(number) for number in range(len(files))]


def lock_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Return where this user's locks lie on this machine.

    Each job of a scheduler has one: its GPUs may be numbered from 0 like those of the job beside
    it, and are different ones.

    Raises:
        RuntimeError: the directory belongs to another user.
    """
    variables = os.environ if environment is None else environment
    job = next(
        (f"{name}-{variables[name]}" for name in SCHEDULERS if variables.get(name)), "machine"
    )
    # Not $TMPDIR: two shells may have different ones, and jobs of both must meet here.
    base = Path("/tmp") / f"tokinfo-gpus-{os.geteuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.geteuid():
        raise InvalidError(f"{base} belongs to another user: GPUs cannot be shared out safely")
    return base / _file_name(job)


def claim(
    count: int, gpus: Sequence[str] | None = None, directory: Path | None = None
) -> list[str]:
    """Take GPUs for the rest of this process's life, and hide the others from it.

    Waits where too few are free. One job at a time chooses: one that needs several is neither
    overtaken for ever nor left waiting for one that waits for it. On a machine without a GPU
    nothing is taken or hidden.

    Args:
        count: how many the job was granted.
        gpus: what there is to choose from (None: what this process sees).
        directory: where the locks lie (None: the same for all of this user's jobs here).

    Returns:
        The names of the GPUs taken, which is what ``CUDA_VISIBLE_DEVICES`` now says.

    Raises:
        RuntimeError: there are fewer GPUs than the job was granted.
    """
    there = visible() if gpus is None else list(gpus)
    if _held:
        return os.environ[VISIBLE].split(",")
    if count < 1 or not there:
        return []
    if count > len(there):
        raise InvalidError(
            f"granted {count} GPUs, and there are {len(there)} here ({', '.join(there)}): "
            f"give `--resources gpu={len(there)}`"
        )
    place = lock_directory() if directory is None else directory
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _open(place / "queue") as queue:
        fcntl.lockf(queue, fcntl.LOCK_EX)
        taken = _take(count, there, place)
    os.environ[VISIBLE] = ",".join(taken)
    print(f"GPU {', '.join(taken)} of {', '.join(there)}", file=sys.stderr, flush=True)
    return taken


def _take(count: int, there: Sequence[str], place: Path) -> list[str]:
    """Lock ``count`` GPUs, in the order they come free; only one process at a time is here."""
    taken: list[str] = []
    waited = False
    while True:
        for name in _free(there, taken, place):
            taken.append(name)
            if len(taken) == count:
                # In the machine's order: the first is where all that is no block goes.
                return sorted(taken, key=there.index)
        if not waited:
            waited = True
            print(
                f"waiting for {count - len(taken)} of the GPUs {', '.join(there)}, "
                "which other jobs use",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(POLL_SECONDS)


def _free(there: Sequence[str], taken: Sequence[str], place: Path) -> Iterator[str]:
    """Yield GPUs that no job uses, each with its lock now held by this process."""
    for name in there:
        if name in taken:
            continue
        # Opened only here: closing any other handle on the file would give the lock up.
        file = _open(place / _file_name(name))
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        _held.append(file)
        yield name


def _open(path: Path) -> IO[str]:
    return path.open("a", encoding="utf-8")


def _file_name(name: str) -> str:
    """Return a name without separators, one-to-one for what CUDA and schedulers call things.

    >>> _file_name("MIG-GPU-1/2/0")
    'MIG-GPU-1%2F2%2F0'
    """
    return (
        re.sub(r"[^A-Za-z0-9_.-]", lambda found: f"%{ord(found[0]):02X}", name).lstrip(".") or "_"
    )
