"""Scaling figures: hidden tokens found and identifiable against width, depth, hiding, training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from tokinfo.report.figures import data, style
from tokinfo.report.figures.data import Row
from tokinfo.tables import scaling

_MOST_PANELS = 6
_ACROSS = 3
_TITLES = {
    "width": "Are more hidden tokens found in wider models?",
    "depth": "Are fewer hidden tokens found at greater depth?",
    "hidden": "How many tokens can be hidden?",
    "training": "Where in training does descent stop finding hidden tokens?",
}
_LABELS = {
    "width": "width (hidden size)",
    "depth": "block that is read",
    "hidden": "hidden tokens of a prompt",
    "training": "share of the training steps; loss on held-out text",
}
_WORDS = {"sweep": "identifiable", "joint": "found by search", "sequential": "found by search"}


def draw_scaling(rows: Sequence[Row], axis: str, svg: Path, png: Path) -> None:
    """Draw the `points` of one axis: a panel for each model, a line for each search."""
    title = _TITLES[axis]
    if not rows:
        text = f"Nothing in this study takes {scaling.FEWEST} values along this axis."
        style.empty(title, text, svg, png)
        return
    panels = data.distinct(list(rows), "panel")
    unshown = panels[_MOST_PANELS:]
    panels = panels[:_MOST_PANELS]
    across = min(_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = style.new_figure(1.9 + 2.9 * down)
    style.heading(figure, title, _subtitle(list(rows), axis, unshown))
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    searches = data.distinct(sorted(rows, key=lambda row: row["kind"] == "sweep"), "search")
    marks = style.marks(searches)
    colours = style.family_colours(data.distinct(list(rows), "family"))
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_visible(False)
            continue
        here = data.where(list(rows), panel=panels[number])
        _panel(axes, here, axis, marks, colours[here[0]["family"]])
        axes.set_title(panels[number])
        if number % across == 0:
            axes.set_ylabel("share of tokens (%)")
        if number + across >= len(panels):
            axes.set_xlabel(_LABELS[axis])
    style.legend(figure, _key(rows, searches, marks), columns=3)
    style.save(figure, svg, png, title)


def _key(rows: Sequence[Row], searches: list[str], marks: dict[str, str]) -> list[Artist]:
    kinds = {row["search"]: row["kind"] for row in rows}
    key: list[Artist] = []
    for name in searches:
        swept = kinds[name] == "sweep"
        key.append(
            style.entry(
                f"{_WORDS.get(kinds[name], 'found by descent')} ({name})",
                linestyle="--" if swept else "-",
                marker=marks[name],
                markerfacecolor="white" if swept else style.OTHER_COLOUR,
            )
        )
    key.append(
        style.entry("visible tokens, same search", linestyle=":", marker="o", markersize=3.5)
    )
    chances = [1 / row["vocabulary"] for row in rows]
    return [*key, style.interval_key(), style.chance_key(chances)]


def _panel(axes: Axes, rows: list[Row], axis: str, marks: dict[str, str], colour: str) -> None:
    """Draw one model's lines; the axis's values stand evenly, whatever lies between them."""
    values = sorted({row["at"] for row in rows})
    searches = data.distinct(rows, "search")
    for number, search in enumerate(searches):
        line = data.where(rows, search=search)
        swept = line[0]["kind"] == "sweep"
        shift = 0.09 * (number - (len(searches) - 1) / 2)
        xs = [values.index(row["at"]) + shift for row in line]
        for x, row in zip(xs, line, strict=True):
            style.error_bar(axes, row["low"], row["high"], x, along="y", colour=style.FAINT)
        if not swept:
            axes.plot(
                xs,
                [row["visible_share"] for row in line],
                color=colour,
                linestyle=":",
                linewidth=1.3,
                marker=marks[search],
                markersize=3.5,
                alpha=0.7,
                zorder=5,
                clip_on=False,
            )
        axes.plot(
            xs,
            [row["share"] for row in line],
            color=style.INK if swept else colour,
            linestyle="--" if swept else "-",
            linewidth=1.3,
            marker=marks[search],
            markersize=7,
            markerfacecolor="white" if swept else colour,
            markeredgewidth=1.4,
            zorder=6,
            clip_on=False,
        )
    axes.axhline(1 / rows[0]["vocabulary"], color=style.INK, linestyle=style.DOTTED, linewidth=1.2)
    style.percent_axis(axes, along="y", room=0.04)
    axes.set_xlim(-0.4, len(values) - 0.6)
    axes.set_xticks(range(len(values)), [_tick(value, rows, axis) for value in values])
    axes.spines[["top", "right"]].set_visible(False)


def _tick(value: float, rows: list[Row], axis: str) -> str:
    if axis != "training":
        return f"{value:,}"
    loss = data.where(rows, at=value)[0]["held_out_loss"]
    return f"{100 * value:.3g} %" + ("" if loss is None else f"\n{loss:.2f}")


def _subtitle(rows: list[Row], axis: str, unshown: Sequence[str]) -> str:
    first = rows[0]
    counts = sorted({row["prompts"] for row in rows})
    prompts = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    where = f"mask {first['mask']}" if first["mask"] else "leading tokens hidden"
    text = (
        f"Prompts {first['prompt_set']} ({prompts} a point), {first['site']}, {where}, distance "
        f"{first['metric']}. Filled marks: hidden tokens that a search found, given none of them; "
        "small dots: visible ones; where those are few, the search failed as a whole. Hollow "
        "marks: identifiable tokens, those that no other token explains with the others known. "
        "Tokens between are there and were not found. The horizontal axis is not to scale."
    )
    if unshown:
        text += f" Not shown: {', '.join(unshown)}."
    return text
