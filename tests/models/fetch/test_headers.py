"""Headers of safetensors files: what the format's own library refuses is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save_file

from tests.models.fetch.hub_models import local, refused, rewrite_header, write_model
from tokinfo.io.errors import FetchError
from tokinfo.models.fetch.headers import BITS, LENGTH, header_length, read_header

SIZE = 16


def entry(begin: object, end: object, shape: object, dtype: object = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def ours(text: bytes, size: int = SIZE) -> bool:
    whole = LENGTH + len(text) + size
    try:
        header_length("f", len(text).to_bytes(LENGTH, "little"), whole)
        read_header("f", text, whole)
    except FetchError:
        return False
    return True


def theirs(text: bytes, size: int = SIZE) -> bool:
    try:
        deserialize(len(text).to_bytes(LENGTH, "little") + text + bytes(size))
    except SafetensorError:
        return False
    return True


@pytest.mark.parametrize(
    ("header", "right"),
    [
        ({"a": entry(0, 8, [8]), "b": entry(8, 16, [8])}, True),
        ({"b": entry(8, 16, [8]), "a": entry(0, 8, [8])}, True),
        ({"a": entry(0, 0, [0]), "b": entry(0, 16, [16])}, True),
        ({"a": entry(0, 16, [4, 1], "F32")}, True),
        ({"__metadata__": {"format": "pt"}, "a": entry(0, 16, [16])}, True),
        ({"__metadata__": None, "a": entry(0, 16, [16])}, True),
        ({"a": entry(0, 10, [10]), "b": entry(8, 16, [8])}, False),  # overlapping
        ({"a": entry(0, 16, [16]), "b": entry(0, 16, [16])}, False),
        ({"a": entry(0, 8, [8]), "b": entry(9, 16, [7])}, False),  # a byte of no tensor
        ({"a": entry(0, 8, [8])}, False),
        ({"a": entry(8, 16, [8])}, False),
        ({"a": entry(0, 17, [17])}, False),
        ({"a": entry(16, 0, [-16])}, False),
        ({"a": entry(0, 16, [16.0])}, False),
        ({"a": entry(0, 16, [True, 16])}, False),
        ({"a": entry(0, 16, [16], "U9")}, False),
        ({"a": entry(0, 16, [16], ["U8"])}, False),
        ({"a": entry(0, 0, [2**63, 4, 0]), "b": entry(0, 16, [16])}, False),
        ({"__metadata__": {"a": 1}, "b": entry(0, 16, [16])}, False),
        ({"__metadata__": ["a"], "b": entry(0, 16, [16])}, False),
        ({"a": None}, False),
        ({"a": entry(0, 16, [16]) | {"more": float("nan")}}, False),
        ({"\ud800": entry(0, 16, [16])}, False),
        ([entry(0, 16, [16])], False),
    ],
)
def test_a_header_is_read_where_the_formats_library_reads_it(header: Any, right: bool) -> None:
    text = json.dumps(header).encode()
    assert theirs(text) is right
    assert ours(text) is right


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_of_the_format_has_its_size(dtype: str) -> None:
    text = json.dumps({"a": entry(0, BITS[dtype], [8], dtype)}).encode()
    assert theirs(text, BITS[dtype])
    assert ours(text, BITS[dtype])


def test_a_name_that_is_given_twice_is_refused() -> None:
    one = json.dumps(entry(0, 16, [16]))
    text = f'{{"a":{json.dumps(entry(0, 8, [8]))},"a":{one}}}'.encode()
    assert theirs(text), "the library takes the last one"
    assert not ours(text)


NUMBERS = st.one_of(
    st.integers(-2, 18), st.sampled_from([2**63, 2**64, 10**30, 1.0, True, None, "8"])
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "U9", None]),
        "shape": st.one_of(JSON, st.lists(NUMBERS, max_size=3)),
        "data_offsets": st.one_of(JSON, st.lists(NUMBERS, min_size=2, max_size=2)),
    }
)
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "__metadata__"]), st.one_of(ENTRIES, JSON), max_size=4
)


@given(st.one_of(HEADERS.map(lambda header: json.dumps(header).encode()), st.binary(max_size=60)))
@example(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
@example(b"\xef\xbb\xbf{}")
@example("{}".encode("utf-16"))
@settings(max_examples=300, deadline=None)
def test_what_the_formats_library_refuses_is_refused(text: bytes) -> None:
    assert theirs(text) or not ours(text)


@given(st.lists(st.tuples(st.sampled_from(list(BITS)), st.integers(0, 5)), max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_what_lies_without_gaps_is_read_in_any_order(
    made: list[tuple[str, int]], data: st.DataObject
) -> None:
    entries, at = [], 0
    for number, (dtype, eights) in enumerate(made):
        size = BITS[dtype] * eights
        entries.append((str(number), entry(at, at + size, [eights, 8], dtype)))
        at += size
    text = json.dumps(dict(data.draw(st.permutations(entries)))).encode()
    assert theirs(text, at)
    assert ours(text, at)


def test_a_shard_whose_tensors_overlap_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "100MB")

    def overlapping(header: dict[str, Any]) -> dict[str, Any]:
        places = sorted(name for name in header if "q_proj" in name)
        header[places[0]]["data_offsets"] = header[places[1]]["data_offsets"]
        return header

    rewrite_header(tmp_path / "model" / "model.safetensors", overlapping)
    line = refused(local(tmp_path / "model"), tmp_path, 5)
    assert "model.safetensors: damaged safetensors header: wrong place for model." in line


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "f")
    content = (tmp_path / "f").read_bytes()
    length = header_length("f", content[:LENGTH], len(content))
    found = read_header("f", content[LENGTH : LENGTH + length], len(content))
    assert {name: tensor.size for name, tensor in found.items()} == {"a": 12, "b": 4}
