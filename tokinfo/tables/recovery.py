"""The long table: every cell's rows as one, how it is read, and in what order models stand.

Files are read a few cells at a time, so that memory does not follow the cells times positions that
go in. `tokinfo.tables.summary` has each cell's shares.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from tokinfo.io.atomic import new_file
from tokinfo.io.errors import TokinfoError, cure, first_line
from tokinfo.study.targets import OWN
from tokinfo.tables.schema import CELL_KEYS, METADATA_KEY, RECOVERY_SCHEMA, schema_mismatch

AT_ONCE = 100
"""Cells whose rows are held at the same time."""

ROW_GROUP = 16_384
"""Rows of the long table that are read together."""

_ROW_ORDER = ("prompt_id", "position")

RECOVERED = (
    pl.when(
        (pl.col("around") == "found")
        & ~pl.col("visible")
        & ~pl.col("independent")
        & pl.col("identified").is_not_null()
    )
    .then(
        pl.col("correct")
        & (pl.col("verdict") == "certified").fill_null(False)
        & (pl.col("identified") == "identifiable")
    )
    .otherwise(None)
)
"""Recovered in full: found, the prompt certified, and identifiable around the FOUND prompt.

Null at visible positions, at those that nothing visible depends on and wherever nothing was swept
around a found prompt: without a sweep
nothing says whether another token would explain the activations as well.
"""

OWN_TARGET = pl.col("target") == OWN
"""Rows that say something about their prompt; the others are controls and enter no share."""

SOUGHT = ~pl.col("given") & ~pl.col("independent")
"""Rows about tokens that had to be found and could be: those that the solver was given, and those
that nothing visible depends on, enter no share."""

OTHERS_KNOWN = (pl.col("around") == "true").fill_null(False)
"""Rows of a sweep around the true prompt. Their `correct` says that the true token is the best
one when all OTHER tokens are known: an upper bound of any search, and no search's result."""


UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What polars raises for files that are no tables; of some damaged ones it panics."""


class TableError(TokinfoError):
    """A table cannot be made; the message is one line that names the file."""


def collect(cells: Sequence[Path], recovery: Path) -> None:
    """Write one long table of exactly these cell files, as parquet.

    Cells are ordered by what they are, not by the order of ``cells``; rows of a cell by prompt
    and position. The file's metadata says how many cells it holds and keeps each distinct value
    of the cells' metadata, save which cell they are. The CSV of an earlier table goes: where it is
    not made again, it would say what is no longer so.

    Memory follows the number of cells by their names alone: rows are read a few cells at a time.

    Raises:
        TableError: no cells, a file that is missing, truncated, empty, of another schema or
            holding more than one cell, or two files with the same cell.
    """
    keys: dict[Path, tuple[object, ...]] = {Path(path): _cell_key(Path(path)) for path in cells}
    if not keys:
        raise TableError("no cells: there is nothing to collect")
    files: dict[tuple[object, ...], Path] = {}
    for path, key in keys.items():
        if key in files:
            raise TableError(f"{path}: the same cell as {files[key]}")
        files[key] = path
    ordered = sorted(keys, key=lambda path: tuple(map(_natural, keys[path])))
    metadata = {METADATA_KEY: json.dumps({"cells": len(ordered), "of_cells": _metadata(ordered)})}
    # One plan over all cells would hold every file open, and grow with them.
    scratch = recovery.with_name(f".{recovery.name}.parts")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        with new_file(recovery) as partial:
            parts = list(_parts(ordered, scratch))
            pl.scan_parquet(parts).sink_parquet(
                partial, row_group_size=ROW_GROUP, metadata=metadata, engine="streaming"
            )
        recovery.with_suffix(".csv").unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _parts(ordered: Sequence[Path], scratch: Path) -> Iterator[Path]:
    """Write the rows of a few cells at a time, in order, each time to a parquet file."""
    for number, paths in enumerate(_chunks(ordered, AT_ONCE)):
        frames = []
        for path in paths:
            try:
                frame = pl.read_parquet(path, columns=list(RECOVERY_SCHEMA))
            except UNREADABLE as error:
                # Its footer can be read, its rows cannot.
                raise TableError(_damaged(path, error)) from None
            frames.append(frame.sort(_ROW_ORDER))
        part = scratch / f"{number:08d}.parquet"
        with new_file(part) as partial:
            pl.concat(frames).write_parquet(partial, compression="lz4")
        yield part


def write_csv(recovery: Path, recovery_csv: Path) -> None:
    """Write the long table as CSV, many times as large as the parquet file.

    Lists are joined with " | " (ids are the authority: a token may contain the separator).

    Raises:
        TableError: the table is unreadable or of another schema.
    """
    lists = [name for name, dtype in RECOVERY_SCHEMA.items() if isinstance(dtype, pl.List)]
    joined = [pl.col(name).cast(pl.List(pl.String)).list.join(" | ") for name in lists]
    rows = open_table(recovery).with_columns(joined)
    with new_file(recovery_csv) as partial, partial.open("wb") as file:
        # polars' streaming CSV sink reads far ahead of what it has written.
        try:
            for start in range(0, rows.select(pl.len()).collect().item(), ROW_GROUP):
                part = rows.slice(start, ROW_GROUP).collect()
                part.write_csv(file, include_header=start == 0)
        except pl.exceptions.PolarsError as error:
            raise TableError(_damaged(recovery, error)) from None


def _chunks(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def _cell_key(path: Path) -> tuple[object, ...]:
    """Return a cell file's key after checking that it is one cell of the right schema."""
    if not path.exists():
        raise TableError(f"{path}: no such cell file")
    try:
        mismatch = schema_mismatch(pl.read_parquet_schema(path))
        if mismatch:
            raise TableError(f"{path}: not a cell's table: {mismatch}")
        found = pl.scan_parquet(path).select(CELL_KEYS).unique().collect()
    except UNREADABLE as error:
        raise TableError(_damaged(path, error)) from None
    if len(found) != 1:
        raise TableError(f"{path}: holds {len(found)} cells, not 1")
    # What many cells share is held once.
    return tuple(sys.intern(value) if isinstance(value, str) else value for value in found.row(0))


