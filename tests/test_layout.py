"""The package's modules import one way, and what a person imports is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests import REPOSITORY

PACKAGE = REPOSITORY / "tokinfo"
CORRIDOR = (
    *("io", "study", "text", "models", "probe", "solvers", "tables", "report"),
    *("api", "cell", "cli"),
)
"""Each may import what stands before it."""
BESIDE = {
    "workflow": {"io", "study"},
    "cell": set(CORRIDOR[:8]),
    "model": {*CORRIDOR[:8], "cell"},
    "api": {*CORRIDOR[:8], "model"},
    "examples": {"io", "study", "models"},
}
"""What may be imported by those that are no step of the corridor; `cli` may import all of them."""
LONGEST = 400
"""Lines of a module, tests included."""


def module(file: Path, root: Path = PACKAGE) -> str:
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """Yield the modules that a module imports, in functions and for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from (name for name in (inner, node.module) if name in modules)


def graph(root: Path = PACKAGE) -> dict[str, set[str]]:
    files = {module(file, root): file for file in sorted(root.rglob("*.py"))}
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items()}
    return {name: set(imports(tree, set(files))) - {name} for name, tree in trees.items()}


def part(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def may_import(importer: str, imported: str) -> bool:
    if importer == imported or not imported:
        return True
    if importer in BESIDE:
        return imported in BESIDE[importer]
    if importer == "cli":
        return True
    return importer in CORRIDOR and imported in CORRIDOR[: CORRIDOR.index(importer)]


def against_the_grain(found: dict[str, set[str]]) -> set[tuple[str, str]]:
    return {
        (importer, imported)
        for importer, names in found.items()
        for imported in names
        if not may_import(part(importer), part(imported))
    }


def test_imports_run_one_way() -> None:
    assert against_the_grain(graph()) == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    # A package's own `__init__` holds a docstring: whoever imports it imports nothing.
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("io/a.py", "from pack.study import b"),
        ("io/a.py", "def late():\n    import pack.study.b"),
        ("study/b.py", "if TYPE_CHECKING:\n    from pack.models.c import d"),
        ("workflow/a.py", "from pack.models import c"),
        ("models/c.py", "from pack.workflow import a"),
    ],
)
def test_an_import_that_runs_back_is_seen(tmp_path: Path, name: str, text: str) -> None:
    root = tmp_path / "pack"
    for file in ("io/a.py", "study/b.py", "models/c.py", "workflow/a.py"):
        (root / file).parent.mkdir(parents=True)
        (root / file).write_text("")
    assert against_the_grain(graph(root)) == set()
    (root / name).write_text(text)
    assert len(against_the_grain(graph(root))) == 1


def test_packages_hold_nothing_but_what_they_are_for() -> None:
    for file in PACKAGE.rglob("*/__init__.py"):
        (only,) = ast.parse(file.read_text(encoding="utf-8")).body
        assert isinstance(only, ast.Expr), file


def test_no_import_renames_a_module() -> None:
    modules = set(graph()) - {"tokinfo"}  # `import tokinfo as ti` is what a person writes
    roots = (PACKAGE, REPOSITORY / "tests", REPOSITORY / "benchmarks", REPOSITORY / "rules")
    renamed = []
    for file in (file for root in roots for file in root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}": alias.asname for alias in node.names}
            elif isinstance(node, ast.Import):
                names = {alias.name: alias.asname for alias in node.names}
            else:
                continue
            renamed += [(file, name) for name, other in names.items() if other and name in modules]
    assert renamed == []


def test_no_module_is_long() -> None:
    files = [*PACKAGE.rglob("*.py"), *(REPOSITORY / "tests").rglob("*.py")]
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {file: count for file, count in lines.items() if count > LONGEST} == {}


@pytest.mark.parametrize(
    ("imported", "unwanted"),
    [
        ("tokinfo", {"torch", "transformers", "polars", "numpy", "pydantic", "yaml"}),
        ("tokinfo.study.load", {"torch", "transformers", "polars", "numpy"}),
        ("tokinfo.workflow.plan", {"torch", "transformers", "polars", "numpy"}),
        ("tokinfo.cli.app", {"torch", "transformers", "polars", "numpy"}),
    ],
)
def test_what_is_imported_first_is_light(imported: str, unwanted: set[str]) -> None:
    code = f"import sys, {imported}; print(*sorted(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert unwanted & set(done.stdout.split()) == set()
