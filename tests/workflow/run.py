"""A finished run of `studies/smoke.yaml`, and questions to Snakemake about it."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests import REPOSITORY

PARTS = ("Snakefile", "rules", "envs", "profiles", "report", "studies", "tokinfo")
RESULTS = "results/smoke"


def snakemake(
    directory: Path,
    *arguments: str,
    timeout: int = 1500,
    gpus: str = "",
    python: str | Path = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a copy of the repository; nothing inherited.

    ``gpus`` names those that its jobs may take; torch finds no GPU under any name made up.
    ``python`` is the interpreter.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "CUDA_VISIBLE_DEVICES")
    }
    environment["CUDA_VISIBLE_DEVICES"] = gpus
    command = [str(python), "-m", "snakemake", *arguments]
    with subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            # Its jobs too: they would write on where another test begins anew.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def copy_repository(directory: Path) -> None:
    """Copy what a run needs; none of its results."""
    for part in PARTS:
        origin = REPOSITORY / part
        if origin.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin, directory / part, ignore=ignored)
        elif origin.exists():
            shutil.copy2(origin, directory / part)


def smoke() -> dict[str, Any]:
    """Return the smoke study as plain data, without shared parts, to be changed by a test."""
    text = (REPOSITORY / "studies" / "smoke.yaml").read_text(encoding="utf-8")
    study: dict[str, Any] = yaml.safe_load(text)
    # Anchors make several entries the same object: a change to one would be a change to all.
    return {key: copy.deepcopy(value) for key, value in _unshared(study).items()}


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value


def pending(directory: Path, study: dict[str, Any], *arguments: str) -> set[str]:
    """Return the jobs that a run of this study would do now, one short name for each.

    Names are `rule first-output`, the output without the results directory.
    """
    file = directory / f"study-{os.getpid()}.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True), encoding="utf-8")
    try:
        done = snakemake(
            directory, "--summary", "--configfile", str(file), "--cores", "2", *arguments
        )
    finally:
        file.unlink()
    assert done.returncode == 0, done.stderr
    return _pending(done.stdout.splitlines())


def _pending(lines: Iterable[str]) -> set[str]:
    jobs = set()
    for line in lines:
        output, _, rule, _, _, plan = line.split("\t")
        if plan == "update pending":
            jobs.add(name(rule, output.removeprefix(f"{RESULTS}/")))
    return jobs


def name(rule: str, output: str) -> str:
    """Name a job after its rule and, where there are several, what it is about."""
    path = Path(output)
    if rule == "invert":
        return output.removeprefix("cells/").removesuffix(".parquet")
    if rule in ("prepare", "fetch"):
        return f"{rule} {path.parent.name} {path.name}"
    if rule == "embedding":
        return f"embedding {path.parent.name if path.name == '0' else path.stem}"
    if rule in ("collect", "recovery_csv", "summarise", "noise_table"):
        return rule
    return f"{rule} {path.name.split('.')[0]}"