def _damaged(path: Path, error: BaseException) -> str:
    return f"{path}: cannot be read as parquet ({first_line(error)}){cure(path)}"


def _metadata(paths: Sequence[Path]) -> list[object]:
    """Return the distinct `tokinfo` metadata of cell files, in order of first appearance.

    Which cell a file holds is left out: the columns say it, and what many cells share is kept
    once.
    """
    distinct: dict[str, object] = {}
    for path in paths:
        text = pl.read_parquet_metadata(path).get(METADATA_KEY)
        metadata = {} if text is None else json.loads(text)
        metadata.pop("cell", None)
        if metadata:
            distinct.setdefault(json.dumps(metadata), metadata)
    return list(distinct.values())


def scan(recovery: Path, *, controls: bool = False) -> pl.LazyFrame:
    """Open the long table lazily, without controls or (``controls``) the controls alone.

    A control is a cell with a target that no prompt explains. Code that reads the table through
    this function cannot count one by accident.

    Raises:
        TableError: it is unreadable or of another schema.
    """
    return open_table(recovery).filter(~OWN_TARGET if controls else OWN_TARGET)


def open_table(recovery: Path) -> pl.LazyFrame:
    """Open the long table lazily, controls and all.

    Raises:
        TableError: it is unreadable or of another schema.
    """
    try:
        mismatch = schema_mismatch(pl.read_parquet_schema(recovery))
    except UNREADABLE as error:
        raise TableError(_damaged(recovery, error)) from None
    if mismatch:
        raise TableError(f"{recovery}: not a recovery table: {mismatch}")
    return pl.scan_parquet(recovery)


@lru_cache(maxsize=4096, typed=True)
def _natural(value: object) -> tuple[tuple[int, str], ...]:
    """Return a sorting key that puts block.2 before block.10 and compares any two values."""
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"([0-9]+)", str(value))
    )


def display_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a sorting key for models, the same in every figure and page.

    By family (mixers first), depth, source, state (trained first), weights (exact first) and
    name. A pooled row may lack what its cells do not share.
    """
    return (
        _place_in(_FAMILY_ORDER, row["family"]),
        str(row["family"]),
        row["depth"] or 0,
        str(row["source"]),
        _place_in(_STATE_ORDER, row["state"]),
        _place_in(_WEIGHTS_ORDER, row["quantization"]),
        row["model"],
    )


def weights_order(quantization: str) -> int:
    """Return a sorting key for precisions: exact weights first."""
    return _place_in(_WEIGHTS_ORDER, quantization)


_FAMILY_ORDER = ("mixer-flat", "mixer-expanded", "mixer-parallel")
_STATE_ORDER = ("trained", "untrained")
_WEIGHTS_ORDER = ("float32", "bfloat16", "float16", "int8", "nf4")


def _place_in(order: Sequence[str], value: str) -> int:
    return order.index(value) if value in order else len(order)
