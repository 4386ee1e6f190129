"""From the summary table to what a figure draws: labels, order, settings, averages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tokinfo.report.figures.style import mask_order
from tokinfo.study.known import NONE
from tokinfo.study.sites import Site
from tokinfo.study.solvers import SWEEPING
from tokinfo.tables.recovery import display_order

Row = dict[str, Any]

SETTING = ("solver", "metric", "parametrisation")
"""What a searcher may choose, as against what is being measured."""

_PLACES = {
    "block": "block",
    "attention": "attention of block",
    "mlp": "MLP of block",
    "kv": "keys and values of block",
}
_AVERAGED = ("top1", "top1_low", "top1_high", "chance_top1", "descent")


def load(summary: Path) -> list[Row]:
    """Read the summary as one dict per cell and kind of position, seeds averaged.

    Descents only. In sweeps around the true prompt the other tokens are known, so their shares are
    bounds and no results; joint searches are set against descent by the figures on identifiability.

    Adds `label` (the model, and any way in which it was run differently), `place` (the site in
    words that models of different depth share), `share_of_depth` and `n_seeds`. Ends of
    intervals are averaged like the shares: cautious, as seeds share their prompts. Ordered by
    family, depth, source, state and weights.
    """
    table = pl.read_parquet(summary).filter(~pl.col("kind").is_in(SWEEPING))
    # Measurements are averaged or dropped, never grouped by.
    measured = {name for name, dtype in table.schema.items() if dtype == pl.Float64}
    left_out = {"seed", "positions", "n_prompts", "interval"} | measured
    averaged = table.group_by(
        [name for name in table.columns if name not in left_out], maintain_order=True
    ).agg(pl.col(_AVERAGED).mean(), pl.col("positions").sum(), n_seeds=pl.col("seed").n_unique())
    rows = _labelled(averaged)
    for row in rows:
        row["share_of_depth"] = row["block"] / row["depth"] if row["depth"] else 0.0
    return rows


def settings(table: pl.DataFrame, by: Sequence[str]) -> list[Row]:
    """Return one dict per setting, in the order of the figures' models, for a line of a panel.

    ``table`` holds hidden rows, and ``by`` names the columns that make a setting; each dict has its
    facts, `label` and `place`.
    """
    facts = ["source", "family", "state", "quantization", "weights_note", "block", "depth"]
    return _labelled(
        table.group_by(by, maintain_order=True).agg(*(pl.col(name).first() for name in facts))
    )


def _labelled(table: pl.DataFrame) -> list[Row]:
    """Return the rows of a table with `label` and `place`, in the order of the figures' models."""
    rows, several = table.to_dicts(), table["prompts"].n_unique() > 1
    for row in rows:
        row["label"] = label_of(row, several)
        row["place"] = place_of(row["site"], row["depth"])
    return sorted(rows, key=lambda row: (display_order(row), len(row["label"]), row["label"]))


def label_of(row: Row, several_sets: bool) -> str:
    """Return the name of a model's line: the model, and any way in which it was run differently."""
    variants = [
        words
        for words, present in (
            ("no residual", not row["residual"]),
            ("acausal", not row["causal"]),
            ("padded", row["padding"] != "none"),
            (f"known {row['known']}", row["known"] != NONE),
            (row["prompts"], several_sets),
        )
        if present
    ]
    return str(row["model"]) + (f" ({', '.join(variants)})" if variants else "")


def place_of(site: str, depth: int) -> str:
    """Return a site in words that models of different depth share."""
    parsed = Site.parse(site)
    if parsed.place == "embedding":
        return "embedding"
    if parsed.place == "norm":
        return "final norm"
    if parsed.first not in (0, parsed.block):
        return f"keys and values of blocks {parsed.first} to {parsed.block}"
    words = _PLACES[parsed.place]
    # In a model of one block the first is the last; it is compared with other first blocks.
    if parsed.block == depth > 1:
        return words.replace("block", "last block")
    return f"{words} {parsed.block}"


def hidden(rows: list[Row]) -> list[Row]:
    """Return the rows about hidden positions."""
    return [row for row in rows if not row["visible"]]


def visible(rows: list[Row]) -> list[Row]:
    """Return the rows about visible positions."""
    return [row for row in rows if row["visible"]]


