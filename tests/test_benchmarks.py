"""What the benchmarks write beside their numbers."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

from tests import REPOSITORY


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", str(directory), *identity, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_the_code_and_says_when_it_was_changed(tmp_path: Path) -> None:
    commit = runpy.run_path(str(REPOSITORY / "benchmarks" / "common.py"))["commit"]
    assert commit(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    assert commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "code.py").write_text("x = 2\n")
    assert commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
