"""What every benchmark shares: the machine it ran on, its matrix rate, its table."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tokinfo.io.provenance import versions


def machine() -> dict[str, str]:
    """Return what a reader needs to judge a timing."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": device,
        "torch": versions()["torch"],
        "transformers": versions()["transformers"],
        "commit": commit(Path(__file__).parent),
    }


def commit(repository: Path) -> str:
    """Return the commit that a clone is at, `-dirty` with changes, or "unknown"."""
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest wall time of a few calls, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, the machine in every one of them, and print them."""
    facts = machine()
    table = [{**row, **facts} for row in rows]
    columns = list(dict.fromkeys(name for row in table for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(table)
    os.replace(partial, path)
    for row in table:
        print({name: value for name, value in row.items() if name not in facts})
