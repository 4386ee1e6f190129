"""A command that is stopped prints what it has; while it runs it says how far it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import REPOSITORY
from tests.cli.test_prompt import PROMPT, cells, checkpoint, directory, of, prepared, run
from tests.example_study import example
from tokinfo.cli.app import app
from tokinfo.solvers import watch

__all__ = ["checkpoint", "directory"]

SLOW = """
import sys, time
from tokinfo.cli.app import app
from tokinfo.solvers import {module}
def slow(*arguments, **named):
    print("searching", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.01)
        {look}
{module}.{function} = slow
app(sys.argv[1:])
"""
"""A command whose solver is slow from one function on, and looks at the watch there."""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    raw = example()
    raw["solvers"] |= {
        "timed": {"kind": "adam", "minutes": 1e-9},
        "timed-sweep": {"kind": "sweep", "minutes": 1e-9},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "study.yaml"


def interrupted(code: str, arguments: list[str], times: int = 1) -> tuple[int, str, str]:
    """Run a command, interrupt it once its search has begun, and return how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        # A test run in the background ignores the signal, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("searching" in line for line in lines)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def slow(module: str, function: str, look: str) -> str:
    return SLOW.format(module=module, function=function, look=look)


def test_ctrl_c_prints_the_best_prompt_so_far(checkpoint: Path) -> None:
    code = slow("joint", "_Search.run", "arguments[0].problem.watch.check()")
    arguments = ["invert", *of(checkpoint, "block.2"), "--solver", "joint", PROMPT]
    status, out, err = interrupted(code, arguments)
    assert status == 0, err
    rows = cells(out)
    assert len(rows) > 2
    assert all(row[3] for row in rows), "every position holds a token"
    assert "stopped by Ctrl-C" in out
    assert "nothing was swept around" in out
    assert "Traceback" not in err


def test_a_sweep_that_ctrl_c_stops_prints_no_rank_it_does_not_know(checkpoint: Path) -> None:
    code = slow("sweep", "_verified", "arguments[0].watch.check()")
    arguments = ["sweep", *of(checkpoint), PROMPT]
    status, out, err = interrupted(code, arguments)
    assert status == 0, err
    assert "stopped by Ctrl-C" in out
    assert "0 of 0 swept positions" in out
    assert "identifiable" not in "".join(map("".join, cells(out)))


def test_a_second_ctrl_c_ends_at_once(checkpoint: Path) -> None:
    code = slow("joint", "_Search.run", "pass")
    arguments = ["invert", *of(checkpoint, "block.2"), "--solver", "joint", PROMPT]
    status, out, _ = interrupted(code, arguments, times=2)
    assert status != 0
    assert out == ""


@pytest.mark.parametrize(
    ("command", "solver", "says"),
    [
        ("invert", "timed", "The search was stopped when the time was up"),
        ("sweep", "timed-sweep", "Sweeps were stopped when the time was up"),
    ],
)
def test_the_minutes_of_a_solver_end_its_command(
    command: str, solver: str, says: str, checkpoint: Path, study: Path
) -> None:
    prepared(checkpoint)
    arguments = ["--study", str(study), "--model", "llama", "--site", "block.1", "--solver", solver]
    done = run(app, [command, *arguments, PROMPT])
    assert done.exit_code == 0, done.output
    assert says in done.stdout


def test_without_a_terminal_lines_say_how_far_a_command_is(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "EVERY", 0)
    arguments = [*of(checkpoint), PROMPT]
    last = run(app, ["invert", "--solver", "adam", *arguments]).stderr.splitlines()[-1]
    assert last.startswith("adam, checkpoint: 0:0")
    assert "prompts tried, residual " in last
    last = run(app, ["sweep", *arguments]).stderr.splitlines()[-1]
    assert last.endswith("300 prompts tried, 0:00 left")


def test_on_a_terminal_a_bar_says_the_same(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    arguments = [*of(checkpoint), PROMPT]
    done = run(app, ["invert", "--solver", "adam", *arguments])
    assert done.exit_code == 0
    assert "adam, checkpoint" in done.stderr
    assert "residual" in done.stderr
    assert "residual" not in done.stdout
