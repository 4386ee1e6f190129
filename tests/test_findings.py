"""Findings: every number is what its table says, and no number stands without a table."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests import REPOSITORY


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "findings", REPOSITORY / "benchmarks" / "findings.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


findings = load()
TEXT = findings.DOCUMENTS[0].read_text(encoding="utf-8")

TABLE = """\
model,solver,prompts,found,all,share,tokens,low,high,times,runs_found,runs,found_low,found_high
a,adam,10,10,20,0.5,20,0.25,0.75,702.51,1,3,0.061,0.79
a,joint,10,20,20,1,20,0.72,1,0.0749,3,3,0.44,1
b,adam,10,0,20,0,20,0,0.28,12345,0,1,0,0.79
"""


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text(TABLE, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("document", "numbers"), list(zip(findings.DOCUMENTS, (20, 10), strict=True))
)
def test_what_is_written_is_what_the_tables_say(document: Path, numbers: int) -> None:
    text = document.read_text(encoding="utf-8")
    assert findings.differences(document) == []
    assert findings.rewritten(text) == text
    assert len(findings.NUMBER.findall(text)) > numbers


def test_no_share_or_interval_stands_without_a_table() -> None:
    bare = findings.NUMBER.sub("", TEXT)
    assert not re.findall(r"\d+ of \d+|\d\.\d+ to \d\.\d+", bare)
    assert "<!--=" not in bare
    assert "<!--/" not in bare


def test_every_table_has_its_command() -> None:
    tables = {match[0] for match in findings.NUMBER.findall(TEXT)}
    for table in tables:
        assert f"docs/evidence/{table}" in TEXT


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("t.csv model=a solver=adam => share found/all", "10 of 20 (0.24 to 0.76)"),
        ("t.csv model=a => share found/all", "30 of 40 (0.53 to 0.89)"),
        ("t.csv solver=adam|joint model=b => share found/all by prompts", "0 of 20 (0.00 to 0.28)"),
        ("t.csv solver=adam => count", "2"),
        ("t.csv solver!=adam => count", "1"),
        ("t.csv model!=b|c => count", "2"),
        ("t.csv model=a solver=adam => point", "10 of 20 (0.25 to 0.75)"),
        ("t.csv model=a solver=adam => interval found", "10.00 (0.06 to 0.79)"),
        ("t.csv model=a solver=adam => runs", "1 of 3 (0.06 to 0.79)"),
        ("t.csv model=b => value times", "12,345"),
        ("t.csv => least times", "0.075"),
        ("t.csv model=a => most times", "703"),
    ],
)
def test_a_number_is_written_from_its_table(evidence: Path, marker: str, words: str) -> None:
    text = f"So <!--= {marker} -->something else<!--/--> it is."
    assert findings.rewritten(text, evidence) == text.replace("something else", words)


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("t.csv model=c => share found/all", "no row with model=c"),
        ("t.csv modell=a => share found/all", "no column 'modell'"),
        ("t.csv model=a => most timez", "t.csv: no column 'timez'"),
        ("u.csv model=a => share found/all", "u.csv: there is no such table"),
        ("t.csv model=a => value times", "2 rows with model=a, not one"),
        ("t.csv model=a => point", "2 rows with model=a, not one"),
        ("t.csv model=a => interval found", "2 rows with model=a, not one"),
        ("t.csv model=a => runs", "2 rows with model=a, not one"),
        ("t.csv model=a => mean times", "allowed: share, point"),
    ],
)
def test_a_marker_that_says_nothing_is_an_error(evidence: Path, marker: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        findings.rewritten(f"<!--= {marker} -->1<!--/-->", evidence)


def test_the_check_names_what_differs(tmp_path: Path) -> None:
    changed = re.sub(r"-->(\d+) of", "-->999 of", TEXT, count=1)
    code = (
        "import runpy, sys, pathlib; "
        f"m = runpy.run_path({str(REPOSITORY / 'benchmarks' / 'findings.py')!r}); "
        f"m['main'].__globals__['DOCUMENTS'] = [pathlib.Path({str(tmp_path / 'f.md')!r})]; "
        "sys.argv = ['findings.py', '--check']; m['main']()"
    )
    for text, status in ((TEXT, 0), (changed, 1)):
        (tmp_path / "f.md").write_text(text, encoding="utf-8")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
    assert "999 of" in done.stderr
