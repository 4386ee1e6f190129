"""What the command line sets over a study's files: read as Snakemake does, and written again."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tokinfo.study.files import arguments, beyond, merge, parse

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
KEYS = st.from_regex(r"[a-z][a-z0-9_]{1,8}", fullmatch=True)
NESTED = st.recursive(
    WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, min_size=1)
)
STRUCTURES = st.lists(NESTED, max_size=3) | st.dictionaries(KEYS, NESTED, min_size=1)
VALUES = STRUCTURES | st.booleans() | st.none() | st.integers() | st.sampled_from(["cuda", "a b"])
ENTRIES = [
    "run=[llama-7b, own]",
    "threads=2",
    "rate=2.0e-3",
    "flag=True",
    "word=true",
    "nothing=",
    "corpora={text: {path: stories.txt}}",
    "corpora={other: {path: a=b.txt}}",
    "text='8'",
]


@pytest.mark.parametrize("entries", [[entry] for entry in ENTRIES] + [ENTRIES])
def test_values_are_read_as_snakemake_reads_them(entries: list[str]) -> None:
    from snakemake.cli import parse_config

    assert parse(entries) == parse_config(entries)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("run", "--config run: not of the form KEY=VALUE"),
        ("2a=1", "--config 2a=1: not of the form KEY=VALUE"),
        ("run=[a", "--config run=[a: not valid YAML: "),
    ],
)
def test_what_cannot_be_read_is_named(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match="--config") as raised:
        parse([entry])
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_values_that_are_written_again_are_the_same(values: dict[str, Any]) -> None:
    assert parse(arguments(values)) == values


def test_the_command_line_s_part_is_what_the_files_do_not_say(tmp_path: Path) -> None:
    base = {"threads": 1, "corpora": {"text": {"kind": "file", "path": "a.txt"}}, "run": ["a"]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "b.yaml").write_text("threads: 4\n")
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    over = {"corpora": {"text": {"path": "b.txt"}}, "run": ["a", "b"], "device": "cpu"}
    whole = merge(base, {"threads": 4}, over)
    assert beyond(whole, files) == over
    assert beyond(merge(base, {"threads": 4}), files) == {}
    assert arguments({"corpora": OrderedDict(text=OrderedDict(path="b.txt"))}) == [
        "corpora={text: {path: b.txt}}"
    ]
