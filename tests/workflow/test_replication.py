"""A study that tests rows of the chapter runs what it can and lists what the rest would need."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from tests import REPOSITORY
from tests.claims_study import claims_study
from tests.workflow.run import copy_repository, snakemake
from tokinfo.study.claims import load_claims
from tokinfo.study.load import load_study
from tokinfo.study.study import Study

CHAPTER = REPOSITORY / "studies" / "chapter.yaml"
HUB = ("llama-7b", "mistral-7b", "llama-13b", "llama-30b", "llama-65b", "llama-2-70b")
PAGE = "results/claims/pages/replication.html"


def small() -> dict[str, Any]:
    study = claims_study()
    study["claims"]["exact"] |= {"solvers": [], "identify": ["sweep-all"]}
    study["claims"]["smaller"] |= {"solvers": [], "identify": ["sweep"]}
    study["claims"]["smaller"]["rows"] = ["mixer-flat-d512-untrained-after1"]
    drawn = {"corpus": "harbour", "tokenizer": "small", "count": 3, "tokens": [4, 6]}
    study["passages"] = {"drawn": drawn}
    study["claims"]["smaller"]["passages"] = ["drawn"]
    return study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("claims")
    copy_repository(directory)
    (directory / "study.yaml").write_text(yaml.safe_dump(small()), encoding="utf-8")
    # Without this value the cells under the published protocol would be others.
    over = ("--config", "solvers={chapter: {learning_rate: 0.02, steps: 501}}")
    done = snakemake(directory, PAGE, "--cores", "2", "--configfile", "study.yaml", *over)
    assert done.returncode == 0, done.stderr
    return directory


def test_a_run_answers_rows_and_lists_the_others(finished: Path) -> None:
    table = pl.read_parquet(finished / "results/claims/tables/replication.parquet")
    assert table["row"].n_unique() == 55
    ran = {row["entry"]: row for row in table.filter(pl.col("runs") > 0).to_dicts()}
    assert set(ran) == {"exact", "smaller", "trained"}
    exact, smaller, trained = (ran[name] for name in ("exact", "smaller", "trained"))
    # The chapter found this one: so must its protocol here, on a mixer of 32 positions of width.
    assert (exact["padding"], exact["runs"], exact["n_prompts"]) == ("n_ctx", 1, 2)
    assert exact["swept"] > 10  # every token of the prompt
    assert (smaller["runs"], smaller["initialisations"]) == (2, 2)
    assert (smaller["swept"], smaller["identifiable"]) == (2, 1.0)
    assert (smaller["n_prompts"], smaller["prompts_identifiable"]) == (2 + 3, 1.0)
    assert (trained["runs"], trained["initialisations"]) == (2, 1)
    assert trained["trained_tokens"] == 4 * 2 * 64
    assert trained["held_out_loss"] > 0
    text = (finished / PAGE).read_text(encoding="utf-8")
    assert "weights not at hand: 0.7 GB to fetch from huggyllama/llama-7b" in text


def test_the_command_of_a_row_that_was_not_run_would_run_it(finished: Path) -> None:
    table = pl.read_parquet(finished / "results/claims/tables/replication.parquet")
    row = table.row(by_predicate=pl.col("row") == "llama7b-block1-after2", named=True)
    assert row["verdict"] == "not run"
    _, *arguments = shlex.split(row["command"])
    planned = snakemake(finished, PAGE, *arguments, "-n")
    assert planned.returncode == 0, planned.stderr
    assert "Fetching llama, 1" in planned.stdout
    assert "llama-7b at block.1, from2: l1 by chapter-llama" in planned.stdout
    # What has run is not run again: the command says what that run's did.
    assert "-untrained at" not in planned.stdout


def test_the_study_of_the_chapter_answers_every_row() -> None:
    study = load_study(CHAPTER)
    tested = {answer.claim.id for answer in study.answers() if not answer.entry.stand_in}
    # Of the untrained Llamas by width only the sizes are stated: their tokenizer is Llama's.
    assert set(load_claims().rows) - tested == {
        row.id for row in load_claims().statements if row.model.startswith("llama-width")
    }
    stood_in = {answer.claim.id for answer in study.answers() if answer.entry.stand_in}
    needing = {row.id for row in load_claims().statements if "mixer" not in row.id}
    assert needing - stood_in == {"transformer-d256-trained-after1"}


def test_the_study_of_the_chapter_runs_nothing_from_the_hub_unless_asked() -> None:
    study = load_study(CHAPTER)
    kinds = {study.source_of(cell.model).kind for cell in study.cells()}
    assert kinds == {"mixer", "transformer", "wheel"}


def test_the_models_from_the_hub_are_those_of_the_llama_study() -> None:
    chapter = load_study(CHAPTER)
    llama = load_study(CHAPTER.with_name("llama.yaml"))
    assert set(llama.sources) == set(HUB)
    for name in HUB:
        assert chapter.sources[name] == llama.sources[name]
        assert chapter.models[name] == llama.models[name]


def test_rows_from_the_hub_plan_without_a_fault(tmp_path: Path) -> None:
    copy_repository(tmp_path)
    entries = [*HUB, "llama-2-70b-restricted", "llama-7b-untrained"]
    planned = snakemake(
        tmp_path,
        *("-n", "-q", "rules", "--configfile", "studies/chapter.yaml"),
        *("--config", f"run=[{', '.join(entries)}]"),
    )
    assert planned.returncode == 0, planned.stderr
    for name in HUB:
        assert f"\n{name} " in planned.stderr  # the table of what is fetched and held
    study = Study.model_validate(
        yaml.safe_load(CHAPTER.read_text(encoding="utf-8")) | {"run": entries}
    )
    # Every row of theirs is run with the published steps for Llama.
    steps = {study.solvers[a.entry.published].steps for a in study.answers() if a.runs}
    assert steps == {2000}
