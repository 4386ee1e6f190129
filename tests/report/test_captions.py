"""Captions are valid reStructuredText for every figure, as Snakemake renders them."""

from __future__ import annotations

from types import SimpleNamespace

import jinja2
import pytest
from docutils.core import publish_parts

from tests import REPOSITORY
from tokinfo.report.figures.draw import FIGURES, IDENTIFIABILITY

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
def test_every_figure_has_a_caption_of_its_own(figure: str) -> None:
    body = render("figures.rst", figure=figure)
    assert "<strong>" in body
    assert "drawn from" not in body
    assert "95 % intervals" in body


@pytest.mark.parametrize("figure", IDENTIFIABILITY)
def test_every_figure_on_identifiability_has_a_caption_of_its_own(figure: str) -> None:
    body = render("identifiability_figures.rst", figure=figure)
    assert "<strong>" in body
    assert "drawn from" not in body
    assert "95 % interval" in body


@pytest.mark.parametrize("file", sorted(path.name for path in REPORT.glob("*.rst")))
def test_every_caption_renders(file: str) -> None:
    body = render(file, figure="something new")
    assert len(body) > 100
    assert "{{" not in body
