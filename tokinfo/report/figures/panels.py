"""The layout that most figures share: one line per model, a panel per mask and place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokinfo.report.figures import data, style
from tokinfo.report.figures.data import Row
from tokinfo.tables.recovery import weights_order

NOTHING_HIDDEN = "No hidden positions in this study: every mask leaves all tokens visible."
NOTHING_SWEPT = "No sweep in this study: nothing says what is identifiable."
_GAP = 0.45
"""Extra room between the models of two sources, in lines."""


@dataclass
class Panels:
    """A figure of panels that share their lines.

    Attributes:
        figure: the figure.
        axes: the panel of each (place, column).
        lines: the height of each label's line; the first is on top.
        rows: what is drawn.
    """

    figure: Figure
    axes: dict[tuple[str, str], Axes]
    lines: dict[str, float]
    rows: list[Row] = field(default_factory=list)

    def each(self) -> Iterator[tuple[str, str, Axes]]:
        """Iterate over place, column and panel."""
        for (place, column), axes in self.axes.items():
            yield place, column, axes

    def chance(self, axes: Axes, rows: Sequence[Row], column: str = "chance_top1") -> None:
        """Draw what guessing would give, line by line (models differ in vocabulary)."""
        for row in {row["label"]: row for row in rows}.values():
            at = self.lines[row["label"]]
            axes.plot(
                [row[column]] * 2,
                [at - 0.5, at + 0.5],
                color=style.INK,
                linestyle=style.DOTTED,
                linewidth=1.2,
                zorder=5,
            )


def make(
    rows: list[Row],
    places: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    subtitle: str,
    column_title: Callable[[str], str],
    axis_label: str,
    line_height: float = 0.27,
) -> Panels:
    """Lay out one panel per place and column, with a line for each label of ``rows``.

    The lines of one source stand together. The caller draws; the axes are still empty.
    """
    lines: dict[str, float] = {}
    at, before = 0.0, None
    for row in rows:
        if row["label"] in lines:
            continue
        at += _GAP if before not in (None, row["source"]) else 0
        lines[row["label"]] = at
        at, before = at + 1, row["source"]
    height = 2.3 + len(places) * (0.65 + line_height * at)
    figure = style.new_figure(height)
    style.heading(figure, title, subtitle)
    grid = figure.subplots(len(places), len(columns), sharex=True, sharey=True, squeeze=False)
    axes = {
        (place, column): grid[i][j]
        for i, place in enumerate(places)
        for j, column in enumerate(columns)
    }
    for (place, column), panel in axes.items():
        panel.set_ylim(at - 0.4, -0.6)
        panel.set_yticks(list(lines.values()), list(lines))
        panel.tick_params(axis="y", length=0)
        panel.spines[["top", "right", "left"]].set_visible(False)
        if place == places[0]:
            panel.set_title(column_title(column))
        if place == places[-1]:
            panel.set_xlabel(axis_label)
        if column == columns[0] and len(places) > 1:
            panel.set_ylabel(place, fontweight="bold", fontsize=10.5, labelpad=8)
    return Panels(figure, axes, lines, rows)


def bar(axes: Axes, row: Row, at: float, colour: str, height: float = 0.68) -> None:
    """Draw a share as a bar (filled: trained, hatched: untrained) with its interval."""
    trained = row["state"] == "trained"
    axes.barh(
        at,
        row["top1"],
        height,
        facecolor=colour if trained else "white",
        edgecolor=colour,
        hatch=None if trained else "////",
        linewidth=1,
        zorder=2,
    )
    style.error_bar(axes, row["top1_low"], row["top1_high"], at)


def point(axes: Axes, row: Row, at: float, colour: str, marker: str, size: float = 6.5) -> None:
    """Draw a share as a point (filled: trained, hollow: untrained) with its interval."""
    style.error_bar(axes, row["top1_low"], row["top1_high"], at)
    axes.plot(row["top1"], at, **mark(row, colour, marker, size), zorder=6, clip_on=False)


def mark(row: Row, colour: str, marker: str, size: float, edge: float = 1.5) -> dict[str, Any]:
    """Return how a model's mark looks: filled where it is trained, hollow where not."""
    return {
        "linestyle": "none",
        "marker": marker,
        "markersize": size,
        "markerfacecolor": colour if row["state"] == "trained" else "white",
        "markeredgecolor": colour,
        "markeredgewidth": edge,
    }