def distinct(rows: list[Row], column: str) -> list[Any]:
    """Return the values of a column, once each, in order of appearance."""
    return list(dict.fromkeys(row[column] for row in rows))


def masks_of(rows: list[Row]) -> list[str]:
    """Return the masks, those that hide less first."""
    return sorted(distinct(rows, "mask"), key=mask_order)


def few_masks(rows: list[Row], most: int = 4) -> tuple[list[str], str]:
    """Return at most ``most`` masks, from least to most hidden, and a sentence on the others."""
    masks = masks_of(rows)
    if len(masks) <= most:
        return masks, ""
    kept = [masks[round(i * (len(masks) - 1) / (most - 1))] for i in range(most)]
    return kept, f"{len(masks) - most} more masks are in the tables. "


def few_sources(rows: list[Row], most: int = 6) -> tuple[list[str], str]:
    """Return at most ``most`` sources, a column each, and a sentence on the others."""
    sources = distinct(rows, "source")
    dropped = len(sources[most:])
    return sources[:most], f"{dropped} more sources are in the tables. " if dropped else ""


def at_few_places(rows: list[Row], most: int = 2) -> list[Row]:
    """Return the rows at no more than ``most`` places, so that panels stay few.

    Where a study has more, each label keeps its shallowest and its deepest site, under those
    names.
    """
    if len(distinct(rows, "place")) <= most:
        return rows
    ends: dict[str, tuple[int, int]] = {}
    for row in rows:
        low, high = ends.get(row["label"], (row["block"], row["block"]))
        ends[row["label"]] = min(low, row["block"]), max(high, row["block"])
    kept = []
    for row in rows:
        low, high = ends[row["label"]]
        if row["block"] in (low, high):
            name = "shallowest site" if row["block"] == low else "deepest site"
            kept.append(row | {"place": name})
    return kept


def places_of(rows: list[Row]) -> list[str]:
    """Return the places, shallow ones first."""
    depth: dict[str, tuple[bool, float]] = {}
    for row in rows:
        last = "last" in row["place"] or "deepest" in row["place"]
        depth[row["place"]] = max(depth.get(row["place"], (False, 0)), (last, row["block"]))
    return sorted(depth, key=lambda place: (depth[place], place))


def where(rows: list[Row], **values: Any) -> list[Row]:
    """Return the rows with these values.

    >>> where([{"a": 1}, {"a": 2}], a=2)
    [{'a': 2}]
    """
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def best(rows: list[Row]) -> Row:
    """Return the row with the largest top-1 share (the first of equals)."""
    return max(rows, key=lambda row: row["top1"])


def setting(row: Row) -> tuple[Any, ...]:
    """Return what the searcher chose in a row."""
    return tuple(row[name] for name in SETTING)


def average(rows: list[Row]) -> Row:
    """Return one row with the shares and interval ends averaged over rows."""
    return rows[0] | {
        name: sum(row[name] for row in rows) / len(rows)
        for name in ("top1", "top1_low", "top1_high", "chance_top1")
    }


def by_search(rows: list[Row]) -> list[Row]:
    """Return the rows with a label for each solver, because searches differ in strength."""
    if len(distinct(rows, "solver")) < 2:
        return rows
    return [row | {"label": f"{row['label']}, {row['solver']}"} for row in rows]


def matched(rows: list[Row], axis: str) -> list[Row]:
    """Return the rows that can be compared along an axis, such as `solver`.

    For each label the largest set of values that were measured on the same cells, and those
    cells only: a solver that ran on the easy cells alone must not look better. A label
    with nothing to compare keeps all its rows.
    """
    same = ("label", "site", "mask", "visible", *(name for name in SETTING if name != axis))
    groups: dict[tuple[Any, ...], set[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in same), set()).add(row[axis])
    compared: dict[str, set[Any]] = {}
    for label in distinct(rows, "label"):
        sets = [frozenset(values) for key, values in groups.items() if key[0] == label]
        largest = max(sets, key=lambda values: (len(values), sets.count(values), sorted(values)))
        compared[label] = set(largest) if len(largest) > 1 else set()
    return [
        row
        for row in rows
        if (wanted := compared[row["label"]]) <= groups[tuple(row[name] for name in same)]
        and (row[axis] in wanted or not wanted)
    ]
