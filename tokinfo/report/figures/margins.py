"""Figures on how much is there: margins beside the noise floor, and noise that is survived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullLocator

from tokinfo.report.figures import data, panels, style
from tokinfo.report.figures.data import Row
from tokinfo.report.figures.identifiable import NOTHING_SWEPT, empty, settings
from tokinfo.tables.identifiability import SETTING, best_cells, hidden_rows
from tokinfo.tables.intervals import clustered_median
from tokinfo.tables.recovery import weights_order

_MOST_SOURCES = 6
_MEASURES = ("margin over noise floor", "margin (metric's units)")


def margin_by_depth(recovery: Path, svg: Path, png: Path) -> None:
    """Draw the margin of the true token against the depth of the site, with the noise floor.

    Above: margin over the prompt's noise floor; below: both in the metric's own units. Points
    are medians over hidden positions, bars reach from the first to the third quartile.
    """
    title = "By how much does the true token win?"
    table = hidden_rows(recovery).filter(
        (pl.col("kind") == "sweep") & pl.col("margin").is_not_null() & ~pl.col("control")
    )
    if table.is_empty():
        empty(title, NOTHING_SWEPT, svg, png)
        return
    metric = str(table["metric"].mode().sort()[0])
    table = table.filter(metric=metric)
    rows = settings(table)
    sources = data.distinct(rows, "source")
    shown = sources[:_MOST_SOURCES]
    rows = [row for row in rows if row["source"] in shown]
    points = _by_site(table, rows)
    colours = style.family_colours(panels.families(rows))
    weights = style.marks(sorted(data.distinct(rows, "quantization"), key=weights_order))
    dropped = len(sources) - len(shown)
    figure = style.new_figure(6.6)
    style.heading(
        figure,
        title,
        f"Margin: how much further off ({metric}) the best WRONG token is than the true one, the "
        "other tokens known; median over hidden positions and masks, bars from quartile to "
        "quartile. Below the dotted line (twice the floor) two tokens cannot be told apart. "
        + (f"{dropped} more sources are in the tables. " if dropped else "")
        + panels.note_weights(rows),
    )
    grid = figure.subplots(2, len(shown), sharex=True, sharey="row", squeeze=False)
    for i, measure in enumerate(("ratio", "margin")):
        low, high = _limits(points, measure)
        edge = low * 1.4  # where medians of 0 and less are drawn
        for j, source in enumerate(shown):
            axes = grid[i][j]
            _log(axes, "y")
            axes.set_ylim(low, high)
            axes.set_xlim(-0.09, 1.09)
            axes.set_xticks([0, 0.5, 1], ["0", "50", "100"])
            axes.spines[["top", "right"]].set_visible(False)
            if i == 0:
                axes.set_title(source)
                axes.axhline(2, color=style.INK, linestyle=style.DOTTED, linewidth=1.4)
            else:
                axes.set_xlabel("depth (%)")
            if j == 0:
                axes.set_ylabel(_MEASURES[i])
            here = data.where(points, source=source)
            labels = data.distinct(here, "label")
            for label, shift in zip(labels, panels.offsets(len(labels), 0.1), strict=True):
                line = sorted(data.where(here, label=label), key=lambda row: row["share_of_depth"])
                colour, trained = colours[line[0]["family"]], line[0]["state"] == "trained"
                mark: dict[str, Any] = {
                    "color": colour,
                    "linestyle": "-" if trained else "--",
                    "linewidth": 1.6,
                    "marker": weights[line[0]["quantization"]],
                    "markersize": 6,
                    "markerfacecolor": colour if trained else "white",
                    "zorder": 6,
                }
                depth = [row["share_of_depth"] + shift for row in line]
                for at, row in zip(depth, line, strict=True):
                    ends = [max(row[f"{measure}_{end}"], edge) for end in ("low", "high")]
                    axes.plot([at, at], ends, color=colour, linewidth=1.2, zorder=4)
                axes.plot(depth, [max(row[measure], edge) for row in line], **mark)
                if measure == "margin":
                    axes.plot(
                        depth,
                        [max(2 * row["floor"], edge) for row in line],
                        color=colour,
                        linestyle=style.DOTTED,
                        linewidth=1.4,
                        marker="_",
                        markersize=9,
                    )
    key = [
        *style.family_key(panels.families(rows), ()),
        *(
            Line2D(
                [],
                [],
                color=style.OTHER_COLOUR,
                linestyle="-" if state == "trained" else "--",
                marker="o",
                markerfacecolor=style.OTHER_COLOUR if state == "trained" else "white",
                label=state,
            )
            for state in panels.states(rows)
        ),
        *(
            Line2D([], [], color=style.OTHER_COLOUR, linestyle="none", marker=mark, label=name)
            for name, mark in weights.items()
            if len(weights) > 1
        ),
        Line2D([], [], color=style.INK, linestyle=style.DOTTED, label="twice the noise floor"),
    ]
    if any(row["lost"] for row in points):
        key.append(Line2D([], [], linestyle="none", label="at the lower edge: no margin, or less"))
    style.legend(figure, key, columns=5)
    style.save(figure, svg, png, title)


def _by_site(table: pl.DataFrame, rows: list[Row]) -> list[Row]:
    """Return medians and quartiles of margin and margin over floor, per label and site."""
    names = pl.DataFrame(rows).select(*SETTING, "label")
    ratio = pl.col("margin") / pl.col("noise_floor")
    measures = {"margin": pl.col("margin"), "ratio": ratio.fill_nan(0.0)}
    ends = {"": 0.5, "_low": 0.25, "_high": 0.75}
    found = (
        table.join(names, on=list(SETTING))
        .group_by("label", "site", maintain_order=True)
        .agg(
            *(pl.col(name).first() for name in ("source", "family", "state", "quantization")),
            *(
                value.quantile(at, "lower").alias(f"{name}{end}")
                for name, value in measures.items()
                for end, at in ends.items()
            ),
            pl.col("block").first(),
            pl.col("depth").first(),
            floor=pl.col("noise_floor").median(),
        )
        .to_dicts()
    )
    for row in found:
        row["share_of_depth"] = row["block"] / row["depth"] if row["depth"] else 0.0
        row["lost"] = row["margin_low"] <= 0
    order = {row["label"]: number for number, row in enumerate(rows)}
    return sorted(found, key=lambda row: order[row["label"]])


def _limits(points: list[Row], measure: str) -> tuple[float, float]:
    """Return the ends of a log axis that holds every finite, positive end of a bar."""
    names = [measure, f"{measure}_low", f"{measure}_high"]
    values = [row[name] for row in points for name in names]
    values += [2 * row["floor"] for row in points] if measure == "margin" else [2.0]
    finite = [value for value in values if 0 < value < float("inf")] or [1.0]
    return min(finite) / 5, max(finite) * 3


# --- noise --------------------------------------------------------------------------------


def noise_threshold(recovery: Path, svg: Path, png: Path) -> None:
    """Draw the noise-to-signal ratio at which a hidden token is lost, by model, mask and place."""
    title = "How much noise does a hidden token survive?"
    table = hidden_rows(recovery).filter(
        pl.col("noise_threshold").is_not_null() & ~pl.col("control")
    )
    if table.is_empty():
        empty(title, "No noise sweep in this study (`noise:` of a sweep solver).", svg, png)
        return
    table = best_cells(table, pl.col("noise_threshold").clip(upper_bound=1e6))
    rows = data.at_few_places(settings(table))
    masks, unshown = data.few_masks(rows)
    rows = [row for row in rows if row["mask"] in masks]
    colours = style.family_colours(panels.families(rows))
    values = table["noise_threshold"].to_list()
    finite = [value for value in values if 0 < value < float("inf")] or [1.0]
    low, high = min(finite) / 4, max(finite) * 4
    drawn = panels.make(
        rows,
        data.places_of(rows),
        masks,
        title=title,
        subtitle="Gaussian noise on the visible activations, as a share of their root mean square, "
        "at which some other token explains them better than the true one (the other tokens "
        "known). Large marks: median over hidden positions; faint ones: single positions. Further "
        "right, more of the token is there. " + unshown + panels.note_weights(rows),
        column_title=lambda mask: f"mask {mask}\n{style.mask_words(mask)}",
        axis_label="noise-to-signal ratio",
        line_height=0.3,
    )
    zero, above = 0 in values, float("inf") in values
    for place, mask, axes in drawn.each():
        _log(axes, "x")
        axes.set_xlim(low / 1.5, high * 1.5)
        for label, at in drawn.lines.items():
            axes.axhspan(at - 0.48, at + 0.48, color="#f6f6f6", zorder=0, linewidth=0)
            here = data.where(rows, place=place, mask=mask, label=label)
            if not here:
                continue
            mine = table.filter(**{name: here[0][name] for name in SETTING})
            colour = colours[here[0]["family"]]
            _threshold(axes, at, here[0], mine, colour, (low, high))
    key = [
        *style.family_key(panels.families(rows), ()),
        *(
            Line2D(
                [],
                [],
                color=style.OTHER_COLOUR,
                linestyle="none",
                marker="o",
                markerfacecolor=style.OTHER_COLOUR if state == "trained" else "white",
                label=f"{'filled' if state == 'trained' else 'hollow'}: {state}",
            )
            for state in panels.states(rows)
        ),
        style.interval_key(),
    ]
    for mark, present, words in (
        ("<", zero, "not the only best one even without noise"),
        (">", above, "still the best at the largest noise tried"),
    ):
        if present:
            key.append(
                Line2D([], [], color=style.OTHER_COLOUR, linestyle="none", marker=mark, label=words)
            )
    style.legend(drawn.figure, key, columns=4)
    style.save(drawn.figure, svg, png, title)


def _threshold(
    axes: Axes,
    at: float,
    row: Row,
    mine: pl.DataFrame,
    colour: str,
    ends: tuple[float, float],
) -> None:
    """Draw one model's thresholds: single positions faintly, the median with its interval."""
    low, high = ends

    def place(value: float) -> tuple[float, str]:
        """Return where a threshold is drawn, and its mark: 0 and infinity at the edges."""
        return (low, "<") if value <= 0 else (high, ">") if value > high else (value, "o")

    by_prompt = mine.group_by("prompt_id", maintain_order=True).agg("noise_threshold")
    for value in mine["noise_threshold"].to_list():
        x, mark = place(value)
        axes.plot(
            x,
            at + 0.3,
            linestyle="none",
            marker=mark,
            markersize=3,
            color=colour,
            alpha=0.3,
            zorder=2,
        )
    median = clustered_median(by_prompt["noise_threshold"].to_list())
    if median.low is not None and median.high is not None:
        style.error_bar(axes, place(median.low)[0], place(median.high)[0], at)
    x, mark = place(median.value)
    axes.plot(
        x,
        at,
        linestyle="none",
        marker=mark,
        markersize=7,
        markerfacecolor=colour if row["state"] == "trained" else "white",
        markeredgecolor=colour,
        markeredgewidth=1.5,
        zorder=6,
    )


def _log(axes: Axes, along: str) -> None:
    """Make an axis logarithmic, its ticks powers of ten and few."""
    axis = axes.xaxis if along == "x" else axes.yaxis
    (axes.set_xscale if along == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(base=10, numticks=6))
    axis.set_major_formatter(LogFormatterMathtext())
    axis.set_minor_locator(NullLocator())
    axes.grid(True, axis="x" if along == "x" else "y", color=style.GRID, linewidth=0.8)
    axes.set_axisbelow(True)
