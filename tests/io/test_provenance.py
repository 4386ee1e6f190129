from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tokinfo.io import provenance
from tokinfo.io.provenance import code_digest, versions

Digest = Callable[..., str]

FILES = {
    "__init__.py": '"""A package."""\n',
    "alone.py": "VALUE = 1\n",
    "leaf.py": "def f(x):\n    return x + 1\n",
    "middle.py": "from pack.leaf import f\n\ndef g(x):\n    return f(x)\n",
    "top.py": "from typing import TYPE_CHECKING\n\nfrom pack import middle\n\n"
    "if TYPE_CHECKING:\n    from pack.alone import VALUE\n",
    "sub/__init__.py": "LIMIT = 3\n",
    "sub/near.py": "from . import LIMIT\nfrom .. import leaf\n",
    "sub/far.py": "from ..middle import g\n",
    "lazy.py": "def run():\n    import pack.leaf as inner\n    return inner.f(1)\n",
    "dynamic.py": "import importlib\n\nfound = importlib.import_module('pack.leaf')\n",
    "attribute.py": "import pack.sub\n",
    "loop.py": "import pack.round\n",
    "round.py": "import pack.loop\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "pack"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def digest(package: Path, monkeypatch: pytest.MonkeyPatch) -> Digest:
    """The digest as a new process would take it."""
    monkeypatch.setattr(provenance, "PACKAGE", package)

    def fresh(*modules: str) -> str:
        provenance._digest.cache_clear()
        provenance._read.cache_clear()
        return code_digest(*modules)

    return fresh


MODULES = [
    "pack." + name.removesuffix(".py").replace("/", ".")
    for name in FILES
    if not name.endswith("__init__.py")
]


def changed_by(package: Path, digest: Digest, name: str, text: str) -> set[str]:
    """The modules whose digest a change in one file alters."""
    before = {module: digest(module) for module in MODULES}
    (package / name).write_text(text)
    return {module for module in MODULES if digest(module) != before[module]}


@pytest.mark.parametrize(
    ("name", "text", "reached"),
    [
        ("alone.py", "VALUE = 2\n", {"alone"}),
        (
            "leaf.py",
            "def f(x):\n    return x + 2\n",
            {"leaf", "middle", "top", "sub.near", "sub.far", "lazy", "dynamic"},
        ),
        ("middle.py", "def g(x):\n    return x\n", {"middle", "top", "sub.far"}),
        ("sub/__init__.py", "LIMIT = 4\n", {"sub.near", "sub.far", "attribute"}),
        ("loop.py", "import pack.round\n\nX = 1\n", {"loop", "round"}),
    ],
)
def test_a_change_of_logic_reaches_exactly_what_imports_it(
    package: Path, digest: Digest, name: str, text: str, reached: set[str]
) -> None:
    assert changed_by(package, digest, name, text) == {f"pack.{module}" for module in reached}


def test_what_a_person_imports_reaches_no_module(package: Path, digest: Digest) -> None:
    assert changed_by(package, digest, "__init__.py", "import os\n") == set()


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("page.html", {"sub.page", "viewer"}),
        ("_layout.html", {"sub.page", "sub.other", "viewer"}),
        ("unused.html", set()),
    ],
)
def test_a_template_counts_to_the_page_that_it_is_of(
    package: Path, digest: Digest, name: str, reached: set[str]
) -> None:
    texts = {"page": "NAME = 1\n", "other": "NAME = 2\n"}
    (package / "sub" / "templates").mkdir()
    for page, text in texts.items():
        (package / "sub" / f"{page}.py").write_text(text)
        (package / "sub" / "templates" / f"{page}.html").write_text(page)
    (package / "sub" / "templates" / "_layout.html").write_text("layout")
    (package / "viewer.py").write_text("from pack.sub.page import NAME\n")
    modules = {"sub.page", "sub.other", "viewer", "sub.near", "top", "alone"}
    before = {module: digest(f"pack.{module}") for module in modules}
    (package / "sub" / "templates" / name).write_text("another")
    assert {m for m in modules if digest(f"pack.{m}") != before[m]} == reached


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\ndef f(x):\n    return x + 1  # another\n",
        '"""A docstring."""\n\n\ndef f(x):\n    """Another."""\n    return (\n  x + 1\n)\n',
        "def f(x):\n    return x + 1\n\n'a string that stands alone'\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack.alone import VALUE\n"
        "def f(x):\n    return x + 1\n",
    ],
    ids=["comment", "docstring and layout", "string", "type checking"],
)
def test_what_does_not_run_changes_nothing(package: Path, digest: Digest, text: str) -> None:
    if "TYPE_CHECKING" in text:
        (package / "leaf.py").write_text("from typing import TYPE_CHECKING\n" + FILES["leaf.py"])
    assert changed_by(package, digest, "leaf.py", text) == set()


