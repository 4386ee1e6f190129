"""Headers of safetensors files: reading them, checking them, and making them for a few tensors.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length N of the header,
little-endian; N bytes of JSON with each tensor's dtype, shape and place; the tensors' bytes
without gaps. What the format's own library refuses is refused here, and a name given twice too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokinfo.io.atomic import UNSEALED
from tokinfo.io.damaged import parse_json, parsing
from tokinfo.io.errors import FetchError
from tokinfo.models.fetch.ranges import Piece

LENGTH = 8  # bytes of the number in front of a header
LONGEST = 100_000_000  # bytes of a header that the format allows
BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8},
    **{"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16},
    **{"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64},
}


@dataclass(frozen=True)
class Tensor:
    """A tensor inside a file: its form, and where its bytes are."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # first byte in the file
    size: int  # in bytes


def header_length(file: str, first: bytes, size: int) -> int:
    """Return the length of a header from the first eight bytes of a file of ``size`` bytes.

    Raises FetchError when no header of that length can be there.
    """
    length = int.from_bytes(first, "little")
    if len(first) < LENGTH or not 2 <= length <= min(LONGEST, size - LENGTH):
        raise FetchError(f"{file}: not a safetensors file (its header has an impossible length)")
    return length


def read_header(file: str, text: bytes, size: int) -> dict[str, Tensor]:
    """Return the tensors that a header names, in a file of ``size`` bytes.

    Raises FetchError when the header is damaged, or its tensors are not the file's bytes, each of
    them once.
    """
    first = LENGTH + len(text)
    with parsing(f"{file}: damaged safetensors header"):
        named = parse_json(text, once=True)
        words = named.pop("__metadata__", None) or {}
        if not all(isinstance(word, str) for word in {**words}.values()):
            raise ValueError("its metadata are no texts")
        found = {name: _tensor(file, name, entry, first) for name, entry in named.items()}
    end = first
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != end:
            raise FetchError(f"{file}: damaged safetensors header: wrong place for {name}")
        end += tensor.size
    if end != size:
        raise FetchError(f"{file}: damaged safetensors header: {size - end} bytes of no tensor")
    return found


def _tensor(file: str, name: str, entry: Any, first: int) -> Tensor:
    """Return an entry of a header; raises one of the errors that `parsing` turns into a line."""
    name.encode()  # half of a surrogate pair is no character
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError(f"no whole numbers for {name}")
    bits = BITS[dtype] * math.prod(shape)
    if bits != 8 * (end - begin) or math.prod(max(length, 1) for length in shape) >= 1 << 57:
        raise ValueError(f"wrong place for {name}")
    return Tensor(file, dtype, shape, first + begin, end - begin)


def make_file(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[Piece]]:
    """Return the head of a new file that holds these tensors, and the pieces to fill it with.

    Tensors lie in the order in which their files have them, so that neighbours there are one
    piece here. `tokinfo.io.atomic.seal` finishes the file.
    """
    ordered = sorted(tensors.items(), key=lambda item: (item[1].file, item[1].start, item[0]))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **UNSEALED}}
    offset = 0
    for name, tensor in ordered:
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(LENGTH, "little") + text
    return head, _join((tensor for _, tensor in ordered), len(head))


def _join(tensors: Iterable[Tensor], at: int) -> list[Piece]:
    pieces: list[Piece] = []
    for tensor in tensors:
        last = pieces[-1] if pieces else None
        if last and last.file == tensor.file and last.start + last.size == tensor.start:
            pieces[-1] = Piece(last.file, last.start, last.size + tensor.size, last.at)
        elif tensor.size:
            pieces.append(Piece(tensor.file, tensor.start, tensor.size, at))
        at += tensor.size
    return pieces
