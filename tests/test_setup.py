from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LOCK = [
    line
    for line in (REPOSITORY / "requirements.lock").read_text().splitlines()
    if line and not line.startswith("#")
]
PINS = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in LOCK}
REQUIRED = [Requirement(text) for text in PROJECT["dependencies"]]
DEVELOPMENT = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]
ENVIRONMENTS = sorted((REPOSITORY / "envs").glob("*.yaml"))


def test_the_lock_has_exact_public_versions_only() -> None:
    """A local label (+cpu) or a host would tie it to one machine's index."""
    assert [line for line in LOCK if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)
            ] == []  # fmt: skip
    assert len(PINS) == len(LOCK)


def test_the_lock_leaves_the_choice_of_an_accelerator_to_torch() -> None:
    assert not [name for name in PINS if re.search(r"nvidia|cuda|triton|rocm", name)]
    assert PINS["torch"] == "2.13.0"


@pytest.mark.parametrize("requirement", REQUIRED + DEVELOPMENT, ids=lambda r: r.name)
def test_the_lock_is_inside_the_ranges_of_the_project(requirement: Requirement) -> None:
    version = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


@pytest.mark.parametrize("requirement", REQUIRED + DEVELOPMENT, ids=lambda r: r.name)
def test_every_range_has_a_lower_bound(requirement: Requirement) -> None:
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators & {">=", "~="}


def pip_pins(environment: Path) -> dict[str, str]:
    content = yaml.safe_load(environment.read_text())
    parts = [part["pip"] for part in content["dependencies"] if isinstance(part, dict)]
    return {
        canonicalize_name(name): version
        for pins in parts
        for name, version in (pin.split("==") for pin in pins)
    }


def test_there_is_an_environment() -> None:
    assert ENVIRONMENTS


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.name)
def test_conda_environments_have_the_versions_of_the_lock(environment: Path) -> None:
    found = pip_pins(environment)
    assert found == {name: PINS[name] for name in found}


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.name)
def test_conda_environments_name_every_requirement_of_the_package(environment: Path) -> None:
    assert set(pip_pins(environment)) == {canonicalize_name(r.name) for r in REQUIRED}


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.name)
def test_conda_environments_fix_a_python_that_the_project_supports(environment: Path) -> None:
    content = yaml.safe_load(environment.read_text())
    (python,) = [p for p in content["dependencies"] if str(p).startswith("python ")]
    assert Version(python.split("=")[1]) >= Version("3.11")
    assert PROJECT["requires-python"] == ">=3.11"


def test_rules_use_only_environments_that_exist() -> None:
    used = {
        name
        for rules in (REPOSITORY / "rules").glob("*.smk")
        for name in re.findall(r'"\.\./(envs/[^"]+)"', rules.read_text())
    }
    assert used <= {f"envs/{path.name}" for path in ENVIRONMENTS}


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    for part in (
        "Version 2.0, January 2004",
        "9. Accepting Warranty",
        "END OF TERMS AND CONDITION",
    ):
        assert part in text


def test_the_citation_names_this_version_and_the_method_s_sources() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    titles = [reference["title"] for reference in citation["references"]]
    assert titles == ["Masked Mixers for Language Generation and Retrieval",
                      "Information between tokens"]  # fmt: skip


def test_ci_runs_the_tests_and_every_linter() -> None:
    ci = REPOSITORY / ".ci" / "run"
    assert ci.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", str(ci)], check=True)
    text = ci.read_text()
    assert text.index("make test") < text.index("make lint")
    makefile = (REPOSITORY / "Makefile").read_text()
    for tool in ("ruff check", "ruff format --check", "mypy --strict", "snakefmt --check",
                 "snakemake --lint"):  # fmt: skip
        assert tool in makefile


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False
    )


def test_make_asks_for_a_python_that_is_new_enough(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    stamp = tmp_path / "venv" / ".installed"
    done = make(f"PYTHON={old}", f"VENV={tmp_path}/venv", f"STAMP={stamp}", "install")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert not stamp.exists()


def test_make_alone_runs_the_study_and_its_report() -> None:
    done = make("-n")
    lines = done.stdout.splitlines()
    assert any(line.endswith("/snakemake --cores all") for line in lines)
    assert any(line.endswith("--report results/report.html") for line in lines)
