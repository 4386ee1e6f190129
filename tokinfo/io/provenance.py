"""Where a result comes from: a digest of the code that makes it, and versions.

Digests decide what the workflow runs again, so they are taken over what a change must alter: the
syntax tree, without comments, layout and words for readers. This module does not import the code
that it digests, and imports the standard library alone: the Snakefile calls it in every cluster
job.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
MESSAGES = "io.errors"
"""The module of what errors say, which no result depends on."""
RECORDED = (
    "tokinfo",
    "torch",
    "transformers",
    "tokenizers",
    "bitsandbytes",
    "numpy",
    "polars",
    "snakemake",
)


def code_digest(*modules: str) -> str:
    """Return the SHA-256 of the code of modules and of all they import from this package.

    Imports are followed wherever they stand (in functions too), transitively, and into the
    packages on the way; those under ``if TYPE_CHECKING:`` never run and do not count. Nor do
    comments, docstrings, layout, and what only a reader sees: the text in ``raise X(...)``, a
    ``description=``, a line that logs or writes to standard error, what errors say (`MESSAGES`).
    Any other change alters the digest of every module that reaches it.

    A page's template counts to its module: the file of that name in ``templates`` beside it, and
    with it those there whose names begin with an underscore, which the pages share.

    Args:
        modules: dotted names in this package, such as ``tokinfo.models.train``.

    Raises:
        ValueError: there is no such module.
    """
    return _digest(PACKAGE, tuple(sorted(set(modules))))


@cache
def _digest(package: Path, modules: tuple[str, ...]) -> str:
    for name in modules:
        if _file(package, name) is None:
            raise ValueError(f"module {name!r}: not found in package {package.name!r}")
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        # What a person imports of the package itself is looked up by name, and made of nothing.
        if name in reached or name in (package.name, f"{package.name}.{MESSAGES}"):
            continue
        reached.add(name)
        waiting.extend(_read(package, name)[1])
    total = hashlib.sha256()
    for name in sorted(reached):
        total.update(f"{name} {_read(package, name)[0]}\n".encode())
    return total.hexdigest()


def _file(package: Path, module: str) -> Path | None:
    """Return the file of a module of the package, or None."""
    first, *rest = module.split(".")
    if first != package.name:
        return None
    base = package.joinpath(*rest)
    # `base` may end in a name with dots, which `with_suffix` would mistake for a suffix.
    found = (base / "__init__.py", base.parent / f"{base.name}.py")
    return next((file for file in found if file.is_file()), None)


@cache
def _read(package: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """Return the digest of one module's code, and the package's modules that it imports."""
    file = _file(package, module)
    assert file is not None, module
    tree = _Bare().visit(ast.parse(file.read_text(encoding="utf-8"), filename=str(file)))
    digest = hashlib.sha256(ast.dump(tree).encode())
    templates = file.parent / "templates"
    if (page := templates / f"{file.stem}.html").is_file():
        for template in (page, *sorted(templates.glob("_*.html"))):
            digest.update(template.read_bytes())
    here = module if file.name == "__init__.py" else module.rpartition(".")[0]
    named = {name for node in ast.walk(tree) for name in _imported(node, here)}
    named.add(module)
    found: set[str] = set()
    for name in named:
        parts = name.split(".")
        # Importing a.b.c runs a, a.b and a.b.c; `c` may also be a name inside a.b.
        prefixes = (".".join(parts[: end + 1]) for end in range(len(parts)))
        found.update(prefix for prefix in prefixes if _file(package, prefix) is not None)
    return digest.hexdigest(), tuple(sorted(found - {module}))


class _Bare(ast.NodeTransformer):
    """Takes out what no result depends on.

    That is what does not run (strings that stand alone, type-checking branches) and what is there
    for a reader only (an exception's text, a field's description, a line of the log).
    """

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if alone or _logs(node.value) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        # Its text alone: `Reached`, by which a forward pass ends, carries activations.
        if isinstance(node.exc, ast.Call):
            node.exc.args = [_Wordless().visit(argument) for argument in node.exc.args]
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
        return None if node.arg == "description" else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        test = node.test
        name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
        if name != "TYPE_CHECKING":
            return self.generic_visit(node)
        # Only `else` runs. Inside another statement's body a list takes the statement's place.
        otherwise = self.generic_visit(ast.Module(body=node.orelse, type_ignores=[]))
        assert isinstance(otherwise, ast.Module)
        return otherwise.body


class _Wordless(ast.NodeTransformer):
    """Takes out texts, with what is formatted into them."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        return ast.Constant("")


def _logs(node: ast.expr) -> bool:
    """Return whether an expression writes to ``log`` or to standard error, and nothing else."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return isinstance(node.func.value, ast.Name) and node.func.value.id == "log"
    to = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "file"]
    return isinstance(node.func, ast.Name) and node.func.id == "print" and to == ["sys.stderr"]


def _imported(node: ast.AST, here: str) -> Iterator[str]:
    """Yield the dotted names that a node imports, relative ones resolved from package ``here``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = here.split(".")
            kept = parents[: len(parents) - node.level + 1]
            base = ".".join([*kept, *filter(None, [base])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        first = node.args[0] if node.args else None
        if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
            yield str(first.value)


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that make results; None: not there.

    Read from the packages' metadata, so that none of them is imported for it.
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
