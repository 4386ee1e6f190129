"""Tables: every cell's rows as one long table, and one row per cell of what came back.

Files are read a few cells at a time, so that memory follows the tables that come out (a row a
cell), not the cells times positions that go in.
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

from tokinfo.atomic import new_file
from tokinfo.damaged import cure, first_line
from tokinfo.intervals import chance_unordered, clustered_share
from tokinfo.schema import (
    CELL_KEYS,
    METADATA_KEY,
    PROMPT_VERDICTS,
    RECOVERY_SCHEMA,
    schema_problem,
)
from tokinfo.targets import OWN

AT_ONCE = 100
"""Cells whose rows are held at the same time."""

ROW_GROUP = 16_384
"""Rows of the long table that are read together."""

_ROW_ORDER = ("prompt_id", "position")
_FACTS = (
    "kind",
    "source",
    "family",
    "state",
    "quantization",
    "outlier_threshold",
    "width",
    "training_share",
    "training_tokens",
    "held_out_loss",
    "weights_note",
    "block",
    "depth",
    "vocabulary",
    "restarts",
    "device",
    "dtype",
    "model_digest",
    "code_digest",
)
"""Columns that are constant within a cell and carried into the summary."""

_PER_PROMPT = (
    "loss",
    "first_loss",
    "found_loss",
    "true_loss",
    "noise_floor",
    "steps",
    "evaluations",
)
"""Columns that are constant within a prompt, of which the summary gives medians."""

_BITS = ("bits", "bits_high", "prior_bits", "prior_bits_high")
"""Columns about a position, of which the summary gives means."""

RECOVERED = (
    pl.when((pl.col("around") == "found") & ~pl.col("visible") & pl.col("identified").is_not_null())
    .then(
        pl.col("correct")
        & (pl.col("verdict") == "certified").fill_null(False)
        & (pl.col("identified") == "identifiable")
    )
    .otherwise(None)
)
"""Recovered in full: found, the prompt certified, and identifiable around the FOUND prompt.

Null at visible positions and wherever nothing was swept around a found prompt: a solver that
does not say what else would explain the activations has not shown that it recovered anything.
"""

OWN_TARGET = pl.col("target") == OWN
"""Rows that say something about their prompt; the others are controls and enter no share."""

OTHERS_KNOWN = (pl.col("around") == "true").fill_null(False)
"""Rows of a sweep around the true prompt. Their `correct` says that the true token is the best
one when all OTHER tokens are known: an upper bound of any search, and no search's result."""

SHARES: dict[str, str] = {
    "top1": "correct",
    "top5": "in_top5",
    "unordered": "in_prompt",
    "published": "published_correct",
    "identifiable": "identifiable",
    "recovered": "recovered",
}
"""Shares of positions, each with `_low` and `_high`, and the column each is a share of."""

_SHARES = (*SHARES, "certified")
"""All shares of the summary: `certified` is a share of prompts."""


class TableError(ValueError):
    """A table cannot be made; the message is one line that names the file."""


# --- the long table -----------------------------------------------------------------------


