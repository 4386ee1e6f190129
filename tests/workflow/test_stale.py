from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests import REPOSITORY
from tests.example_study import example
from tests.workflow.run import copy_repository, smoke, snakemake
from tokinfo.cli.app import app
from tokinfo.study.study import Study
from tokinfo.workflow import running
from tokinfo.workflow.plan import Plan
from tokinfo.workflow.stale import STAMPS, find, outputs

RESULTS = Path("results")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(*, masks: tuple[str, ...] = (":", "1:"), models: tuple[str, ...] = ()) -> dict[str, Any]:
    raw = example()
    raw["grids"][0]["masks"] = list(masks)
    if models:
        raw["grids"] = raw["grids"][:1]
        raw["grids"][0]["models"] = list(models)
    return raw


def make(raw: dict[str, Any]) -> set[str]:
    """Write every output of a study, as far as cleaning up looks at it; returns their paths."""
    paths = set(outputs(Plan(Study.model_validate(raw))))
    for path in paths:
        put(path)
    return paths


def put(path: str, content: str = "x" * 1000) -> Path:
    place = RESULTS / path
    if path.split("/")[0] in ("tokenizers", "sources", "checkpoints") and not place.suffix:
        place.mkdir(parents=True, exist_ok=True)
        (place / STAMPS[0]).touch()
        place = place / "model.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)
    return place


def stale(raw: dict[str, Any], *others: dict[str, Any]) -> set[str]:
    found = find([Study.model_validate(each) for each in (raw, *others)])
    return {entry.path for entry in found.stale}


