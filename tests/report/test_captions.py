"""Captions are valid reStructuredText for every figure, as Snakemake renders them."""

from __future__ import annotations

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
