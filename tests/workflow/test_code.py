"""What a change in code makes again: for no rewording anything, for an operator what it made."""

from __future__ import annotations

import ast
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import REPOSITORY
from tokinfo.io import provenance
from tokinfo.workflow.rules import CODE, FIGURES, PAGES, code

PACKAGE = REPOSITORY / "tokinfo"
SOLVERS = ("adam", "chapter", "joint", "mixture", "sequential", "sweep")
CELLS = {f"cells of {kind}" for kind in SOLVERS}
PARTS = sorted({str(file.parent.relative_to(PACKAGE)) for file in PACKAGE.rglob("[!_]*.py")})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that the digests are taken of."""
    untouched()  # before they are
    root = tmp_path / "tokinfo"
    shutil.copytree(PACKAGE, root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", root)
    return root


def digests() -> dict[str, str]:
    """The digest of the code behind everything that the workflow makes, taken anew."""
    for cached in (code, provenance._digest, provenance._read):
        cached.cache_clear()
    found = {rule: code(rule) for rule in CODE if rule not in ("figure", "page", "invert")}
    found |= {f"cells of {kind}": code("invert", f"tokinfo.solvers.{kind}") for kind in SOLVERS}
    for rule, made in (("figure", FIGURES), ("page", PAGES)):
        found |= {f"{rule} {name}": code(rule, shown.function) for name, shown in made.items()}
    return found


@functools.cache
def untouched() -> dict[str, str]:
    """The digests of the package as it is; those of a copy are the same."""
    return digests()


def texts(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the texts in an expression, each with what is formatted into it."""
    if isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    ):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from texts(child)


def words(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the texts of exceptions, descriptions and logs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in node.exc.args:
                yield from texts(argument)
        elif isinstance(node, ast.keyword) and node.arg == "description":
            yield from texts(node.value)
        elif isinstance(node, ast.Expr) and ast.unparse(node).startswith("log."):
            yield from texts(node)


def reworded(text: str) -> tuple[str, int]:
    """Return a module with other words in all of its messages, and how many there are."""
    found = {(node.lineno, node.col_offset): node for node in words(ast.parse(text))}
    lines = text.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
    whole = b"".join(lines)
    for node in sorted(found.values(), key=lambda node: (node.lineno, node.col_offset))[::-1]:
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        whole = whole[:first] + b'"Other words."' + whole[last:]
    return whole.decode(), len(found)


@pytest.mark.parametrize("part", PARTS)
def test_rewording_every_message_and_description_reruns_nothing(package: Path, part: str) -> None:
    for file in (package / part).glob("*.py"):
        text, _ = reworded(file.read_text(encoding="utf-8"))
        file.write_text(text, encoding="utf-8")
    assert digests() == untouched()


def test_most_packages_have_words_to_change() -> None:
    counts = dict.fromkeys(PARTS, 0)
    for file in PACKAGE.rglob("[!_]*.py"):
        counts[str(file.parent.relative_to(PACKAGE))] += reworded(file.read_text("utf-8"))[1]
    # The checks of a study say what is wrong in the mistakes that they return; beside its figures
    # and pages the report raises nothing.
    assert {part for part, count in counts.items() if not count} <= {"study/checks", "report"}
    assert reworded('raise E(f"{x} is " "bad", 1) from F("a")')[0] == (
        'raise E("Other words.", 1) from F("a")'
    )


@pytest.mark.parametrize(
    ("module", "old", "new", "expected"),
    [
        ("io/wheel.py", "hexdigest() != file", "hexdigest() == file", {"corpus", "fetch"}),
        ("study/lengths.py", "low > n_ctx", "low >= n_ctx", {"prompts"}),
        ("study/checks/prompts.py", "tokenizer == tokenizer", "tokenizer != tokenizer", set()),
        ("text/passages.py", "start < end", "start <= end", {"passages"}),
        (
            "models/snapshots.py",
            "step * training.batch",
            "step + training.batch",
            {"train", "prepare", "embedding"},
        ),
        ("models/fetch/ranges.py", "self.start + skip", "self.start - skip", {"fetch"}),
        ("probe/metrics.py", "a - b", "a + b", CELLS),
        (
            "solvers/adam.py",
            "loss + settings.nearest",
            "loss - settings.nearest",
            {"cells of adam", "cells of joint", "cells of mixture"},
        ),
        (
            "solvers/relaxed.py",
            "count > most",
            "count >= most",
            {"cells of adam", "cells of chapter", "cells of joint", "cells of mixture"},
        ),
        ("solvers/decoding.py", " @ ", " * ", CELLS | {"embedding"}),
        ("solvers/chapter.py", "() - rate", "() + rate", {"cells of chapter"}),
        ("solvers/joint.py", "self.loss >= before", "self.loss > before", {"cells of joint"}),
        (
            "solvers/convex.py",
            "_FALLS * left",
            "_FALLS + left",
            {"cells of joint", "cells of mixture"},
        ),
        ("solvers/shortlists.py", " > _KEPT", " >= _KEPT", {"cells of mixture"}),
        (
            "solvers/annealing.py",
            "peak < _UNSURE",
            "peak <= _UNSURE",
            {"cells of joint", "cells of mixture"},
        ),
        ("solvers/watch.py", ">= self._ends", "> self._ends", CELLS),
        ("solvers/sweep.py", "residuals <= ", "residuals < ", {"cells of sweep", "cells of joint"}),
        ("solvers/scores.py", " <= ", " < ", CELLS),
        ("solvers/run.py", "count == 1", "count <= 1", CELLS),
        ("text/promptcheck.py", " in drawn", " not in drawn", {"prompts"}),
        ("report/figures/training.py", " / ", " * ", {"figure training_curves"}),
        ("tables/scaling.py", '"block") > 0', '"block") >= 0', {"scaling"}),
        (
            "report/figures/margins.py",
            "low * 1.4",
            "low / 1.4",
            {"figure margin_by_depth", "figure noise_threshold"},
        ),
        ("report/pages/strips.py", "sizes) <= most", "sizes) < most", {"page strips"}),
        ("workflow/memory.py", '"auto":', '"cpu":', set()),
        ("cli/options.py", "count != 1", "count > 1", set()),
        ("cell.py", " - begun", " + begun", CELLS),
    ],
)
def test_another_operator_reruns_what_that_code_made(
    package: Path, module: str, old: str, new: str, expected: set[str]
) -> None:
    text = (package / module).read_text(encoding="utf-8")
    assert old in text
    (package / module).write_text(text.replace(old, new, 1), encoding="utf-8")
    after = digests()
    assert {name for name, digest in untouched().items() if after[name] != digest} == expected
