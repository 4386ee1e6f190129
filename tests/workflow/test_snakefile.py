"""The front door: what it refuses, how it fails, and what it may cost to open."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import REPOSITORY
from tests.workflow.run import RESULTS, copy_repository, smoke, snakemake
from tokinfo.study.study import Study
from tokinfo.workflow.rules import CODE, as_text


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A copy of the repository in which nothing has run."""
    copy_repository(tmp_path)
    return tmp_path


def test_every_mistake_is_told_at_once_without_a_traceback(fresh: Path) -> None:
    study = smoke()
    study["grids"][0]["models"].append("no-model")
    study["solvers"]["adam"]["restarts"] = 0
    study["sources"]["transformer"]["headz"] = 3
    (fresh / "wrong.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    done = snakemake(fresh, "--cores", "2", "--configfile", "wrong.yaml")
    assert done.returncode == 1
    for part in ("no-model", "solvers.adam.restarts", "sources.transformer.headz", "wrong.yaml"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (fresh / "results").exists()


def test_a_clone_and_an_environment_may_be_in_any_path_but_one_with_braces(tmp_path: Path) -> None:
    clone = tmp_path / 'my "own" clone\'s [1] & $HOME'
    clone.mkdir()
    copy_repository(clone)
    # The directory of an environment is what Python starts from.
    (clone / ".venv").symlink_to(sys.prefix)
    arguments = (f"{RESULTS}/corpora/harbour.txt", "--configfile", "studies/smoke.yaml")
    done = snakemake(clone, *arguments, "--cores", "1", python=clone / ".venv" / "bin" / "python")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (clone / RESULTS / "corpora" / "harbour.txt").is_file()
    braces = clone.rename(tmp_path / "clone {v2}")
    done = snakemake(braces, *arguments, "--dry-run")
    assert done.returncode == 1
    assert f"{braces}: Snakemake would take the braces" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_of_a_time_in_the_future_stops_a_run_before_any_job(fresh: Path) -> None:
    text = fresh / "studies" / "data" / "harbour.txt"
    os.utime(text, (time.time() + 3600,) * 2)
    arguments = (f"{RESULTS}/corpora/harbour.txt", "--configfile", "studies/smoke.yaml")
    done = snakemake(fresh, *arguments, "--cores", "1")
    assert done.returncode == 1
    assert "`touch studies/data/harbour.txt`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (fresh / "results").exists()
    assert not (fresh / ".snakemake" / "locks").exists()


def test_a_large_table_is_written_as_text_on_request_only(fresh: Path) -> None:
    study = smoke()
    shared = {"corpus": "harbour", "tokenizer": "small", "tokens": [2, 2]}
    study["passages"] = {"many": {**shared, "count": 3000}}
    study["grids"] = [study["grids"][0] | {"prompts": ["many"], "models": ["mixer-flat"]}]
    assert as_text(Study.model_validate(smoke()))
    assert not as_text(Study.model_validate(study))
    (fresh / "many.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    arguments = ("--configfile", "many.yaml", "--dry-run", "--cores", "1")
    for target, wanted in (("all", False), (f"{RESULTS}/tables/recovery.csv", True)):
        done = snakemake(fresh, target, *arguments)
        assert done.returncode == 0, done.stderr
        assert ("recovery_csv" in done.stdout + done.stderr) is wanted


def test_values_on_the_command_line_override_and_are_checked(fresh: Path) -> None:
    arguments = ("--configfile", "studies/smoke.yaml", "--dry-run", "--config")
    done = snakemake(fresh, *arguments, "threads=none", "results=elsewhere")
    assert done.returncode == 1
    assert "--config: threads = 'none'" in done.stderr
    done = snakemake(fresh, *arguments, "results=elsewhere")
    assert done.returncode == 0, done.stderr
    assert "elsewhere/tables/recovery.parquet" in done.stdout + done.stderr
    assert RESULTS not in done.stdout + done.stderr


def test_a_prompt_that_is_too_long_stops_the_run_before_anything_is_trained(fresh: Path) -> None:
    study = smoke()
    # Twelve words could be twelve tokens, so only the tokenizer can tell.
    study["prompts"]["sea"].append("Extraordinarily incomprehensible cryptographers quarrel.")
    (fresh / "long.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    done = snakemake(fresh, "--cores", "1", "--configfile", "long.yaml")
    assert done.returncode == 1
    found = re.search(
        r"^tokinfo: prompts for .*prompts\.sea\[2\].*more than n_ctx", done.stderr, re.M
    )
    assert found, done.stderr[-3000:]
    assert not (fresh / RESULTS / "sources").exists()
    assert not (fresh / RESULTS / "checkpoints").exists()


def test_a_job_that_fails_names_itself_in_one_line_and_in_its_log(changed: Path) -> None:
    (changed / RESULTS / "tokens" / "small.safetensors").write_bytes(b"cut")
    os.remove(changed / RESULTS / "corpora" / "harbour.txt")
    (changed / "studies" / "data" / "harbour.txt").write_bytes(b"\xff\xfe no text")
    done = snakemake(changed, "--cores", "1", "--configfile", "studies/smoke.yaml")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("tokinfo: corpus")]
    assert lines, done.stderr[-3000:]
    assert "not UTF-8 text" in lines[0]
    log = (changed / RESULTS / "logs" / "corpus" / "harbour.log").read_text(encoding="utf-8")
    assert log.splitlines() == [lines[0]]


def test_the_report_needs_no_network(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy that refuses everything stands for a machine without a network.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    done = snakemake(
        changed, "--report", "results/report.html", "--configfile", "studies/smoke.yaml"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (changed / "results" / "report.html").read_text(encoding="utf-8")
    for part in ("found_by_mask", "training_curves", "strips.html", "summary.csv", "noise.csv"):
        assert part in page


def test_every_rule_writes_a_log_and_a_benchmark(finished: Path) -> None:
    for folder in ("logs", "benchmarks"):
        found = {path.parts[0] for path in _files(finished / RESULTS / folder)}
        found = {Path(part).stem for part in found}
        # This study fetches nothing and tests no row of the chapter; cells, figures and pages are
        # filed under those words.
        expected = {*CODE, "figures", "pages", "cells"} - {
            *("fetch", "figure", "page", "invert", "replication")
        }
        assert expected <= found
    assert (finished / RESULTS / "logs" / "figures" / "training_curves.log").exists()


def test_no_partial_file_is_left(finished: Path) -> None:
    left = [p for p in _files(finished / RESULTS) if "partial" in p.name or ".tmp" in p.name]
    assert left == []


def _files(directory: Path) -> list[Path]:
    return [p.relative_to(directory) for p in directory.rglob("*") if p.is_file()]


def test_the_snakefile_imports_nothing_heavy() -> None:
    code = (
        "import sys, tokinfo.workflow.downloads, tokinfo.workflow.plan, tokinfo.workflow.memory; "
        "import tokinfo.study.load; "
        "print([m for m in ('torch', 'transformers', 'polars', 'pandas', 'seaborn') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_rules_are_formatted() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("snakefmt"), "--check", "Snakefile", "rules"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_rules_pass_the_linter(fresh: Path) -> None:
    done = snakemake(fresh, "--lint", "--configfile", "studies/smoke.yaml")
    assert done.returncode == 0, done.stderr
