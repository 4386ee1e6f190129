"""Loss curves: how far each descent got, step by step."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from tokinfo.report.figures import data, panels, style
from tokinfo.report.figures.data import Row
from tokinfo.tables.recovery import OTHERS_KNOWN, display_order, scan

_MOST_SOLVERS = 3
_CELL = ("model", "source", "family", "state", "quantization", "depth", "solver", "site", "mask")


def loss_curves(recovery: Path, svg: Path, png: Path) -> None:
    """Draw the median loss, as a share of the first, against descent steps.

    One panel per solver and place, one line per model; medians over prompts and masks of the
    cells of the commonest metric.
    """
    title = "How far does descent get?"
    columns = (*_CELL, "metric", "prompt_id", "position", "curve_steps", "curve")
    table = (
        scan(recovery)
        .filter(~OTHERS_KNOWN & pl.col("curve").is_not_null() & (pl.col("position") == 0))
        .select(columns)
        .collect()
    )
    if table.is_empty():
        style.empty(title, "Nothing descends in this study.", svg, png)
        return
    metric = str(table["metric"].mode().sort()[0])
    table = table.filter(metric=metric)
    counts = table["solver"].value_counts().sort("count", "solver", descending=[True, False])
    solvers = counts["solver"].to_list()[:_MOST_SOLVERS]
    points = _points(table.filter(pl.col("solver").is_in(solvers)))
    places = sorted(points["place"].unique().to_list())[:2]
    colours = style.family_colours(points["family"].unique().to_list())
    figure = style.new_figure(1.6 + 2.9 * len(places))
    style.heading(
        figure,
        title,
        f"Distance of the visible activations ({metric}) to the target's as a share of that at the "
        "start; median over prompts and masks. A low end beside hidden tokens that were not found "
        "means that a wrong prompt explains what is visible.",
    )
    grid = figure.subplots(len(places), len(solvers), sharey=True, sharex="col", squeeze=False)
    for i, place in enumerate(places):
        for j, solver in enumerate(solvers):
            axes = grid[i][j]
            _panel(axes, points.filter(place=place, solver=solver).to_dicts(), colours)
            if i == 0:
                axes.set_title(solver)
            if i + 1 == len(places):
                axes.set_xlabel("steps")
            axes.set_ylabel(f"{place}: share of first loss" if j == 0 else "")
    key = [
        *style.family_key(panels.families(sorted(points.to_dicts(), key=display_order)), ()),
        style.entry("trained", linestyle="-", linewidth=1.8),
        style.entry("untrained", linestyle="--", linewidth=1.8),
    ]
    style.legend(figure, key, columns=6)
    style.save(figure, svg, png, title)


def _points(table: pl.DataFrame) -> pl.DataFrame:
    """Return the median loss, as a share of the first, by model, solver, place and step."""
    cell = [name for name in _CELL if name not in ("site", "mask")]
    return (
        table.with_columns(
            place=pl.struct("site", "depth").map_elements(
                lambda cell: data.place_of(cell["site"], cell["depth"]), return_dtype=pl.String
            ),
            first=pl.col("curve").list.first(),
        )
        .explode("curve_steps", "curve")
        .group_by(*cell, "place", "curve_steps")
        .agg(share=(pl.col("curve") / pl.col("first")).median())
        .sort("curve_steps")
    )


def _panel(axes: Axes, rows: list[Row], colours: dict[str, str]) -> None:
    """Draw the curves of one solver at one place, model by model."""
    for model in data.distinct(sorted(rows, key=display_order), "model"):
        line = data.where(rows, model=model)
        sns.lineplot(
            x=[row["curve_steps"] for row in line],
            y=[max(row["share"], 1e-9) for row in line],
            ax=axes,
            color=colours[line[0]["family"]],
            linestyle="-" if line[0]["state"] == "trained" else "--",
            linewidth=1.8,
        )
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color=style.GRID)