def clean(raw: dict[str, Any], *arguments: str) -> str:
    Path("study.yaml").write_text(yaml.safe_dump(raw))
    done = CliRunner().invoke(app, ["clean", "--configfile", "study.yaml", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def everything() -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in Path().rglob("*")}


def test_a_studys_own_results_are_never_stale() -> None:
    make(study())
    assert stale(study()) == set()


def test_what_a_removed_mask_leaves_is_its_cells_logs_and_benchmarks() -> None:
    before = make(study(masks=(":", "1:")))
    gone = stale(study(masks=("1:",)))
    assert gone == before - set(outputs(Plan(Study.model_validate(study(masks=("1:",))))))
    assert {path.split("/")[0] for path in gone} == {"cells", "logs", "benchmarks"}
    assert all("/all/" in path for path in gone)
    assert len(gone) == 3 * 3 * 2 * 2  # three models, two sites, two metrics


def test_what_a_removed_model_leaves_goes_back_to_its_source() -> None:
    make(study(models=("flat", "llama", "smol")))
    gone = stale(study(models=("llama",)))
    assert {"sources/flat", "training/flat.csv", "checkpoints/flat/1"} <= gone
    assert {"sources/smol/config", "sources/smol/0", "decoders/smol.safetensors"} <= gone
    assert {"prompts/smol.json", "logs/train/flat.log", "benchmarks/fetch/smol/0.tsv"} <= gone
    assert not [path for path in gone if "llama" in path or "bpe" in path or "bible" in path]


@pytest.mark.parametrize("raw", [example(), smoke()], ids=["example", "smoke"])
def test_what_is_known_here_is_what_snakemake_plans_to_write(
    raw: dict[str, Any], directory: Path
) -> None:
    copy_repository(directory)
    Path("study.yaml").write_text(yaml.safe_dump(raw))
    planned = snakemake(directory, "--summary", "--configfile", "study.yaml")
    assert planned.returncode == 0, planned.stderr
    made = {line.split("\t")[0] for line in planned.stdout.splitlines()[1:]}
    plan = Plan(Study.model_validate(raw))
    # Figures and axes have the same names in every study.
    same = tuple(f"{plan.study.results}/{folder}/" for folder in ("tables", "figures", "pages"))
    written = {path for path in outputs(plan) if not path.startswith(("logs/", "benchmarks/"))}
    assert {f"{plan.study.results}/{path}" for path in written} == {
        path for path in made if not path.startswith(same)
    }


def test_passages_and_what_they_are_drawn_with_stay() -> None:
    raw = study()
    raw["tokenizers"]["other"] = raw["tokenizers"]["bpe"] | {"corpus": "other"}
    raw["corpora"]["other"] = raw["corpora"]["bible"]
    drawn = {"corpus": "other", "tokenizer": "other", "tokens": [4, 6], "count": 2, "seed": 0}
    raw["passages"] = {"drawn": drawn}
    without = copy.deepcopy(raw)
    raw["grids"][0]["prompts"] = ["drawn"]
    before = make(raw)
    assert {"passages/drawn.json", "tokenizers/other", "corpora/other.held-out.txt"} <= before
    assert stale(raw) == set()
    assert {"passages/drawn.json", "tokenizers/other"} <= stale(without)


def test_a_dry_run_lists_and_changes_nothing() -> None:
    make(study())
    before = everything()
    output = clean(study(masks=("1:",)), "--dry-run")
    assert "1.0 kB  results/cells/flat/block.1/all/l1_embedding_adam_sky_s0.parquet" in output
    assert output.splitlines()[-1] == "36 stale files and directories, 36.0 kB, would be removed"
    Path("study.yaml").unlink()
    assert everything() == before


def test_cleaning_removes_what_was_listed_and_the_empty_directories() -> None:
    before = make(study())
    clean(study(masks=("1:",)))
    left = set(outputs(Plan(Study.model_validate(study(masks=("1:",))))))
    assert {path for path in before if (RESULTS / path).exists()} == left
    assert not list(RESULTS.glob("*/flat/block.1/all"))
    assert stale(study(masks=("1:",))) == set()


def test_what_the_workflow_did_not_write_stays() -> None:
    make(study())
    others = ("report.html", "cells/notes.txt", "cells/flat/notes.parquet", "smoke/cells/x.parquet")
    others += ("checkpoints/README", "sources/flat.txt", "tables/mine.csv", "logs/cells/a.txt")
    for path in others:
        put(path)
    (RESULTS / "sources" / "my-papers").mkdir()
    (RESULTS / "sources" / "my-papers" / "paper.pdf").touch()
    clean(study(models=("llama",)))
    assert [path for path in others if not (RESULTS / path).exists()] == []
    assert (RESULTS / "sources" / "my-papers" / "paper.pdf").exists()


def test_downloads_and_resume_points_stay_and_are_told() -> None:
    make(study())
    put(".state/downloads/model.whl")
    put(".state/training/flat/resume.safetensors")
    output = clean(study(models=("llama",)))
    assert "kept: results/.state: 2.0 kB of downloads and resume points" in output
    assert (RESULTS / ".state" / "training" / "flat" / "resume.safetensors").exists()


def test_unfinished_outputs_of_a_killed_job_go() -> None:
    make(study())
    put("decoders/.flat.safetensors.partial")
    put("cells/flat/block.1/all/.l1_embedding_adam_sky_s0.parquet.partial")
    (RESULTS / "checkpoints/flat/.1.partial").mkdir()
    assert stale(study()) == {
        "decoders/.flat.safetensors.partial",
        "cells/flat/block.1/all/.l1_embedding_adam_sky_s0.parquet.partial",
        "checkpoints/flat/.1.partial",
    }


def test_no_link_is_followed_out_of_the_results(directory: Path) -> None:
    make(study())
    outside = directory / "outside"
    for name in ("disk", "other"):
        (outside / name / "flat" / "9").mkdir(parents=True)
        (outside / name / "flat" / "9" / STAMPS[0]).touch()
        (outside / name / "config.json").write_text("{}")
    before = sorted(outside.rglob("*"))
    (RESULTS / "checkpoints" / "flat" / "7").symlink_to(outside / "disk")
    (RESULTS / "decoders" / "old.safetensors").symlink_to(outside / "disk" / "config.json")
    (RESULTS / "sources" / "linked").symlink_to(outside / "disk", target_is_directory=True)
    (RESULTS / "cells" / "linked").symlink_to(outside / "disk", target_is_directory=True)
    put("sources/old").with_name("inside").symlink_to(outside / "disk")
    (RESULTS / "unigrams").symlink_to(outside / "other", target_is_directory=True)
    put("unigrams/old.safetensors")
    before = sorted(outside.rglob("*"))
    assert {"checkpoints/flat/7", "decoders/old.safetensors", "sources/linked"} <= stale(study())
    output = clean(study())
    assert sorted(outside.rglob("*")) == before
    assert not os.path.lexists(RESULTS / "checkpoints" / "flat" / "7")
    assert not (RESULTS / "sources" / "old").exists()
    assert "kept: results/unigrams: a link, not followed" in output


def test_results_that_are_themselves_a_link_are_cleaned_where_they_lie(directory: Path) -> None:
    (directory / "scratch").mkdir()
    RESULTS.symlink_to(directory / "scratch", target_is_directory=True)
    make(study())
    clean(study(masks=("1:",)))
    assert not list((directory / "scratch").glob("cells/*/*/all"))


def test_studies_that_share_a_directory_keep_each_others_results() -> None:
    make(study(models=("flat",)))
    make(study(models=("llama",)))
    Path("other.yaml").write_text(yaml.safe_dump(study(models=("flat",))))
    assert stale(study(models=("llama",)), study(models=("flat",))) == set()
    assert "\n0 stale" in "\n" + clean(study(models=("llama",)), "--keep", "other.yaml")
    elsewhere = study(models=("flat",)) | {"results": "elsewhere"}
    Path("other.yaml").write_text(yaml.safe_dump(elsewhere))
    done = CliRunner().invoke(app, ["clean", "--configfile", "study.yaml", "--keep", "other.yaml"])
    assert done.exit_code == 1
    assert "other.yaml: writes to elsewhere/, not to results/" in done.output


def test_what_was_made_with_values_of_the_command_line_stays_where_they_are_told() -> None:
    make(study(models=("flat", "llama")))
    chosen = study(models=("flat",))
    assert "cells/llama" in clean(chosen, "-n")
    grids = yaml.safe_dump(study(models=("flat", "llama"))["grids"], default_flow_style=True)
    value = f"grids={' '.join(grids.split())}"
    assert clean(chosen, "-n", "--config", value).startswith("0 stale")


def test_nothing_is_removed_while_a_run_is_at_work(directory: Path) -> None:
    make(study())
    (directory / ".snakemake").mkdir()
    Path("study.yaml").write_text(yaml.safe_dump(study(masks=("1:",))))
    command = [sys.executable, "-m", "tokinfo.cli.app", "clean", "--configfile", "study.yaml"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with running.at_work(directory):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert f"still at work in {directory}" in done.stderr
    assert str(os.getpid()) in done.stderr
    assert list(RESULTS.glob("cells/*/*/all"))


def test_cleaning_needs_neither_torch_nor_polars() -> None:
    Path("study.yaml").write_text(yaml.safe_dump(study()))
    code = (
        "import sys; from typer.testing import CliRunner; from tokinfo.cli.app import app; "
        "done = CliRunner().invoke(app, ['clean', '--configfile', 'study.yaml']); "
        "heavy = {'torch', 'polars', 'transformers'}; "
        "print(done.exit_code, sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "0 []"
