"""A study from a file or the command line is read, or refused in lines that say why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.example_study import example as a_study
from tokinfo.io.errors import InvalidError
from tokinfo.study.files import parse
from tokinfo.study.load import load_study
from tokinfo.study.mistakes import StudyError

fuzzed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PIECES = st.sampled_from(
    ["name", ": ", "- ", "[", "]", "{", "}", "\n", "  ", "&a ", "*a", "<<", "!!int ", "1e999", "0x"]
)
YAML = st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=12).map("".join)
LARGE = "0x" + "f" * 5000
BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{{', '.join(f'k{m}: *a{n - 1}' for m in range(9))}}}\n" for n in range(1, 10)
)
"""Mappings of mappings by their aliases: 9^9 values in 600 bytes."""


def lines_of(action: Callable[[], object]) -> None:
    """Assert that an action works, or ends in lines that say why."""
    text = ""
    try:
        action()
    except (InvalidError, StudyError) as error:
        text = str(error)
    assert all(line.isprintable() for line in text.splitlines())


@given(content=st.one_of(YAML.map(lambda text: text.encode(errors="replace")), st.binary()))
@example(content=b"[" * 5000)
@example(content=f"threads: {LARGE}\n".encode())
@example(content=f"threads: {'9' * 5000}\n".encode())
@example(content=f"? {LARGE}\n: 1\n".encode())
@example(content=b"&a [*a]")
@example(content=b"a: &a {b: *a}")
@example(content=b"2001-99-99: 1")
@example(content=BOMB.encode())
@fuzzed
def test_any_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.yaml").write_bytes(content)
    with pytest.raises(StudyError) as caught:
        load_study(tmp_path / "study.yaml")
    assert all(line.isprintable() for line in str(caught.value).splitlines())


@given(
    section=st.sampled_from(
        ["solvers", "sources", "models", "prompts", "grids", "corpora", "name"]
    ),
    text=YAML,
)
@fuzzed
def test_any_value_of_a_section(section: str, text: str) -> None:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, IndexError):  # the last of `!!int ''`
        return
    lines_of(lambda: load_study(a_study() | {section: value}))


@given(entry=st.one_of(YAML.map("threads=".__add__), st.text()))
@example(entry="threads=" + "[" * 5000)
@example(entry="threads=" + "9" * 5000)
@example(entry="corpora={" + BOMB.replace("\n", ", ") + "}")
@fuzzed
def test_any_argument_of_the_command_line(entry: str) -> None:
    lines_of(lambda: load_study(a_study(), parse([entry])))
