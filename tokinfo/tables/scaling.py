"""Scaling: hidden tokens found, and identifiable, against one property of model or task.

Width, depth, the number of hidden tokens, or the share of a training run. One setting of a study
is taken for each, the one in which it varies most; nothing is averaged over settings.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tokinfo.io.atomic import new_file
from tokinfo.io.errors import InvalidError
from tokinfo.study.masks import Mask
from tokinfo.tables.intervals import clustered_share
from tokinfo.tables.recovery import OTHERS_KNOWN, OWN_TARGET, SOUGHT

Row = dict[str, Any]

FEWEST = 3
"""Values along an axis that make a line: two points show no course."""

_MODEL = ("family", "state", "quantization")
_TASK = ("prompts", "metric", "parametrisation", "residual", "causal", "padding", "known")
AXES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "width": ("width", (*_MODEL, "training_share"), ("site", "mask", *_TASK)),
    "depth": ("block", ("model", *_MODEL), ("place", "mask", *_TASK)),
    "hidden": ("hidden", ("model", *_MODEL), ("site", *_TASK)),
    "training": ("training_share", ("source", *_MODEL), ("site", "mask", *_TASK)),
}
"""For each axis: the column that varies, what is one line's model, and what is one setting."""

COLUMNS = (
    *("axis", "at", "panel", "family", "state", "search", "kind", "share", "low", "high"),
    *(
        "method",
        "visible_share",
        "prompts",
        "tokens",
        "vocabulary",
        "training_tokens",
        "held_out_loss",
    ),
    *("site", "mask", "metric", "prompt_set"),
)
"""Columns of `write`: where on the axis, which line, its share with interval, and the setting."""


def points(tables: Path | Sequence[Path], axis: str) -> list[Row]:
    """Return the points of one axis, by line and place on it.

    A point is a share of hidden tokens: for a search (``kind`` `chapter`, `adam`, `joint`) those
    it found, for a `sweep` around the true prompt those identifiable. `visible_share` is what the
    same search found of visible tokens (a sweep searches none): where that is low too, the search
    failed as a whole. The interval is over prompts; other seeds and models of one line and place
    add to their prompts' own counts: a text is one cluster, however often it was run.

    Args:
        tables: the long table, or files of cells.
        axis: one of `AXES`.

    Returns:
        Rows with `COLUMNS`; none where nothing takes `FEWEST` values along the axis.

    Raises:
        ValueError: no such axis.
    """
    if axis not in AXES:
        raise InvalidError(f"axis {axis!r}: allowed: {', '.join(AXES)}")
    column, panel, setting = AXES[axis]
    prompts = _prompts(tables)
    prompts = prompts.filter(pl.col(column).is_not_null())
    if axis == "depth":
        prompts = prompts.filter(pl.col("block") > 0)
    # Lines that are long enough, and of the settings the one with most points on such lines.
    found = prompts.group_by(*setting, *panel).agg(values=pl.col(column).n_unique())
    settings = (
        found.filter(pl.col("values") >= FEWEST)
        .group_by(setting)
        .agg(points=pl.col("values").sum())
        .sort("points", *setting, descending=[True] + [False] * len(setting), nulls_last=True)
    )
    if settings.is_empty():
        return []
    chosen = prompts.join(settings.head(1), on=setting, nulls_equal=True)
    long = found.filter(pl.col("values") >= FEWEST).drop("values")
    chosen = chosen.join(long, on=[*setting, *panel], nulls_equal=True)
    groups = chosen.sort(*panel, column, "kind", "solver", nulls_last=True).partition_by(
        [*panel, column, "kind", "solver"], maintain_order=True
    )
    return [_point(group, axis, column) for group in groups]


def write(rows: Sequence[Row], out: Path) -> None:
    """Write points as CSV; only a header where there are none."""
    with new_file(out) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _prompts(tables: Path | Sequence[Path]) -> pl.DataFrame:
    """Return one row per cell and prompt: hidden tokens, and how many are found or identifiable."""
    sweep = OTHERS_KNOWN & pl.col("identified").is_not_null()
    well = pl.when(OTHERS_KNOWN).then(pl.col("identified") == "identifiable")
    cell = (
        *("model", "source", *_MODEL, "width", "block", "site", "mask", *_TASK),
        *("solver", "kind", "seed", "prompt_id", "prompt", "vocabulary"),
        *("training_share", "training_tokens", "held_out_loss"),
    )
    found = (
        pl.scan_parquet(tables if isinstance(tables, Path) else list(tables))
        .filter(OWN_TARGET & SOUGHT)
        .with_columns(
            counted=~pl.col("visible") & (~OTHERS_KNOWN | sweep),
            visible_tokens=pl.col("visible") & ~OTHERS_KNOWN,
        )
        .group_by(cell)
        .agg(
            trials=pl.col("counted").sum(),
            successes=(pl.col("counted") & well.otherwise(pl.col("correct"))).sum(),
            visible_tokens=pl.col("visible_tokens").sum(),
            visible_found=(pl.col("visible_tokens") & pl.col("correct")).sum(),
        )
        .filter(pl.col("trials") > 0)
        # Blocks read at once (`kv.1-4`) lie on one line with others from the same block on.
        .with_columns(place=pl.col("site").str.extract(r"^([a-z]+(?:\.\d+-)?)"))
        .collect(engine="streaming")
    )
    leading = {text: Mask(text).leading for text in found["mask"].unique().to_list()}
    return found.with_columns(
        hidden=pl.col("mask").replace_strict(leading, return_dtype=pl.Int64, default=None)
    )


def _point(group: pl.DataFrame, axis: str, column: str) -> Row:
    group = group.sort("model", "seed", "prompt_id")
    clusters = group.group_by("prompt", maintain_order=True).agg(
        pl.col("successes", "trials").sum()
    )
    share = clustered_share(clusters["successes"].to_list(), clusters["trials"].to_list())
    first = group.row(0, named=True)
    tokens, found = (int(group[name].sum()) for name in ("visible_tokens", "visible_found"))
    return {
        "axis": axis,
        "at": first[column],
        "panel": _panel(first, axis),
        "family": first["family"],
        "state": first["state"],
        "search": first["solver"],
        "kind": first["kind"],
        "share": share.value,
        "low": share.low,
        "high": share.high,
        "method": share.method,
        "visible_share": found / tokens if tokens else None,
        "prompts": len(clusters),
        "tokens": int(group["trials"].sum()),
        "vocabulary": first["vocabulary"],
        "training_tokens": first["training_tokens"],
        "held_out_loss": first["held_out_loss"],
        "site": _line(first["place"]) if axis == "depth" else first["site"],
        "mask": "" if axis == "hidden" else first["mask"],
        "metric": first["metric"],
        "prompt_set": first["prompts"],
    }


def _line(place: str) -> str:
    return place + ("*" if place.endswith("-") else ".*")


def _panel(row: Row, axis: str) -> str:
    """Return what the points of one line have in common, in words."""
    name = {"width": row["family"], "training": row["source"]}.get(axis, row["model"])
    exact = "" if row["quantization"] == "float32" else f", {row['quantization']}"
    if axis == "training":
        return f"{name}{exact}"
    share = row["training_share"]
    along = f" at {100 * share:g} %" if axis == "width" and share not in (None, 1.0) else ""
    return f"{name} ({row['state']}{along}{exact})"
