"""A study whose prompts and title are markup and script: shown as text on every real page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.claims_study import MARIO
from tests.report.pages.test_strips import CHROMIUM, OPTIONS
from tests.workflow.faults import RESULTS, STUDY, finish, start
from tests.workflow.run import copy_repository

TOKEN = "hf_a_secret_of_mine"
OWNED = "document.title='owned'"
PROMPT = f"<script>{OWNED}</script><img src=x onerror={OWNED}>"
NAME = f"`x <javascript:{OWNED}>`_ .. raw:: html\n\n.. raw:: html\n\n   <script>{OWNED}</script>"

FILE = "<img src=x onerror=a>.yaml"
END = f"</script><script>{OWNED}</script><!--"
"""Ends the script element that Snakemake's report holds parameters in."""
UNTRAINED = {"source": "flat", "state": "untrained"}

pytestmark = pytest.mark.slow


def study() -> dict[str, Any]:
    flat = STUDY["sources"]["flat"] | {"n_ctx": 96, "training": {"steps": 5, "batch": 4}}
    flat["training"] |= {"warmup": 1}
    return STUDY | {
        "name": NAME,
        "description": PROMPT,
        "sources": {"flat": flat},
        "prompts": {"sea": [PROMPT], "mario": [MARIO]},
        "solvers": {
            "chapter": {"kind": "chapter", "steps": 5},
            "adam": {"kind": "adam", "steps": 5},
            "joint": {"kind": "joint", "rounds": 1, "descent": {"steps": 5}},
        },
        "run": [],
        "claims": {
            "row": {
                "rows": ["mixer-flat-d512-untrained-after1"],
                "models": ["flat-untrained"],
                "stand_in": END,
                "prompts": ["mario"],
                "published": "chapter",
            }
        },
        "models": {"flat": {"source": "flat"}, "flat-untrained": UNTRAINED},
        "grids": [STUDY["grids"][0] | {"masks": ["1:"], "solvers": ["adam", "joint"]}],
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run the study with its report, a token in the environment; returns its pages."""
    directory = tmp_path_factory.mktemp("hostile")
    copy_repository(directory)
    (directory / "study.yaml").write_text(yaml.safe_dump(study()), encoding="utf-8")
    # What the replication table's command repeats: the names of files, values of the command line.
    shutil.copy(directory / "study.yaml", directory / FILE)
    given = ("--configfile", FILE, "--config", f"description={PROMPT}{END}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        for arguments in (["--cores", "2"], ["--report", f"{RESULTS}/report.html"]):
            run = start(directory, *arguments, *given)
            output = finish(run)
            assert run.returncode == 0, output[-6000:]
            assert TOKEN not in output
    for path in directory.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    return [
        directory / RESULTS / "pages" / "strips.html",
        directory / RESULTS / "pages" / "identifiability.html",
        directory / RESULTS / "pages" / "replication.html",
        directory / RESULTS / "report.html",
    ]


def test_no_token_is_written_anywhere(pages: list[Path]) -> None:
    # Looked for while they were made: in every file, Snakemake's too, and on the terminal.
    assert all(page.is_file() for page in pages)


@pytest.mark.parametrize("number", range(3))
def test_a_prompt_of_markup_is_shown_as_text(pages: list[Path], number: int) -> None:
    text = pages[number].read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text or number > 0


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("number", range(4))
def test_nothing_of_a_prompt_or_title_runs_in_a_browser(
    pages: list[Path], number: int, tmp_path: Path
) -> None:
    page = Path(shutil.copy(pages[number], tmp_path / "page.html"))
    if number < 3:  # without the page's policy, escaping alone must do
        text = page.read_text(encoding="utf-8")
        policy = text.index("<meta http-equiv")
        page.write_text(text[:policy] + text[text.index(">", policy) + 1 :], encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            *OPTIONS,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "<title>owned" not in done.stdout
    assert f"<script>{OWNED}" not in done.stdout
    assert 'href="javascript:document' not in done.stdout
    assert len(done.stdout) > 1000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_browser_would_have_run_it(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<title>x</title>{PROMPT}", encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [str(CHROMIUM), *OPTIONS, profile, "--dump-dom", page.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "<title>owned" in done.stdout
