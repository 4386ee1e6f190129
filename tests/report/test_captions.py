"""Captions are valid reStructuredText for every figure, as Snakemake renders them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from docutils.core import publish_parts

from tests import REPOSITORY
from tokinfo.workflow.rules import FIGURES, PAGES

REPORT = REPOSITORY / "report"


def render(file: str, **wildcards: str) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string((REPORT / file).read_text()).render(
        snakemake=SimpleNamespace(
            wildcards=SimpleNamespace(**wildcards), params={}, config={"name": "A study"}
        )
    )
    # Level 2 and above are warnings and errors; they end the test.
    settings = {"halt_level": 2, "report_level": 2}
    return str(publish_parts(text, writer="html", settings_overrides=settings)["body"])


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_has_a_caption(figure: str) -> None:
    body = render("figures.rst", figure=figure)
    assert "<strong>" in body
    assert f"<em>{figure}</em>" not in body
    shares = FIGURES[figure].table == "summary" or FIGURES[figure].category == "Identifiability"
    assert ("95 % interval" in body) == shares


def test_every_page_has_another_caption() -> None:
    bodies = {render("pages.rst", page=page) for page in PAGES}
    assert len(bodies) == len(PAGES)
    # The tables of the chapter's rows have the caption of their page.
    assert render("pages.rst") == render("pages.rst", page="replication")


@pytest.mark.parametrize("file", sorted(path.name for path in REPORT.glob("*.rst")))
def test_every_caption_renders(file: str) -> None:
    body = render(file, figure="something new")
    assert len(body) > 100
    assert "{{" not in body


READ = (
    *sorted(REPORT.glob("*.rst")),
    *sorted((REPOSITORY / "tokinfo" / "report").rglob("*.html")),
    *(REPOSITORY / "docs" / name for name in ("method.md", "findings.md", "replication.md")),
    *(REPOSITORY / name for name in ("README.md", "docs/tutorial.md")),
)


@pytest.mark.parametrize("file", READ, ids=lambda path: path.name)
def test_tokens_are_found_and_recovered_means_more(file: Path) -> None:
    """No text speaks of recovery in another sense than the word `recovered` has."""
    text = re.sub(r"\S*recover\w*\.(parquet|csv|md)\S*", "", file.read_text(encoding="utf-8"))
    words = {word.lower() for word in re.findall(r"\brecover\w*", text, re.IGNORECASE)}
    assert words <= {"recovered"}


def test_the_front_page_says_what_recovered_means() -> None:
    body = render("workflow.rst")
    for word in ("found", "recovered", "certified", "identifiable"):
        assert f"<em>{word}</em>" in body
