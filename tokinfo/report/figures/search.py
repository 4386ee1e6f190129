"""Figures on the search itself: metrics, solvers, and how far descent got."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import LogFormatterMathtext

from tokinfo.report.figures import data, panels, style
from tokinfo.report.figures.data import Row

_LEAST_RATIO = 1e-9
"""Ratios below this (a loss of 0 among them) are drawn at it; log axes have no 0."""


def by_metric(summary: Path, svg: Path, png: Path) -> None:
    """Draw hidden and visible shares per model and metric, averaged over matched cells."""
    _compare(
        "metric",
        summary,
        svg,
        png,
        title="Does the distance that is minimised matter?",
        subtitle="Share of tokens found by each solver, averaged over the same sites and masks for "
        "each metric. ",
    )


def by_solver(summary: Path, svg: Path, png: Path) -> None:
    """Draw hidden and visible shares per model and solver, averaged over matched cells."""
    _compare(
        "solver",
        summary,
        svg,
        png,
        title="How much depends on how one searches?",
        subtitle="Share of tokens found, averaged over the same metrics, sites and masks for each "
        "solver. A solver that misses VISIBLE tokens has failed; its hidden share is a lower "
        "bound at best. ",
    )


def _compare(axis: str, summary: Path, svg: Path, png: Path, *, title: str, subtitle: str) -> None:
    rows = data.load(summary)
    if not rows:
        style.empty(title, "No cells in this study.", svg, png)
        return
    rows = data.matched(rows if axis == "solver" else data.by_search(rows), axis)
    colours = style.family_colours(panels.families(rows))
    levels = sorted(data.distinct(rows, axis))
    marker = style.marks(levels)
    kinds = ["hidden tokens", "visible tokens"]
    drawn = panels.make(
        rows,
        [""],
        kinds,
        title=title,
        subtitle=subtitle + panels.note_weights(rows),
        column_title=str,
        axis_label="found (%)",
        line_height=0.2 + 0.13 * min(len(levels), 3),
    )
    for _, kind, axes in drawn.each():
        style.percent_axis(axes, room=0.04)
        here = data.where(rows, visible=kind == kinds[1])
        drawn.chance(axes, here)
        if not here:
            reason = (
                panels.NOTHING_HIDDEN if kind == kinds[0] else "No visible positions are scored."
            )
            axes.set_title(f"{kind}: {reason}", fontweight="normal", fontsize=9)
        for label, at in drawn.lines.items():
            panels.stripe(axes, at)
            measured = [level for level in levels if data.where(rows, label=label, **{axis: level})]
            for level, shift in zip(measured, panels.offsets(len(measured)), strict=True):
                cells = data.where(here, label=label, **{axis: level})
                if cells:
                    row = data.average(cells)
                    panels.point(axes, row, at + shift, colours[row["family"]], marker[level], 6)
    key = [
        *style.marks_key(marker),
        *style.states_key(panels.states(rows), markersize=7),
        *style.family_key(panels.families(rows), ()),
        style.interval_key(),
        style.chance_key([row["chance_top1"] for row in rows]),
    ]
    style.legend(drawn.figure, key)
    style.save(drawn.figure, svg, png, title)


def descent_loss(summary: Path, svg: Path, png: Path) -> None:
    """Draw how far each cell's loss fell: final over first, one mark per cell."""
    title = "Did the search get anywhere?"
    rows = _one_per_cell(data.load(summary))
    rows = [row for row in rows if row["descent"] is not None]
    if not rows:
        style.empty(title, "No cell of this study reports a loss.", svg, png)
        return
    colours = style.family_colours(panels.families(rows))
    solvers = sorted(data.distinct(rows, "solver"))
    metrics = sorted(data.distinct(rows, "metric"))
    marker = style.marks(metrics)
    shifts = dict(zip(metrics, panels.offsets(len(metrics), 0.4), strict=True))
    drawn = panels.make(
        rows,
        [""],
        solvers,
        title=title,
        subtitle="Distance between found and true activations at the end of the search, as a share "
        "of the distance at its start; one mark per cell (median over its prompts), further left "
        "is better. A search near 1 has failed. One far left with wrong hidden tokens has "
        "found another explanation of what is visible.",
        column_title=lambda name: f"solver: {name}",
        axis_label="final loss / first loss",
        line_height=0.26 + 0.04 * len(metrics),
    )
    for _, solver, axes in drawn.each():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(LogFormatterMathtext())
        axes.grid(True, axis="x", color=style.GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.axvline(1, color=style.INK, linewidth=1, linestyle=style.DOTTED)
        for label, at in drawn.lines.items():
            panels.stripe(axes, at)
            for row in data.where(rows, label=label, solver=solver):
                shape, colour = marker[row["metric"]], colours[row["family"]]
                axes.plot(
                    max(row["descent"], _LEAST_RATIO),
                    at + shifts[row["metric"]],
                    **panels.mark(row, colour, shape, 5.5, edge=1.2),
                    alpha=0.85,
                    zorder=4,
                )
    key = [
        *style.marks_key(marker),
        *style.states_key(panels.states(rows), markersize=7),
        *style.family_key(panels.families(rows), ()),
        style.entry("no better than the start", color=style.INK, linestyle=style.DOTTED),
    ]
    if any(row["descent"] <= _LEAST_RATIO for row in rows):
        key.append(style.entry(f"{_LEAST_RATIO:g}: that or less"))
    style.legend(drawn.figure, key)
    style.save(drawn.figure, svg, png, title)


def _one_per_cell(rows: list[Row]) -> list[Row]:
    """Return one row per cell: hidden and visible rows carry the same loss."""
    same = ("label", "site", "mask", *data.SETTING)
    return list({tuple(row[name] for name in same): row for row in rows}.values())
