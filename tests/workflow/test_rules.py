"""What rules write, and that the digest of each job covers the code that it runs."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import pytest

from tests import REPOSITORY
from tokinfo.report import figures, pages
from tokinfo.workflow.rules import CODE, FIGURES, OUTPUTS, PAGES, code, pattern


@pytest.mark.parametrize(
    ("names", "matching", "others"),
    [
        (["block.1", "a"], ["block.1", "a"], ["blockx1", "block.10", ""]),
        (["l1+cosine"], ["l1+cosine"], ["l11cosine"]),
        ([], [], ["", "a"]),
    ],
)
def test_patterns_match_the_names_and_nothing_else(
    names: list[str], matching: list[str], others: list[str]
) -> None:
    compiled = re.compile(f"^(?P<name>{pattern(names)})$")
    assert all(compiled.match(name) for name in matching)
    assert not any(compiled.match(name) for name in others)


def test_every_rule_with_a_script_has_its_code_digested() -> None:
    scripts = {path.stem for path in (REPOSITORY / "rules" / "scripts").glob("*.py")}
    assert set(CODE) == scripts
    rules = "".join(p.read_text(encoding="utf-8") for p in (REPOSITORY / "rules").glob("*.smk"))
    for script in scripts:
        special = {
            "invert": "lambda w: PLAN.cell_code",
            "figure": 'lambda w: code("figure", FIGURES[w.figure].function)',
            "page": 'lambda w: code("page", PAGES[w.page].function)',
        }
        digest = special.get(script, f'code("{script}")')
        assert f"code={digest}" in rules
        assert len(code(script)) == 64


def test_rules_in_the_report_embed_all_free_text() -> None:
    """Snakemake writes their parameters into a script element of the report, as they are."""
    rules = "".join(p.read_text(encoding="utf-8") for p in (REPOSITORY / "rules").glob("*.smk"))
    found = [text for text in rules.split("\nrule ") if "report(" in text]
    assert len(found) >= 6
    for text in found:
        params = text.partition("    params:\n")[2].partition("    message:\n")[0]
        names = re.findall(r"^        (\w+)=(.*)", params, re.MULTILINE)
        assert {name for name, _ in names} <= {"code", "function", "settings"}
        assert all("embedded(" in value for name, value in names if name == "settings"), text
        assert "name=" not in text.partition("output:")[2].partition("log:")[0]


def test_what_a_script_imports_is_in_its_digest() -> None:
    """Only logs, devices and the schema may be used without counting."""
    for rule, modules in CODE.items():
        text = (REPOSITORY / "rules" / "scripts" / f"{rule}.py").read_text(encoding="utf-8")
        imported = {
            node.module
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokinfo")
        }
        assert imported - {
            "tokinfo.workflow.jobs",
            "tokinfo.study.study",
            "tokinfo.study.sources",
            "tokinfo.study.cell",
            "tokinfo.study.claims",
        } == set(modules)


def functions(package: ModuleType, *parameters: str) -> set[str]:
    """Every public function of a package that takes these parameters."""
    found = set()
    for info in iter_modules(package.__path__, f"{package.__name__}."):
        for name, function in inspect.getmembers(import_module(info.name), inspect.isfunction):
            if name.startswith("_") or function.__module__ != info.name:
                continue
            if set(parameters) <= set(inspect.signature(function).parameters):
                found.add(f"{info.name}:{name}")
    return found


def test_the_figures_are_those_that_can_be_drawn() -> None:
    # Of the scaling figures the rule makes a table too; an empty one is no figure.
    apart = {"scaling:draw_scaling", "style:save", "style:empty"}
    drawn = functions(figures, "svg", "png") - {f"{figures.__name__}.{name}" for name in apart}
    assert drawn == {figure.function for figure in FIGURES.values()}
    assert all(figure.function.endswith(f":{name}") for name, figure in FIGURES.items())


def test_the_pages_are_those_that_can_be_written() -> None:
    assert functions(pages, "page", "name") == {page.function for page in PAGES.values()}


def test_a_figure_or_page_has_the_digest_of_its_module_alone() -> None:
    of = {name: code("figure", figure.function) for name, figure in FIGURES.items()}
    modules = {name: figure.function.partition(":")[0] for name, figure in FIGURES.items()}
    assert len(set(of.values())) == len(set(modules.values()))
    assert of["by_metric"] == of["by_solver"] != of["training_curves"]
    assert len({code("page", page.function) for page in PAGES.values()}) == len(PAGES)


def test_outputs_without_a_suffix_are_the_directories_of_the_rules() -> None:
    rules = "".join(p.read_text(encoding="utf-8") for p in (REPOSITORY / "rules").glob("*.smk"))
    for rule, made in OUTPUTS.items():
        for name, path in made.items():
            is_directory = f'directory(OUTPUTS["{rule}"]["{name}"])' in rules
            assert is_directory == ("." not in path.rsplit("/", 1)[1])