def collect(cells: Sequence[Path], recovery: Path, recovery_csv: Path) -> None:
    """Write one long table of exactly these cell files, as parquet and as CSV.

    Cells are ordered by what they are, not by the order of ``cells``; rows of a cell by prompt
    and position. In the CSV, lists are joined with " | " (ids are the authority: a token may
    contain the separator). The parquet file's metadata says how many cells it holds and keeps
    each distinct value of the cells' own metadata, save which cell they are.

    Memory follows the number of cells by their names alone: rows are read a few cells at a time.

    Raises:
        TableError: no cells, a file that is missing, truncated, empty, of another schema or
            holding more than one cell, or two files with the same cell.
    """
    keys: dict[Path, tuple[object, ...]] = {Path(path): _cell_key(Path(path)) for path in cells}
    if not keys:
        raise TableError("no cells: there is nothing to collect")
    owners: dict[tuple[object, ...], Path] = {}
    for path, key in keys.items():
        if key in owners:
            raise TableError(f"{path}: the same cell as {owners[key]}")
        owners[key] = path
    ordered = sorted(keys, key=lambda path: tuple(map(_natural, keys[path])))
    metadata = {METADATA_KEY: json.dumps({"cells": len(ordered), "of_cells": _metadata(ordered)})}
    # One plan over all cells would hold every file open, and grow with them.
    scratch = recovery.with_name(f".{recovery.name}.parts")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        with new_file(recovery) as partial, new_file(recovery_csv) as partial_csv:
            parts = list(_parts(ordered, scratch, partial_csv))
            pl.scan_parquet(parts).sink_parquet(
                partial, row_group_size=ROW_GROUP, metadata=metadata, engine="streaming"
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _parts(ordered: Sequence[Path], scratch: Path, csv: Path) -> Iterator[Path]:
    """Write the rows of a few cells at a time, in order: all to one CSV, each to a parquet file.

    polars' streaming CSV sink reads far ahead of what it has written, so the CSV is written here.
    """
    lists = [name for name, dtype in RECOVERY_SCHEMA.items() if isinstance(dtype, pl.List)]
    joined = [pl.col(name).cast(pl.List(pl.String)).list.join(" | ") for name in lists]
    with csv.open("wb") as rows:
        for number, paths in enumerate(_chunks(ordered, AT_ONCE)):
            frames = []
            for path in paths:
                try:
                    frame = pl.read_parquet(path, columns=list(RECOVERY_SCHEMA))
                except pl.exceptions.PolarsError as error:
                    # Its footer can be read, its rows cannot.
                    raise TableError(_damaged(path, error)) from None
                frames.append(frame.sort(_ROW_ORDER))
            whole = pl.concat(frames)
            whole.with_columns(joined).write_csv(rows, include_header=number == 0)
            part = scratch / f"{number:08d}.parquet"
            with new_file(part) as partial:
                whole.write_parquet(partial, compression="lz4")
            yield part


def _chunks(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def _cell_key(path: Path) -> tuple[object, ...]:
    """Return a cell file's key after checking that it is one cell of the right schema."""
    if not path.exists():
        raise TableError(f"{path}: no such cell file")
    try:
        problem = schema_problem(pl.read_parquet_schema(path))
        if problem:
            raise TableError(f"{path}: not a cell's table: {problem}")
        found = pl.scan_parquet(path).select(CELL_KEYS).unique().collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(_damaged(path, error)) from None
    if len(found) != 1:
        raise TableError(f"{path}: holds {len(found)} cells, not 1")
    # What many cells share is held once.
    return tuple(sys.intern(value) if isinstance(value, str) else value for value in found.row(0))


def _damaged(path: Path, error: Exception) -> str:
    return f"{path}: cannot be read as parquet ({first_line(error)}){cure(path)}"


def _metadata(paths: Sequence[Path]) -> list[object]:
    """Return the distinct `tokinfo` metadata of cell files, in order of first appearance.

    Which cell a file holds is left out: the columns say it, and what many cells share is kept
    once.
    """
    distinct: dict[str, object] = {}
    for path in paths:
        text = pl.read_parquet_metadata(path).get(METADATA_KEY)
        told = {} if text is None else json.loads(text)
        told.pop("cell", None)
        if told:
            distinct.setdefault(json.dumps(told), told)
    return list(distinct.values())


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


# --- the summary --------------------------------------------------------------------------


def summarise(recovery: Path, summary: Path, summary_csv: Path) -> None:
    """Write one row per cell and kind of position (hidden, visible), as parquet and as CSV.

    Cells whose target is a control's are left out: the page on identifiability has them.
    Shares come with 95 % intervals over prompts (`tokinfo.intervals.clustered_share`) and with
    what a uniform guess among the candidates would give. `whole` is the share of prompts with
    every position of the row's kind right, `prompt_whole` with every position right. Losses
    are medians over prompts; `descent` is the median of loss over first loss. `around` says what
    the cell's sweeps were run around; where it is ``true`` the other tokens were known to the
    solver, so `top1` is no search's result. `recovered` is the share of hidden positions found,
    certified and identifiable around the found prompt. `bits`, `prior_bits` and their upper ends
    are means, `margin` and `noise_threshold` medians over positions. What a solver does not give
    is null.

    Raises:
        TableError: the long table cannot be read or has another schema.
    """
    table = shares_by_cell(recovery)
    for path in (summary, summary_csv):
        with new_file(path) as partial:
            if path is summary:
                table.write_parquet(partial)
            else:
                table.write_csv(partial)


def scan(recovery: Path, *, controls: bool = False) -> pl.LazyFrame:
    """Open the long table lazily, without controls or (``controls``) the controls alone.

    A control is a cell whose target is not its prompt's own. Who reads the table through here
    cannot count one by accident.

    Raises:
        TableError: it is unreadable or of another schema.
    """
    return _open(recovery).filter(~OWN_TARGET if controls else OWN_TARGET)


def _open(recovery: Path) -> pl.LazyFrame:
    """Return all rows of the long table, whose schema is checked."""
    try:
        problem = schema_problem(pl.read_parquet_schema(recovery))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(_damaged(recovery, error)) from None
    if problem:
        raise TableError(f"{recovery}: not a recovery table: {problem}")
    return pl.scan_parquet(recovery)


def shares_by_cell(recovery: Path, which: pl.Expr = OWN_TARGET) -> pl.DataFrame:
    """Return `shares` of every cell of the long table, holding the rows of a few at a time.

    A cell's rows stand together in the table that `collect` writes. Where they do not, all rows
    are held after all.

    Args:
        recovery: the long table.
        which: the rows that are counted.

    Raises:
        TableError: the long table cannot be read or has another schema.
    """
    every = _open(recovery)
    rows = every.filter(which).drop(_UNUSED)
    whole: list[pl.DataFrame] = []
    done: set[int] = set()
    rest = rows.head(0).collect()
    together = True
    # Slices of the file: polars' own generator of batches reads ahead of who takes them.
    for start in range(0, every.select(pl.len()).collect().item(), ROW_GROUP):
        batch = every.slice(start, ROW_GROUP).filter(which).drop(_UNUSED).collect()
        if batch.is_empty():
            continue
        held = pl.concat([rest, batch])
        run = held.select(pl.struct(CELL_KEYS).rle_id()).to_series()
        # The last cell may go on in the next batch.
        part, rest = held.filter(run != run[-1]), held.filter(run == run[-1])
        first = [part.select(CELL_KEYS).unique(), rest.select(CELL_KEYS).head(1)]
        names = pl.concat(first).hash_rows().to_list()
        together = done.isdisjoint(names)
        if not together:
            break
        done.update(names[:-1])
        if len(part):
            whole.append(shares(part.lazy(), CELL_KEYS))
    if not together or rest.is_empty():
        return shares(rows, CELL_KEYS)
    return pl.concat([*whole, shares(rest.lazy(), CELL_KEYS)])


_UNUSED = (
    *("prompt", "true_token", "found_token", "top5_ids", "top5_tokens"),
    *("curve_steps", "curve"),
)
"""Columns of the long table that no share is made from, the widest ones."""


def shares(rows: pl.LazyFrame, by: Sequence[str]) -> pl.DataFrame:
    """Return shares, intervals, chance and costs per group and kind of position.

    Args:
        rows: rows of the long table.
        by: columns that make a group, such as `CELL_KEYS`, or ``["model"]`` to pool all cells
            of a model. A prompt stays ONE cluster whatever is pooled: the same text in twenty
            cells is not twenty prompts.

    Returns:
        One row per group and value of `visible`, in order of first appearance, hidden first.
    """
    group = [*by, "visible"]
    facts = [name for name in _FACTS if name not in by]
    cell = [*dict.fromkeys([*group, *CELL_KEYS]), "prompt_id"]
    verdict = pl.col("verdict")
    per_prompt = (
        rows.with_columns(
            identifiable=pl.col("identified") == "identifiable",
            recovered=RECOVERED,
            judged=verdict.is_in(PROMPT_VERDICTS),
        )
        .group_by(cell, maintain_order=True)
        .agg(
            *(pl.col(column).sum().alias(f"{name}_found") for name, column in SHARES.items()),
            *(pl.col(column).count().alias(f"{name}_of") for name, column in SHARES.items()),
            *(pl.col(name).first() for name in (*_PER_PROMPT, "seconds", *facts)),
            *(pl.col(name).sum() for name in _BITS),
            *(pl.col(name).count().alias(f"with_{name}") for name in _BITS),
            certified_found=((verdict == "certified") & pl.col("judged")).any().cast(pl.Int64),
            certified_of=pl.col("judged").any().cast(pl.Int64),
            positions=pl.len(),
            ids=pl.col("true_id"),
            whole=pl.col("correct").all(),
            rank_first=(pl.col("rank") == 1).sum(),
            ranked=pl.col("rank").count(),
            margins=pl.col("margin").drop_nulls(),
            thresholds=pl.col("noise_threshold").drop_nulls(),
            around=pl.col("around").max(),
        )
        .collect(engine="streaming")
    )
    # `all` over both kinds of position, joined back to each of them.
    one_prompt = [*CELL_KEYS, "prompt_id"]
    both = per_prompt.group_by(one_prompt).agg(
        prompt_whole=pl.col("whole").all(),
        prompt_ids=pl.col("ids").list.explode(),
        around=pl.col("around").max(),
    )
    per_prompt = per_prompt.drop("around").join(both, on=one_prompt, maintain_order="left")
    groups = per_prompt.group_by(group, maintain_order=True)
    plain = groups.agg(*_plain(facts)).iter_rows(named=True)
    out = [row | _intervals(part) for row, (_, part) in zip(plain, groups, strict=True)]
    table = pl.DataFrame(out, schema=_summary_schema(group, facts))
    order = table.select(by).unique(maintain_order=True).with_row_index("_order")
    return (
        table.join(order, on=list(by), maintain_order="left")
        .sort("_order", "visible", maintain_order=True)
        .drop("_order")
    )


def _summary_schema(group: Sequence[str], facts: Sequence[str]) -> dict[str, pl.DataType]:
    schema: dict[str, pl.DataType] = {name: RECOVERY_SCHEMA[name] for name in (*group, *facts)}
    schema |= {"around": pl.String()}
    schema |= {"positions": pl.Int64(), "n_prompts": pl.Int64(), "interval": pl.String()}
    for name in _SHARES:
        schema |= {f"{name}{end}": pl.Float64() for end in ("", "_low", "_high")}
    rest = (
        "chance_top1 chance_top5 chance_unordered whole prompt_whole loss first_loss found_loss "
        "true_loss noise_floor descent rank_first margin bits bits_high prior_bits prior_bits_high "
        "noise_threshold steps evaluations seconds"
    )
    return schema | {name: pl.Float64() for name in rest.split()}


def _plain(facts: Sequence[str]) -> Iterator[pl.Expr]:
    """Yield what polars summarises by itself of a group's cells and prompts."""
    for name in (*facts, "around"):  # null where the cells of a group differ
        yield pl.when(pl.col(name).n_unique() == 1).then(pl.col(name).first()).alias(name)
    yield (pl.col("loss") / pl.col("first_loss")).median().alias("descent")
    yield from (pl.col(name).median() for name in _PER_PROMPT)
    yield from (pl.col(name).mean() for name in ("whole", "prompt_whole", "seconds"))


def _intervals(part: pl.DataFrame) -> dict[str, object]:
    """Return shares of a group with their intervals, and what is weighted by positions.

    Args:
        part: one row per cell and prompt of the group.
    """
    row: dict[str, object] = {}
    clusters = part.group_by("prompts", "prompt_id", maintain_order=True).agg(
        pl.col("positions").sum(), pl.col("^.*_(found|of)$").sum()
    )
    row["positions"], row["n_prompts"] = part["positions"].sum(), len(clusters)
    for name in _SHARES:
        known = clusters.filter(pl.col(f"{name}_of") > 0)
        if len(known):
            share = clustered_share(known[f"{name}_found"].to_list(), known[f"{name}_of"].to_list())
            row |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
            if name == "top1":
                row["interval"] = share.method
    weights = part["positions"]
    row |= {
        "chance_top1": _mean(1 / part["vocabulary"], weights),
        "chance_top5": _mean((5 / part["vocabulary"]).clip(upper_bound=1.0), weights),
        "chance_unordered": _mean(_chances(part), weights),
        "rank_first": _ratio(part["rank_first"], part["ranked"]),
        "margin": part["margins"].explode(empty_as_null=False).median(),
        **{name: _ratio(part[name], part[f"with_{name}"]) for name in _BITS},
        # The lower of two middle values: a threshold may be infinite, a mean with it says nothing.
        "noise_threshold": part["thresholds"].explode(empty_as_null=False).quantile(0.5, "lower"),
    }
    return row


def _chances(part: pl.DataFrame) -> pl.Series:
    pairs = zip(part["prompt_ids"].to_list(), part["vocabulary"].to_list(), strict=True)
    return pl.Series([_chance(tuple(sorted(ids)), vocabulary) for ids, vocabulary in pairs])


# The same prompt is scored in every cell of the study.
_chance = lru_cache(maxsize=4096)(chance_unordered)


def _mean(values: pl.Series, weights: pl.Series) -> float:
    return float((values * weights).sum()) / float(weights.sum())


def _ratio(total: pl.Series, count: pl.Series) -> float | None:
    trials = float(count.sum())
    return float(total.sum()) / trials if trials else None
