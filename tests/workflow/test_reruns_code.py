"""A change in code or files reruns what it made; what a study no longer has can go."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.workflow.expected import (
    AGGREGATE,
    FIGURE_JOBS,
    PAGES,
    TRAINED_FLAT,
    cells,
    checkpoints,
    checks,
    solved_by,
)
from tests.workflow.run import RESULTS, pending, smoke, snakemake
from tokinfo.study.study import Study
from tokinfo.tables.schema import CELL_KEYS
from tokinfo.workflow.plan import Plan
from tokinfo.workflow.stale import outputs

# --- code ---------------------------------------------------------------------------------


def _edit(file: Path, pattern: str, replacement: str) -> None:
    text = file.read_text(encoding="utf-8")
    edited, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE | re.DOTALL)
    assert count == 1, f"{file.name}: nothing like {pattern}"
    file.write_text(edited, encoding="utf-8")


def test_comments_and_docstrings_rerun_nothing(changed: Path) -> None:
    for module in (changed / "tokinfo").rglob("*.py"):
        text = module.read_text(encoding="utf-8")
        module.write_text(f"{text}\n# Another comment.\n", encoding="utf-8")
    for script in (changed / "rules" / "scripts").glob("*.py"):
        text = script.read_text(encoding="utf-8")
        script.write_text(f"{text}\n# Another comment.\n", encoding="utf-8")
    _edit(changed / "tokinfo" / "cell.py", r'\A""".*?"""', '"""Another docstring."""')
    assert pending(changed, smoke()) == set()


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("report/figures/style.py", FIGURE_JOBS),
        ("report/pages/template.py", PAGES),
        ("report/pages/templates/strips.html", {"page strips"}),
        (
            "tables/identifiability.py",
            {
                *("page identifiability", "noise_table"),
                *("figure found_vs_identifiable", "figure rank_histogram"),
                *("figure margin_by_depth", "figure noise_threshold"),
            },
        ),
        (
            "text/passages.py",
            {
                "passages drawn",
                *cells(smoke(), lambda cell: cell.prompts == "drawn"),
                *checks("mixer-flat"),
                *AGGREGATE,
            },
        ),
        ("solvers/adam.py", solved_by("adam", "joint") | AGGREGATE),
        ("solvers/run.py", cells(smoke()) | AGGREGATE),
    ],
)
def test_logic_in_a_module_reruns_the_stage_that_uses_it(
    changed: Path, module: str, expected: set[str]
) -> None:
    _append_logic(changed / "tokinfo" / module)
    assert pending(changed, smoke()) == expected


def test_logic_of_training_reruns_trained_models_alone(changed: Path) -> None:
    _append_logic(changed / "tokinfo" / "models" / "train.py")
    trained = {"transformer", "transformer-int8"}
    expected = cells(smoke(), lambda cell: cell.model in trained) | AGGREGATE | TRAINED_FLAT
    expected |= {"train transformer"} | checkpoints("transformer", 1, 2)
    expected |= checkpoints("transformer-int8", 1) | {"unigram transformer"}
    assert pending(changed, smoke()) == expected


def test_a_script_of_a_rule_reruns_that_rule(changed: Path) -> None:
    _edit(changed / "rules" / "scripts" / "page.py", r"\Z", "\nDONE = True\n")
    assert pending(changed, smoke()) == PAGES


def _append_logic(module: Path) -> None:
    _edit(module, r"\Z", "\nADDED_BY_A_TEST = 1\n")


# --- what a study no longer has -----------------------------------------------------------


def _clean(directory: Path, study: dict[str, Any], *arguments: str) -> list[str]:
    """Run `tokinfo clean`; returns the paths it lists, below the results directory."""
    (directory / "clean.json").write_text(json.dumps(study), encoding="utf-8")
    command = [sys.executable, "-m", "tokinfo.cli.app", "clean", "--configfile", "clean.json"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        check=True,
    )
    listed = [line.split(f" {RESULTS}/") for line in done.stdout.splitlines()]
    return [line[1] for line in listed if len(line) == 2 and not line[0].startswith("kept")]


def test_nothing_of_a_finished_run_is_stale(finished: Path) -> None:
    assert _clean(finished, smoke(), "--dry-run") == []
    # Logs and benchmarks too.
    written = set(outputs(Plan(Study.model_validate(smoke()))))
    assert [path for path in written if not (finished / RESULTS / path).exists()] == []


def test_cleaning_leaves_nothing_to_do_but_the_aggregate_which_never_read_it(
    changed: Path,
) -> None:
    study = smoke()
    study["grids"] = study["grids"][:2]
    study["grids"][0]["models"] = ["mixer-flat"]
    study["prior"] = None
    listed = _clean(changed, study, "--dry-run")
    every = {cell.path for cell in Study.model_validate(smoke()).cells()}
    kept = {cell.path for cell in Study.model_validate(study).cells()}
    assert {path for path in listed if path.startswith("cells/")} == every - kept
    assert {"sources/transformer", "checkpoints/transformer/1"} <= set(listed)
    assert {"unigrams/transformer.safetensors", "training/transformer.csv"} <= set(listed)
    assert "logs/train/transformer.log" in listed

    file = changed / "less.json"
    file.write_text(json.dumps(study), encoding="utf-8")
    target = f"{RESULTS}/tables/recovery.parquet"
    done = snakemake(changed, target, "--cores", "2", "--configfile", str(file))
    assert done.returncode == 0, done.stderr[-4000:]
    # The stale cells were still there while the table was made.
    assert all((changed / RESULTS / path).exists() for path in every)
    table = pl.read_parquet(changed / target)
    assert set(table["model"]) == {"mixer-flat"}
    assert len(table.select(CELL_KEYS).unique()) == len(kept)

    assert _clean(changed, study) == listed
    assert [path for path in listed if (changed / RESULTS / path).exists()] == []
    assert pending(changed, study, target) == set()
    assert _clean(changed, study) == []


# --- files --------------------------------------------------------------------------------


def test_an_edited_corpus_file_reruns_everything(changed: Path) -> None:
    _edit(changed / "studies" / "data" / "harbour.txt", "morning", "evening")
    jobs = pending(changed, smoke())
    assert {"corpus harbour", "tokenizer small", "tokens small"} <= jobs
    assert cells(smoke()) | AGGREGATE <= jobs


def test_a_deeper_site_really_runs_and_then_rests(changed: Path) -> None:
    study = smoke()
    study["grids"][0]["sites"].append("mlp.1")
    study["grids"] = study["grids"][:1]
    study["grids"][0]["models"] = ["mixer-flat-untrained"]
    target = f"{RESULTS}/tables/recovery.parquet"
    before = pending(changed, study, target)
    assert before == {
        *cells(study, lambda cell: str(cell.site) == "mlp.1"),
        "prepare mixer-flat-untrained 1",
        "collect",
    }
    file = changed / "deeper.json"
    file.write_text(json.dumps(study), encoding="utf-8")
    # `--configfile` takes every file that follows it, so the target comes first.
    done = snakemake(changed, target, "--cores", "2", "--configfile", str(file))
    assert done.returncode == 0, done.stderr[-4000:]
    assert pending(changed, study, target) == set()
