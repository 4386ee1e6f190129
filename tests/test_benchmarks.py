"""What the benchmarks write beside their numbers."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import CTRLConfig, LlamaConfig, PretrainedConfig

from tests import REPOSITORY
from tokinfo.probe.probe import Probe

FAMILIES = runpy.run_path(str(REPOSITORY / "benchmarks" / "families.py"))


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


def test_no_type_of_transformers_is_probed_wrong_and_the_document_says_what_was_found() -> None:
    rows = FAMILIES["read"](REPOSITORY / "docs" / "evidence" / "families.csv")
    assert {row["verdict"] for row in rows} <= {"agree", "refused", "not built"}
    assert [row["type"] for row in rows if row["verdict"] != "agree" and not row["reason"]] == []
    text = (REPOSITORY / "docs" / "families.md").read_text(encoding="utf-8")
    assert FAMILIES["rewritten"](text, rows) == text


def test_the_scan_tells_agreement_refusal_and_a_probe_that_reads_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = FAMILIES["examine"](LlamaConfig)
    assert (found["verdict"], found["sites"]) == ("agree", "attention mlp block")
    assert FAMILIES["examine"](CTRLConfig)["verdict"] == "refused"
    read = Probe.__call__

    def slightly_off(self: Probe, *arguments: Any, **named: Any) -> Tensor:
        return read(self, *arguments, **named) * (1 + 1e-4)

    monkeypatch.setattr(Probe, "__call__", slightly_off)
    assert FAMILIES["examine"](LlamaConfig)["verdict"] == "wrong"


def test_a_type_that_is_not_small_is_not_built() -> None:
    class Large(PretrainedConfig):
        def __init__(self, **_: Any) -> None:
            raise ValueError("too large")

    assert FAMILIES["examine"](Large)["verdict"] == "not built"
