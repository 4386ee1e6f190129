"""Figures on how much is there: margins beside the noise floor, and noise that loses tokens."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from tokinfo.report.figures import data, panels, style
from tokinfo.report.figures.data import Row
from tokinfo.tables.identifiability import SETTING, best_cells, hidden_rows
from tokinfo.tables.intervals import clustered_median

_MEASURES = {"ratio": "margin over noise floor", "margin": "margin (metric's units)"}


def margin_by_depth(recovery: Path, svg: Path, png: Path) -> None:
    """Draw the margin of the true token against the depth of the site, with the noise floor.

    Above: margin over the prompt's noise floor; below: both in the metric's units. Points
    are medians over hidden positions, bars reach from the first to the third quartile.
    """
    title = "By how much does the true token win?"
    table = hidden_rows(recovery).filter(
        (pl.col("kind") == "sweep") & pl.col("margin").is_not_null() & ~pl.col("control")
    )
    if table.is_empty():
        style.empty(title, panels.NOTHING_SWEPT, svg, png)
        return
    metric = str(table["metric"].mode().sort()[0])
    table = table.filter(metric=metric)
    rows = data.settings(table, SETTING)
    sources, dropped = data.few_sources(rows)
    rows = [row for row in rows if row["source"] in sources]
    points = _by_site(table, rows)
    colours = style.family_colours(panels.families(rows))
    weights = panels.weights_marks(rows)
    figure = style.new_figure(6.6)
    style.heading(
        figure,
        title,
        f"Margin: how much further off ({metric}) the best WRONG token is than the true one, the "
        "other tokens known; median over hidden positions and masks, bars from quartile to "
        "quartile. Below the dotted line (twice the floor) two tokens cannot be distinguished. "
        + dropped
        + panels.note_weights(rows),
    )
    for measure, source, axes in panels.depth_axes(figure, sources, _MEASURES, sharey="row"):
        low, high = _limits(points, measure)
        style.log_axis(axes, "y")
        axes.set_ylim(low, high)
        if measure == "ratio":
            axes.axhline(2, color=style.INK, linestyle=style.DOTTED, linewidth=1.4)
        here = data.where(points, source=source)
        for depth, line, look in panels.depth_lines(here, colours, weights):
            _margins(axes, measure, depth, line, look, least=low * 1.4)
    key = [
        *style.family_key(panels.families(rows), ()),
        *panels.depth_key(rows, weights),
        style.entry("twice the noise floor", color=style.INK, linestyle=style.DOTTED),
    ]
    if any(row["lost"] for row in points):
        key.append(style.entry("at the lower edge: no margin, or less"))
    style.legend(figure, key, columns=5)
    style.save(figure, svg, png, title)


def _margins(
    axes: Axes, measure: str, depth: list[float], line: list[Row], look: Row, *, least: float
) -> None:
    """Draw one model's margins; medians and ends below ``least`` are drawn at it."""
    for at, row in zip(depth, line, strict=True):
        ends = [max(row[f"{measure}_{end}"], least) for end in ("low", "high")]
        axes.plot([at, at], ends, color=look["color"], linewidth=1.2, zorder=4)
    axes.plot(depth, [max(row[measure], least) for row in line], **look)
    if measure == "margin":
        floors = [max(2 * row["floor"], least) for row in line]
        floor: Row = {"linestyle": style.DOTTED, "linewidth": 1.4, "marker": "_", "markersize": 9}
        axes.plot(depth, floors, color=look["color"], **floor)


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
    title = "At how much noise is a hidden token lost?"
    table = hidden_rows(recovery).filter(
        pl.col("noise_threshold").is_not_null() & ~pl.col("control")
    )
    if table.is_empty():
        reason = "No noise sweep in this study (`noise:` of a sweep solver)."
        style.empty(title, reason, svg, png)
        return
    table = best_cells(table, pl.col("noise_threshold").clip(upper_bound=1e6))
    rows = data.at_few_places(data.settings(table, SETTING))
    masks, unshown = data.few_masks(rows)
    rows = [row for row in rows if row["mask"] in masks]
    colours = style.family_colours(panels.families(rows))
    values = table["noise_threshold"].to_list()
    finite = [value for value in values if 0 < value < float("inf")] or [1.0]
    low, high = min(finite) / 4, max(finite) * 4
    steps = " or ".join(f"x{step:.3g}" for step in table["noise_step"].unique().drop_nulls().sort())
    drawn = panels.make(
        rows,
        data.places_of(rows),
        masks,
        title=title,
        subtitle="Gaussian noise on the visible activations, as a share of their root mean square "
        "at each position, at which some other token explains them better than the true one (the "
        f"other tokens known); ratios grow by {steps}. Large marks: median over hidden positions; "
        "faint ones: single positions. Further right, more of the token is there. "
        + unshown
        + panels.note_weights(rows),
        column_title=style.mask_title,
        axis_label="noise-to-signal ratio",
        line_height=0.3,
    )
    for place, mask, axes in drawn.each():
        style.log_axis(axes, "x")
        axes.set_xlim(low / 1.5, high * 1.5)
        for label, at in drawn.lines.items():
            panels.stripe(axes, at)
            for row in data.where(rows, place=place, mask=mask, label=label)[:1]:
                mine = table.filter(**{name: row[name] for name in SETTING})
                _threshold(axes, at, row, mine, colours[row["family"]], (low, high))
    style.legend(drawn.figure, _noise_key(rows, values), columns=4)
    style.save(drawn.figure, svg, png, title)


def _noise_key(rows: list[Row], values: list[float]) -> list[Artist]:
    key = [
        *style.family_key(panels.families(rows), ()),
        *style.states_key(panels.states(rows)),
        style.interval_key(),
    ]
    if 0 in values:
        key.append(style.entry("not the only best one even without noise", marker="<"))
    if float("inf") in values:
        key.append(style.entry("still the best at the largest noise tried", marker=">"))
    return key


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

    by_prompt = mine.group_by("prompt", maintain_order=True).agg("noise_threshold")
    for value in mine["noise_threshold"].to_list():
        x, mark = place(value)
        faint: Row = {"markersize": 3, "color": colour, "alpha": 0.3, "zorder": 2}
        axes.plot(x, at + 0.3, linestyle="none", marker=mark, **faint)
    median = clustered_median(by_prompt["noise_threshold"].to_list())
    if median.low is not None and median.high is not None:
        style.error_bar(axes, place(median.low)[0], place(median.high)[0], at)
    x, mark = place(median.value)
    axes.plot(x, at, **panels.mark(row, colour, mark, 7), zorder=6)