@pytest.mark.parametrize(
    ("text", "reworded"),
    [
        ("raise ValueError(f'bad {x}')", "raise ValueError('not good')"),
        ("raise ValueError('bad') from E()", "raise ValueError('no good') from E()"),
        ("y = Field(1, ge=0, description='One.')", "y = Field(1, ge=0, description='A number.')"),
        ("log.info('at %d', x)", "log.debug('now at %d', x + 1)"),
        ("print('at', x, file=sys.stderr)", "print('now at', x, file=sys.stderr, flush=True)"),
    ],
    ids=["exception", "exception with a cause", "description", "log", "standard error"],
)
def test_rewording_a_text_for_readers_changes_nothing(
    package: Path, digest: Digest, text: str, reworded: str
) -> None:
    (package / "leaf.py").write_text(f"def f(x):\n    {text}\n")
    assert changed_by(package, digest, "leaf.py", f"def f(x):\n    {reworded}\n") == set()


def test_what_errors_say_changes_nothing(package: Path, digest: Digest) -> None:
    (package / "io").mkdir()
    (package / "io" / "errors.py").write_text("WORDS = 'damaged'\n")
    (package / "leaf.py").write_text("from pack.io.errors import WORDS\n")
    assert changed_by(package, digest, "io/errors.py", "WORDS = 'cut short'\n") == set()


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("raise ValueError('bad')", "raise KeyError('bad')"),
        ("raise ValueError('bad') from E()", "raise ValueError('bad') from F()"),
        ("raise Reached(x + 1)", "raise Reached(x - 1)"),
        ("y = Field(1, ge=0, description='One.')", "y = Field(1, ge=1, description='One.')"),
        ("y = log.info('at %d', x)", "y = log.info('now at %d', x)"),
        ("other.info('at %d', x)", "other.info('now at %d', x)"),
        ("print(x, file=out)", "print(x + 1, file=out)"),
    ],
    ids=[
        "kind of exception",
        "its cause",
        "a value it carries",
        "bound of a field",
        "a value",
        "no logger",
        "a file",
    ],
)
def test_what_stands_beside_those_words_counts(
    package: Path, digest: Digest, text: str, other: str
) -> None:
    (package / "leaf.py").write_text(f"def f(x):\n    {text}\n")
    changed = changed_by(package, digest, "leaf.py", f"def f(x):\n    {other}\n")
    assert "pack.leaf" in changed


def test_the_other_branch_of_a_type_checking_block_counts(package: Path, digest: Digest) -> None:
    text = "import typing\nif typing.TYPE_CHECKING:\n    X = 1\nelse:\n    from pack import leaf\n"
    (package / "alone.py").write_text(text)
    changed = changed_by(package, digest, "leaf.py", "def f(x):\n    return 0\n")
    assert "pack.alone" in changed


def test_the_order_of_modules_does_not_count_and_the_set_does(digest: Digest) -> None:
    assert digest("pack.leaf", "pack.alone") == digest("pack.alone", "pack.leaf", "pack.leaf")
    assert digest("pack.leaf", "pack.alone") != digest("pack.leaf")


@pytest.mark.parametrize("name", ["pack.nothing", "other.leaf", "pack.leaf.f"])
def test_an_unknown_module_is_an_error_that_names_it(digest: Digest, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}': not found in package 'pack'"):
        digest(name)


def test_digests_of_this_package_are_quick_and_import_nothing() -> None:
    code = (
        "import sys; from tokinfo.io.provenance import _read, code_digest, versions\n"
        "for _ in range(20):\n"
        "    code_digest('tokinfo.study.load'); code_digest('tokinfo.study.study')\n"
        "versions()\n"
        "print(_read.cache_info().misses, _read.cache_info().currsize)\n"
        "print(*{'torch', 'transformers', 'polars', 'pydantic', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    read, loaded = done.stdout.split("\n")[:2]
    assert loaded == ""
    # Every module is read once, however many reach it.
    misses, modules = map(int, read.split())
    assert misses == modules


def test_a_second_call_costs_next_to_nothing() -> None:
    code_digest("tokinfo.study.load")
    before = provenance._read.cache_info()
    code_digest("tokinfo.study.load")
    assert provenance._read.cache_info() == before


def test_versions_are_those_of_the_installed_packages() -> None:
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == importlib.metadata.version("torch")
    assert {"tokinfo", "transformers", "bitsandbytes", "snakemake", "polars", "numpy"} <= set(found)
