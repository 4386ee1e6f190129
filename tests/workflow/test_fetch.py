"""Models from a hub, through the real workflow: fetched, cut, probed, and no more than that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub_server import COMMIT, Hub, hub
from tests.models.fetch.hub_models import BLOCKS, needed_bytes, write_model
from tests.workflow.run import RESULTS, copy_repository, pending, smoke, snakemake
from tokinfo.study.study import Study

TOKEN = "hf_a_secret_of_mine"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as running:
        running.token = TOKEN
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        yield running


def study(*sites: str, **source: Any) -> dict[str, Any]:
    """Return a study of a model on the hub."""
    grid = {"sites": list(sites), "masks": ["1:"], "solvers": ["adam"], "prompts": ["sea"]}
    real = {"kind": "hub", "repository": "some/model", "blocks": BLOCKS, "n_ctx": 32}
    return smoke() | {
        "sources": {"real": real | source},
        "models": {"real": {"source": "real"}},
        "grids": [{"models": ["real"], **grid}],
    }


def run(directory: Path, raw: dict[str, Any]) -> str:
    """Run everything up to the cells; returns what Snakemake printed."""
    (directory / "study.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    paths = [f"{RESULTS}/{cell.path}" for cell in Study.model_validate(raw).cells()]
    done = snakemake(directory, *paths, "--cores", "2", "--configfile", "study.yaml")
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stderr


def making(directory: Path, raw: dict[str, Any]) -> set[str]:
    """Return the jobs to be done that make cells."""
    found = pending(directory, raw)
    kinds = ("fetch ", "prepare ", "embedding ", "real/")
    return {re.sub("/from1/.*", "", job) for job in found if job.startswith(kinds)}


def test_a_model_is_fetched_cut_and_probed_and_a_deeper_site_fetches_one_more_block(
    server: Hub, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    copy_repository(directory)
    state = write_model(tmp_path / "model")
    server.repositories["some/model"] = tmp_path / "model"

    cut = {"fetch real 0", "embedding real", "fetch real 1", "prepare real 1", "real/block.1"}
    # The configuration alone is for the check of the prompts, which no cell waits for.
    assert making(directory, study("block.1")) == cut | {"fetch real config"}
    output = run(directory, study("block.1"))
    assert re.search(r"real +1 of 5 +~0.\d\d GB ", output)
    assert re.search(r"Fetching real, 1 \(\d+ MB on the disk\)", output)
    assert server.weights_sent() <= 1.05 * needed_bytes(state, 1)
    checkpoint = directory / RESULTS / "checkpoints" / "real" / "1"
    assert '"depth": 5' in (checkpoint / "tokinfo.json").read_text()
    assert COMMIT in (checkpoint / "config.json").read_text()
    config = {"fetch real config"}
    assert making(directory, study("block.1")) == config

    deeper = {"fetch real 2", "prepare real 2", "real/block.2"}
    assert making(directory, study("block.1", "block.2")) == deeper | config
    server.forget()
    run(directory, study("block.1", "block.2"))
    second = needed_bytes(state, 2) - needed_bytes(state, 1)
    assert second <= server.weights_sent() <= 1.05 * second
    for path in directory.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_refusal_ends_the_run_with_one_line(server: Hub, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    copy_repository(directory)
    (directory / "study.yaml").write_text(yaml.safe_dump(study("block.1")), encoding="utf-8")
    done = snakemake(
        directory, f"{RESULTS}/sources/real/1", "--cores", "1", "--configfile", "study.yaml"
    )
    assert done.returncode == 1
    # The profile lets a failed job try again; it says the same then.
    lines = list({line for line in done.stderr.splitlines() if line.startswith("tokinfo: ")})
    assert len(lines) == 1
    assert lines[0].startswith("tokinfo: fetch real (1): model some/model@main on the hub: ")
    assert "check the name; for a private one set HF_TOKEN" in lines[0]
    log = (directory / RESULTS / "logs" / "fetch" / "real" / "1.log").read_text(encoding="utf-8")
    assert log.splitlines()[-1] == lines[0]
    assert not (directory / RESULTS / "sources" / "real" / "1").exists()


def test_a_dry_run_of_the_llama_study_says_what_would_be_fetched_and_held(tmp_path: Path) -> None:
    copy_repository(tmp_path)
    arguments = ("--dry-run", "--cores", "1", "--configfile", "studies/llama.yaml")
    done = snakemake(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert re.search(r"llama-2-70b +1 of 80 +2.24 GB +1.91 GB +8.7 GB +\d.\d GB +0\n", output)
    assert "Pretrained Llama models: 15.69 GB to fetch in all" in output
    assert "Fetching llama-30b, 8 (8996 MB on the disk)" in output
    assert not (tmp_path / "results").exists()


def test_one_key_on_the_command_line_reads_a_model_from_a_directory(tmp_path: Path) -> None:
    copy_repository(tmp_path)
    write_model(tmp_path / "models" / "mine")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study("block.1")), encoding="utf-8")
    arguments = ("--cores", "1", "--configfile", "study.yaml", "--config")
    target = f"{RESULTS}/sources/real/1"
    done = snakemake(tmp_path, target, *arguments, "sources={real: {path: models/mine}}")
    assert done.returncode == 0, done.stderr
    assert "to fetch in all" not in done.stderr
    assert (tmp_path / target / "block-0001.safetensors").is_file()
    done = snakemake(tmp_path, target, *arguments, "sources={real: {path: models/other}}")
    assert done.returncode == 1
    assert "--config: sources.real.path = 'models/other': there is no config.json" in done.stderr
