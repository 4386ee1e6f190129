"""A real Slurm on this machine, for as long as a test needs it: munge, a controller, one node.

Its two GPUs are device files that lead nowhere: Slurm counts, grants and hides them as it would
real ones. Everything it writes is in a scratch directory, its ports are free ones, and its daemons
are stopped by their process ids, whatever happened in between.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
GPUS = 2
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin")

_CONFIGURATION = """\
ClusterName=tokinfo
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={scratch}/run/munge.socket.2
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={scratch}/state
SlurmdSpoolDir={scratch}/spool
SlurmctldPidFile={scratch}/run/slurmctld.pid
SlurmdPidFile={scratch}/run/slurmd.pid
SlurmctldLogFile={scratch}/log/slurmctld.log
SlurmdLogFile={scratch}/log/slurmd.log
JobCompType=jobcomp/filetxt
JobCompLoc={scratch}/log/completed.txt
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=7200
GresTypes=gpu
NodeName=localhost CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=cpu Nodes=localhost Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=localhost MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why no Slurm can be started here; None where one can."""
    missing = [program for program in PROGRAMS if _program(program) is None]
    if missing:
        return f"no Slurm here: {', '.join(missing)} not installed (.ci/run installs them)"
    if os.geteuid() != 0:
        return "Slurm's daemons need root here"
    return None


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))


@dataclass
class Slurm:
    """A running Slurm.

    Attributes:
        scratch: directory of everything that it writes.
        environment: what a process needs to submit to it.
    """

    scratch: Path
    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """Return the output of a Slurm command; raises CalledProcessError where it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """Return what `scontrol` says of every job since the start, finished ones too."""
        lines = self.ask("scontrol", "show", "job", "--oneliner").splitlines()
        found = [_fields(line) for line in lines if line.startswith("JobId=")]
        return sorted(found, key=lambda job: int(job["JobId"]))

    def completed(self) -> list[dict[str, str]]:
        """Return the records of the job completion plugin, in the order of their ends."""
        file = self.scratch / "log" / "completed.txt"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [_fields(line) for line in lines]

    def node(self) -> str:
        """Return the state of the node, as `sinfo` names it."""
        return self.ask("sinfo", "--noheader", "--format=%T", "--partition=cpu").strip()

    def log(self) -> str:
        """Return what the daemons logged, for the message of a test that fails."""
        files = sorted((self.scratch / "log").glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files)


def _fields(line: str) -> dict[str, str]:
    """Return the fields of a record; a value may hold spaces, a name may not.

    >>> _fields("JobId=3 Comment=rule invert TresPerJob=gres:gpu:1")
    {'JobId': '3', 'Comment': 'rule invert', 'TresPerJob': 'gres:gpu:1'}
    """
    parts = re.split(r"(?:^| )([A-Za-z:/]+)=", line)
    return {name: value.strip() for name, value in zip(parts[1::2], parts[2::2], strict=True)}


@contextlib.contextmanager
def running(scratch: Path) -> Iterator[Slurm]:
    """Start a Slurm in an empty directory, and stop it.

    Raises:
        RuntimeError: a daemon did not start; the message holds its log.
    """
    for part in ("run", "log", "state", "spool", "dev", "bin"):
        (scratch / part).mkdir(parents=True)
    started: list[int] = []
    try:
        slurm = _configured(scratch)
        _start(slurm, started)
        yield slurm
    finally:
        _stop(started, scratch)


def _configured(scratch: Path) -> Slurm:
    for number in range(GPUS):
        # The numbers of /dev/null: a file that is a device, and that nothing can harm.
        os.mknod(scratch / "dev" / f"nvidia{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    controller, node = _free_ports(2)
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    settings = _CONFIGURATION.format(
        scratch=scratch,
        controller=controller,
        node=node,
        cpus=os.cpu_count(),
        memory=int(0.9 * megabytes),
        gpus=GPUS,
    )
    configuration = scratch / "slurm.conf"
    configuration.write_text(settings, encoding="utf-8")
    devices = f"NodeName=localhost Name=gpu File={scratch}/dev/nvidia[0-{GPUS - 1}]\n"
    (scratch / "gres.conf").write_text(devices, encoding="utf-8")
    # Snakemake's job step drops SLURM_CONF; where Slurm is installed for good, srun needs none.
    wrapper = scratch / "bin" / "srun"
    wrapper.write_text(
        f'#!/bin/sh\nSLURM_CONF={configuration} exec {_program("srun")} "$@"\n', encoding="utf-8"
    )
    wrapper.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PYTHONPATH"))}
    path = [str(scratch / "bin"), str(Path(sys.executable).parent), kept.get("PATH", ""), *_SBIN]
    return Slurm(scratch, kept | {"SLURM_CONF": str(configuration), "PATH": os.pathsep.join(path)})


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _start(slurm: Slurm, started: list[int]) -> None:
    """Start the three daemons in turn, noting each one's process id as soon as it has one."""
    scratch = slurm.scratch
    key = scratch / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    run = scratch / "run"
    commands = {
        "munged": [
            f"--key-file={key}",
            f"--socket={run}/munge.socket.2",
            f"--pid-file={run}/munged.pid",
            f"--log-file={scratch}/log/munged.log",
            f"--seed-file={run}/munged.seed",
            "--force",
        ],
        "slurmctld": ["-c", "-f", slurm.environment["SLURM_CONF"]],
        "slurmd": ["-N", "localhost", "-f", slurm.environment["SLURM_CONF"]],
    }
    for name, arguments in commands.items():
        program = _program(name)
        assert program is not None
        done = subprocess.run(
            [program, *arguments],
            env=slurm.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        file = run / f"{name}.pid"
        try:
            _wait(lambda file=file: file.exists() and file.read_text().strip(), 120)
        except TimeoutError:
            raise RuntimeError(f"{name} did not start: {done.stderr}\n{slurm.log()}") from None
        started.append(int(file.read_text()))
    try:
        _wait(lambda: _idle(slurm), 120)
    except TimeoutError:
        raise RuntimeError(f"Slurm's node is not idle\n{slurm.log()}") from None


def _idle(slurm: Slurm) -> bool:
    try:
        return slurm.node() == "idle"
    except subprocess.CalledProcessError:
        return False


def _wait(condition: object, seconds: float) -> None:
    assert callable(condition)
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError
        time.sleep(0.1)


def _stop(started: list[int], scratch: Path) -> None:
    """Stop the daemons, the last one first, and the steps that a node leaves behind."""
    for pid in reversed(started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            _wait(lambda pid=pid: not alive(pid), 20)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in _steps(scratch):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A daemon that no process waits for may stay a zombie where init does not collect it.
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def _steps(scratch: Path) -> Iterator[int]:
    """Yield the processes whose environment names this Slurm's configuration."""
    mark = f"SLURM_CONF={scratch}/slurm.conf".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
