"""The flow map: which visible positions carry a hidden token, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from tokinfo.report.figures import panels, style
from tokinfo.report.tokens import show
from tokinfo.tables.recovery import OTHERS_KNOWN, OWN_TARGET, display_order, scan

TITLE = "Which visible positions carry a hidden token?"
SUBTITLE = (
    "For a token (row) and a visible position (column): the smallest change of the activations "
    "there over all other tokens in its place, as a share of their norm, the rest of the prompt as "
    "it is. "
    "Dark: any other token changes much there. A cross: no more than the noise floor, so that some "
    "other token cannot be told apart there. Blank: no dependence."
)
_MODELS, _SITES = 4, 4
_PROMPT = (
    *("model", "mask", "prompts", "prompt_id", "residual", "causal", "padding", "known", "metric"),
    *("solver", "parametrisation", "seed"),
)
"""What rows of one prompt share at all sites."""


@dataclass(frozen=True)
class Map:
    """What one sweep says of one prompt.

    Attributes:
        site: where activations were read.
        tokens: of the prompt, by position, as readable text.
        rows: the positions that were swept.
        columns: the visible positions.
        shares: float64 [row, column], the smallest change as a share of the norm there; not a
            number where activations do not depend on the token.
        floors: float64 [column], the noise floors as shares of the same norms.
    """

    site: str
    tokens: tuple[str, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    shares: np.ndarray[Any, np.dtype[np.float64]]
    floors: np.ndarray[Any, np.dtype[np.float64]]


def of_rows(rows: Sequence[Mapping[str, Any]]) -> Map:
    """Return the map of one cell's rows of one prompt, in the order of their positions."""
    swept = [row for row in rows if row["carried"] is not None]
    columns = tuple(row["position"] for row in rows if row["visible"])
    none = [np.full(len(columns), math.nan)]
    shares = [[math.nan if v is None else v for v in row["carried"]] for row in swept]
    return Map(
        site=rows[0]["site"],
        tokens=tuple(show(row["true_token"]) for row in rows),
        rows=tuple(row["position"] for row in swept),
        columns=columns,
        shares=np.array(shares or none, dtype=np.float64),
        floors=np.array(swept[0]["carried_floor"] if swept else none[0], dtype=np.float64),
    )


def flow_map(recovery: Path, svg: Path, png: Path) -> None:
    """Draw, for each model, its first sites of the prompt that was swept at most positions."""
    table = scan(recovery).filter(OTHERS_KNOWN & OWN_TARGET)
    swept = table.filter(pl.col("carried").is_not_null())
    counts = (
        swept.group_by(*_PROMPT, "family", "state", "source", "quantization", "depth")
        .agg(rows=pl.len() / pl.col("site").n_unique(), sites=pl.col("site").n_unique())
        .sort(
            "rows", "sites", "mask", "prompts", "prompt_id", descending=[True, True, *[False] * 3]
        )
        .unique("model", keep="first", maintain_order=True)
        .collect()
    )
    if counts.is_empty():
        style.empty(TITLE, panels.NOTHING_SWEPT, svg, png)
        return
    chosen = sorted(counts.to_dicts(), key=display_order)
    lines: dict[str, list[Map]] = {}
    for row in chosen[:_MODELS]:
        same = {name: row[name] for name in _PROMPT}
        found = table.filter(**same).sort("block", "site", "position").collect()
        cells = found.partition_by("site", maintain_order=True)
        some = [cell.to_dicts() for cell in cells if cell["carried"].is_not_null().any()]
        lines[f"{row['model']}, mask {row['mask']}"] = list(map(of_rows, _spread(some)))
    more = len(chosen) - _MODELS
    note = f" Not drawn: {more} more models." if more > 0 else ""
    style.save(draw(lines, note), svg, png, TITLE)


def _spread(cells: list[Any]) -> list[Any]:
    """Return at most so many cells as are drawn, the first and the last among them."""
    if len(cells) <= _SITES:
        return cells
    return [cells[round(i * (len(cells) - 1) / (_SITES - 1))] for i in range(_SITES)]


def draw(lines: Mapping[str, Sequence[Map]], note: str = "") -> Figure:
    """Return the figure of some models' maps, a model a line."""
    heights = [
        max(0.55 + 0.26 * max(len(one.rows) for one in line), 1.2) for line in lines.values()
    ]
    figure = style.new_figure(2.0 + sum(heights) + 0.75 * len(lines))
    style.heading(figure, TITLE, SUBTITLE + note)
    columns = max(map(len, lines.values()))
    low, high = _limits([one for line in lines.values() for one in line])
    norm = LogNorm(low, high)
    grid = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    image = None
    for (name, line), axes_of in zip(lines.items(), grid, strict=True):
        for place, axes in enumerate(axes_of):
            if place >= len(line):
                axes.set_visible(False)
                continue
            one = line[place]
            image = axes.imshow(
                np.ma.masked_invalid(np.maximum(one.shares, low)),
                norm=norm,
                cmap="Blues",
                aspect="auto",
            )
            _crosses(axes, one)
            axes.set_title(f"{name}\n{one.site}" if place == 0 else f"\n{one.site}")
            _ticks(axes, one, first=place == 0)
    if image is not None:
        bar = figure.colorbar(image, ax=grid, location="bottom", aspect=60, shrink=0.6, pad=0.02)
        bar.set_label("smallest change, as a share of the activations' norm")
    return figure


def _limits(maps: Iterable[Map]) -> tuple[float, float]:
    values = np.concatenate([one.shares[np.isfinite(one.shares)] for one in maps] or [np.ones(1)])
    above = values[values > 0]
    high = float(above.max()) if len(above) else 1.0
    return max(min(float(above.min()) if len(above) else 1e-3, high / 10), 1e-6), high


def _crosses(axes: Any, one: Map) -> None:
    with np.errstate(invalid="ignore"):
        below = one.shares <= one.floors
    for row, column in np.argwhere(below):
        axes.plot(column, row, marker="x", color=style.INK, markersize=5)


def _ticks(axes: Any, one: Map, *, first: bool) -> None:
    names = [f"{one.tokens[place]}" for place in one.columns]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    rows = [f"{one.tokens[place]} {place}" for place in one.rows]
    axes.set_yticks(range(len(rows)), rows if first else [""] * len(rows))
    axes.tick_params(length=0, labelsize=8.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
