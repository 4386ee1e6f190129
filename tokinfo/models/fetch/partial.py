"""A model's embedding and first blocks, taken out of a repository or a directory.

Only the bytes of the tensors needed are read, from wherever they are. Parts of hub repositories
are kept: a study that needs more blocks later fetches what is missing, and a depth's directory
is made of links to its parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tokinfo.io.atomic import new_file, save_sealed, seal
from tokinfo.io.damaged import check_seal, parse_json, parsing
from tokinfo.io.errors import DamagedError, FetchError, first_line
from tokinfo.io.locks import exclusive
from tokinfo.models.fetch import ranges
from tokinfo.models.fetch.headers import LENGTH, Tensor, header_length, make_file, read_header
from tokinfo.models.fetch.local import read
from tokinfo.models.parts import sort_tensors

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED = "pytorch_model.bin"
REST = 0.01
"""Largest share of a file that is fetched only to check the hash of the whole."""
log = logging.getLogger(__name__)


class Origin(Protocol):
    """Where the files of a full model are."""

    name: str

    @property
    def cache(self) -> Path | None:
        """Directory where parts are kept; None: they are cheap to make again."""

    def files(self) -> dict[str, int]:
        """Return the sizes of the files, by name."""

    def whole(self, file: str) -> Path:
        """Return the path of a whole file; raises FetchError."""

    def prepare(self, file: str) -> None:
        """Do what makes `stream` cheap for a file."""

    def stream(self, file: str, start: int, end: int) -> Iterator[bytes]:
        """Yield bytes of a file; raises FetchError and CutError."""

    def sha256(self, file: str) -> str | None:
        """Return the hash that a file read in parts must have as a whole; None: there is none."""

    def doubt(self) -> None:
        """Have what is known of the files looked up again, since one does not fit it."""


def write_blocks(origin: Origin, config: PretrainedConfig, blocks: int, out: Path) -> None:
    """Write the embedding and the first ``blocks`` blocks of a model's weights to ``out``.

    That is one safetensors file for each of them, and an index. ``config`` is the full model's.

    Raises:
        FetchError: weights are missing, damaged, or cannot be fetched.
    """
    where, pickled = _where(origin)
    parts = sort_tensors(config, where, origin.name).upto(blocks)
    headers: dict[str, dict[str, Tensor]] = {}
    for file, names in parts.items():
        target = (origin.cache or out) / file
        with nullcontext() if origin.cache is None else exclusive(target):
            held = held_tensors(target)
            if held is not None and set(names) <= held:
                pass
            elif pickled:
                _unpickle(origin, {name: (where[old], old) for name, old in names.items()}, target)
            else:
                if origin.cache is not None:
                    # A file was verified with the part that was here before.
                    for source in {where[old] for old in names.values()}:
                        _mark(origin.cache, source).unlink(missing_ok=True)
                _copy(origin, where, names, headers, target)
    if origin.cache is not None:
        if not pickled:
            _verify(origin, origin.cache, where, parts)
        # After the check: parts that another job found damaged meanwhile are not linked.
        for file in parts:
            try:
                link(origin.cache / file, out / file)
            except FileNotFoundError:
                raise _damaged_elsewhere(origin, file) from None
    write_index(out, list(parts))


def _where(origin: Origin) -> tuple[dict[str, str], bool]:
    """Return the file that holds each tensor, and whether the files are pickled."""
    there = origin.files()
    for index, single, pickled in ((INDEX, SINGLE, False), (PICKLED_INDEX, PICKLED, True)):
        # In the order of transformers: an index beside a single file is left from before.
        if single in there:
            if pickled:
                return dict.fromkeys(_load_pickled(origin, single), single), True
            return dict.fromkeys(_header(origin, single), single), False
        if index in there:
            return _index(origin, index, there), pickled
    safe = [name for name in there if name.endswith(".safetensors")]
    if safe:
        # Shards without an index name in their headers what they hold.
        return {tensor: file for file in safe for tensor in _header(origin, file)}, False
    raise FetchError(f"{origin.name}: no weights: neither {SINGLE} nor {INDEX}")


def _index(origin: Origin, index: str, there: dict[str, int]) -> dict[str, str]:
    path = origin.whole(index)
    with parsing(f"{origin.name}: {index} is not an index of weights"):
        named: dict[str, str] = dict(parse_json(path.read_bytes())["weight_map"])
    wrong = (file for file in named.values() if not isinstance(file, str) or file not in there)
    missing = sorted({str(file) for file in wrong})
    if missing:
        raise FetchError(f"{origin.name}: {index} names {missing[0]}, which is missing")
    return named


def _header(origin: Origin, file: str) -> dict[str, Tensor]:
    size = origin.files()[file]
    try:
        return read_header(file, _header_text(origin, file, size), size)
    except ranges.CutError as error:
        raise FetchError(f"{origin.name}: {file}: the connection broke off: {error}") from error
    except FetchError as error:
        named = str(error).startswith(origin.name)
        raise FetchError(str(error) if named else f"{origin.name}: {error}") from None


def _header_text(origin: Origin, file: str, size: int) -> bytes:
    """Return the JSON of a header; those of a repository are kept for use offline."""
    if origin.cache is None:
        return _read_header_text(origin, file, size)
    kept = origin.cache / "headers" / f"{file}.json"
    with exclusive(kept):
        if not kept.is_file():
            text = _read_header_text(origin, file, size)
            read_header(file, text, size)
            with new_file(kept) as partial:
                partial.write_bytes(text)
        return kept.read_bytes()


def _read_header_text(origin: Origin, file: str, size: int) -> bytes:
    origin.prepare(file)
    length = header_length(file, _bytes(origin, file, 0, LENGTH), size)
    return _bytes(origin, file, LENGTH, LENGTH + length)


def _bytes(origin: Origin, file: str, start: int, end: int) -> bytes:
    found = bytearray()  # appended to in place: headers have up to 100 MB
    for _ in range(ranges.ATTEMPTS):
        try:
            for chunk in origin.stream(file, start + len(found), end):
                found += chunk
                if start + len(found) >= end:
                    break
            return bytes(found[: end - start])
        except ranges.CutError as error:
            cut = error
    raise cut


def held_tensors(part: Path) -> set[str] | None:
    """Return the names of the tensors in a part; None where it is not there, or was changed.

    Files get their names when they are complete and checked. One that was changed afterwards
    (anyone can write to its other name, in a study's results) is to be made again.
    """
    if not part.is_file():
        return None
    size = part.stat().st_size
    try:
        with part.open("rb") as file:
            length = header_length(part.name, file.read(LENGTH), size)
            names = set(read_header(part.name, file.read(length), size))
        check_seal(part)
    except (FetchError, DamagedError):
        return None
    return names


def _copy(
    origin: Origin,
    where: dict[str, str],
    names: dict[str, str],
    headers: dict[str, dict[str, Tensor]],
    target: Path,
) -> None:
    chosen = {}
    for name, old in names.items():
        file = where[old]
        if file not in headers:
            headers[file] = _header(origin, file)
        if old not in headers[file]:
            raise FetchError(f"{origin.name}: the index says that {file} holds {old}; it does not")
        chosen[name] = headers[file][old]
    head, pieces = make_file(chosen)
    ranges.fill(target, origin, pieces, head=head, verify=seal)


def _verify(
    origin: Origin, cache: Path, where: dict[str, str], parts: dict[str, dict[str, str]]
) -> None:
    """Check the hash of every file whose tensors are all in the parts, or all but `REST` of it.

    What is left of such a file (rotary frequencies that old repositories keep) is fetched too.

    Raises:
        VerifyError: a file's hash is not that of the hub; the parts made of it are deleted.
    """
    held: dict[str, dict[str, tuple[str, str]]] = {}
    for part, names in parts.items():
        for name, old in names.items():
            held.setdefault(where[old], {})[old] = (part, name)
    for file, tensors in held.items():
        wanted, done = origin.sha256(file), _mark(cache, file)
        if wanted is None:
            continue
        # Jobs of several depths check the same file: the first one reads it, for all of them.
        with exclusive(done):
            if done.is_file():
                continue
            header = _header(origin, file)
            rest = sum(tensor.size for old, tensor in header.items() if old not in tensors)
            if rest > REST * origin.files()[file]:
                continue
            _check_hash(origin, cache, file, header, tensors, wanted)
            with new_file(done) as partial:
                partial.write_text(f"{wanted}\n", encoding="utf-8")


def _mark(cache: Path, file: str) -> Path:
    """Return the file that marks another one as checked against its hash."""
    return cache / "verified" / file


def _damaged_elsewhere(origin: Origin, file: str) -> ranges.VerifyError:
    message = f"{origin.name}: {file} arrived damaged, as another job found; run again"
    return ranges.VerifyError(message)


def _check_hash(
    origin: Origin,
    cache: Path,
    file: str,
    header: dict[str, Tensor],
    tensors: dict[str, tuple[str, str]],
    wanted: str,
) -> None:
    try:
        found = _digest(origin, cache, file, header, tensors)
    except ranges.CutError as error:
        raise FetchError(f"{origin.name}: {file}: the connection broke off: {error}") from error
    except FileNotFoundError:
        # The job that was here before deleted the parts.
        raise _damaged_elsewhere(origin, file) from None
    if found != wanted:
        origin.doubt()
        broken = sorted({part for part, _ in tensors.values()})
        for part in broken:
            _spoil(cache / part)
        (cache / "headers" / f"{file}.json").unlink(missing_ok=True)
        raise ranges.VerifyError(
            f"{origin.name}: {file} arrived damaged (hash {found[:12]}..., the hub says "
            f"{wanted[:12]}...); run again, with --forcerun fetch where a smaller number of "
            f"blocks was read of it before"
        )


def _spoil(part: Path) -> None:
    """Delete a part of a damaged file, and overwrite its header under any other name.

    Another name is that of a smaller depth, linked before. Without its header the part cannot be
    read, and the error names the command that makes it again.
    """
    with suppress(FileNotFoundError):
        with part.open("r+b") as file:
            file.write(bytes(LENGTH))
        part.unlink()


def _digest(
    origin: Origin,
    cache: Path,
    file: str,
    header: dict[str, Tensor],
    tensors: dict[str, tuple[str, str]],
) -> str:
    """Return the SHA-256 of a whole file, put together from the parts that its tensors are in."""
    text = _header_text(origin, file, origin.files()[file])
    digest = hashlib.sha256(len(text).to_bytes(LENGTH, "little") + text)
    local: dict[str, dict[str, Tensor]] = {}
    for old, tensor in sorted(header.items(), key=lambda item: item[1].start):
        if not tensor.size:
            continue
        if old in tensors:
            part, name = tensors[old]
            if part not in local:
                local[part] = _part_header(cache / part)
            place = local[part][name]
            chunks: Iterable[bytes] = read(cache / part, place.start, place.start + place.size)
        else:
            chunks = [_bytes(origin, file, tensor.start, tensor.start + tensor.size)]
        for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()


def _part_header(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        text = file.read(int.from_bytes(file.read(LENGTH), "little"))
    return read_header(path.name, text, path.stat().st_size)


def _load_pickled(origin: Origin, file: str) -> dict[str, object]:
    import torch

    try:
        found = torch.load(origin.whole(file), map_location="cpu", mmap=True, weights_only=True)
    except FetchError:
        raise
    except Exception as error:
        first = first_line(error)
        raise FetchError(f"{origin.name}: {file} is not a plain file of weights: {first}") from None
    if not isinstance(found, dict):
        raise FetchError(f"{origin.name}: {file} is not a plain file of weights")
    return found


def _unpickle(origin: Origin, names: dict[str, tuple[str, str]], target: Path) -> None:
    """Write tensors of `torch.save` files as safetensors; only whole files can be had of those."""
    import torch

    files = sorted({file for file, _ in names.values()})
    log.warning("%s: no safetensors; reading whole files: %s", origin.name, ", ".join(files))
    chosen = {}
    for file in files:
        held = _load_pickled(origin, file)
        for name, (holder, old) in names.items():
            if holder != file:
                continue
            tensor = held.get(old)
            if not isinstance(tensor, torch.Tensor):
                raise FetchError(
                    f"{origin.name}: the index says that {file} holds {old}; it does not"
                )
            chosen[name] = tensor.clone().contiguous()
    save_sealed(chosen, target, {"format": "pt"})


def link(origin: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be (another device)."""
    try:
        os.link(origin, target)
    except OSError:
        shutil.copyfile(origin, target)


def write_index(out: Path, files: list[str]) -> None:
    """Write the index of the safetensors files in a directory, from their headers."""
    named: dict[str, str] = {}
    total = 0
    for file in files:
        with (out / file).open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH), "little")
            held = json.loads(stream.read(length))
        named |= {name: file for name in held if name != "__metadata__"}
        total += (out / file).stat().st_size - LENGTH - length
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(named.items()))}
    (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