def stripe(axes: Axes, at: float) -> None:
    """Draw the ground of one line, which sets it off from those above and below."""
    axes.axhspan(at - 0.48, at + 0.48, color="#f6f6f6", zorder=0, linewidth=0)


def absent(axes: Axes, at: float) -> None:
    """Say on a line that the study has nothing there."""
    axes.text(0.0, at, " not in the study", va="center", fontsize=8, color=style.FAINT)


# --- along the depth ----------------------------------------------------------------------


def depth_axes(
    figure: Figure,
    sources: Sequence[str],
    rows: Mapping[str, str],
    *,
    sharey: bool | Literal["row"],
) -> Iterator[tuple[str, str, Axes]]:
    """Lay out one panel per row (a name, and the label of its axis) and source, by depth.

    Iterates over the row's name, the source, and the panel, still empty.
    """
    grid = figure.subplots(len(rows), len(sources), sharex=True, sharey=sharey, squeeze=False)
    for i, (name, label) in enumerate(rows.items()):
        for j, source in enumerate(sources):
            axes = grid[i][j]
            axes.set_xlim(-0.09, 1.09)
            axes.set_xticks([0, 0.5, 1], ["0", "50", "100"])
            axes.spines[["top", "right"]].set_visible(False)
            if i == 0:
                axes.set_title(source)
            if j == 0:
                axes.set_ylabel(label)
            if i == len(rows) - 1:
                axes.set_xlabel("depth (%)")
            yield name, source, axes


def depth_lines(
    rows: list[Row], colours: Mapping[str, str], weights: Mapping[str, str]
) -> Iterator[tuple[list[float], list[Row], dict[str, Any]]]:
    """Iterate over the models of a panel: their depths, moved apart; points; look of the line."""
    labels = data.distinct(rows, "label")
    for label, shift in zip(labels, offsets(len(labels), 0.1), strict=True):
        line = sorted(data.where(rows, label=label), key=lambda row: row["share_of_depth"])
        colour, trained = colours[line[0]["family"]], line[0]["state"] == "trained"
        look = {
            "color": colour,
            "linestyle": "-" if trained else "--",
            "linewidth": 1.6,
            "marker": weights[line[0]["quantization"]],
            "markersize": 6,
            "markerfacecolor": colour if trained else "white",
            "zorder": 6,
        }
        yield [row["share_of_depth"] + shift for row in line], line, look


def depth_key(rows: list[Row], weights: Mapping[str, str]) -> list[Artist]:
    """Return legend entries for the lines of `depth_lines`: states and, where several, weights."""
    key: list[Artist] = []
    for state in states(rows):
        dashes = "-" if state == "trained" else "--"
        key += style.states_key([state], "{state}", linestyle=dashes)
    return key + (style.marks_key(weights) if len(weights) > 1 else [])


def offsets(count: int, spread: float = 0.5) -> list[float]:
    """Return shifts that set ``count`` marks apart on one line.

    >>> offsets(1), offsets(2)
    ([0.0], [-0.25, 0.25])
    """
    if count < 2:
        return [0.0] * count
    return [spread * (i / (count - 1) - 0.5) for i in range(count)]


def note_weights(rows: Sequence[Row]) -> str:
    """Return a sentence on weights that are not what their name suggests, or nothing."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["weights_note"] and row["source"] not in notes.get(row["weights_note"], []):
            notes.setdefault(row["weights_note"], []).append(row["source"])
    return " ".join(f"{', '.join(sources)}: {note}." for note, sources in notes.items())


def weights_marks(rows: Sequence[Row]) -> dict[str, str]:
    """Return a marker for each precision of weights that occurs."""
    return style.marks(sorted(data.distinct(list(rows), "quantization"), key=weights_order))


def families(rows: Sequence[Row]) -> list[str]:
    """Return the families in the order of the lines."""
    return data.distinct(list(rows), "family")


def states(rows: Sequence[Row]) -> list[str]:
    """Return the states that occur."""
    return data.distinct(list(rows), "state")
