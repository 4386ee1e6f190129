"""The templates: with the package, counted to their pages' code, and escaping what they show."""

from __future__ import annotations

import importlib.resources
import shutil
import tomllib
from pathlib import Path

import jinja2
import pytest
from jinja2 import meta, nodes

from tests import REPOSITORY
from tokinfo.io import provenance
from tokinfo.report.pages.template import TEMPLATES, write_page

FILES = sorted(TEMPLATES.list_templates())
PAGES = {name.removesuffix(".html") for name in FILES if not name.startswith("_")}
MODULES = [f"tokinfo.report.pages.{page}" for page in sorted(PAGES)]
OTHERS = ["tokinfo.cell", "tokinfo.report.figures.recovery", "tokinfo.tables.replication"]


def test_an_installed_package_has_every_template() -> None:
    inside = importlib.resources.files("tokinfo.report.pages") / "templates"
    assert sorted(file.name for file in inside.iterdir()) == FILES
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    package = REPOSITORY / "tokinfo"
    installed = {
        path
        for pattern in project["tool"]["setuptools"]["package-data"]["tokinfo"]
        for path in package.glob(pattern)
    }
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix[:3] != ".py"}
    assert files <= installed


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, whose code is digested in place of this one's."""
    copy = tmp_path / "tokinfo"
    shutil.copytree(provenance.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", copy)
    return copy


def digests() -> dict[str, str]:
    """The digests of pages and of others, as a new process would take them."""
    provenance._digest.cache_clear()
    provenance._read.cache_clear()
    return {module: provenance.code_digest(module) for module in MODULES + OTHERS}


@pytest.mark.parametrize("name", FILES)
def test_a_template_reruns_exactly_the_pages_that_use_it(name: str, package: Path) -> None:
    before = digests()
    file = package / "report" / "pages" / "templates" / name
    file.write_bytes(file.read_bytes() + b"<p>More.")
    after = digests()
    pages = PAGES if name.startswith("_") else {name.removesuffix(".html")}
    changed = {module for module in before if before[module] != after[module]}
    assert changed == {f"tokinfo.report.pages.{page}" for page in pages}


@pytest.mark.parametrize("name", FILES)
def test_a_template_uses_shared_ones_alone_and_trusts_no_text(name: str) -> None:
    assert TEMPLATES.loader is not None
    tree = TEMPLATES.parse(TEMPLATES.loader.get_source(TEMPLATES, name)[0])
    assert all((used or "").startswith("_") for used in meta.find_referenced_templates(tree))
    assert "safe" not in {node.name for node in tree.find_all(nodes.Filter)}


def test_what_a_template_is_not_given_is_an_error_and_leaves_no_page(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="description"):
        write_page(tmp_path / "page.html", "strips.html", name="A study")
    assert not list(tmp_path.iterdir())
