"""Figures on what came back: by mask, hidden beside visible, by depth of the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from tokinfo.report.figures import data, panels, style
from tokinfo.tables.recovery import weights_order

NOTHING_HIDDEN = "No hidden positions in this study: every mask shows all tokens."


def recovery_by_mask(summary: Path, svg: Path, png: Path) -> None:
    """Draw the share of hidden tokens that came back, per model, mask and place.

    A bar is the setting (solver, metric, parametrisation) that found most; ticks are the
    others, so that choosing the best in hindsight hides nothing.
    """
    title = "Which models give up hidden tokens?"
    rows = data.at_few_places(data.hidden(data.load(summary)))
    if not rows:
        _empty(title, svg, png)
        return
    masks, unshown = data.few_masks(rows)
    rows = [row for row in rows if row["mask"] in masks]
    colours = style.family_colours(panels.families(rows))
    drawn = panels.make(
        rows,
        data.places_of(rows),
        masks,
        title=title,
        subtitle="Share of the tokens at HIDDEN positions that the best of the study's descents "
        "found exactly, from the activations of the visible positions alone. A long bar means "
        "that their identity passes to other positions. " + unshown + panels.note_weights(rows),
        column_title=_mask_title,
        axis_label="hidden tokens found (%)",
    )
    ticks = False
    for place, mask, axes in drawn.each():
        style.percent_axis(axes, room=0.22)
        here = data.where(rows, place=place, mask=mask)
        drawn.chance(axes, here)
        for label, at in drawn.lines.items():
            settings = data.where(here, label=label)
            if not settings:
                axes.text(0.0, at, " not in the study", va="center", fontsize=8, color=style.FAINT)
                continue
            best = data.best(settings)
            panels.bar(axes, best, at, colours[best["family"]])
            axes.text(1.21, at, style.share_words(best["top1"]), ha="right", va="center")
            others = [row["top1"] for row in settings if row is not best]
            # An empty line would have no extent, and the layout would collapse on it.
            if others:
                ticks = True
                axes.plot(others, [at - 0.36] * len(others), **_TICK)
    key = [
        *style.family_key(panels.families(rows), panels.states(rows)),
        style.interval_key(),
        style.chance_key([row["chance_top1"] for row in rows]),
    ]
    if ticks:
        key.append(Line2D([], [], **_TICK, label="other solvers and metrics"))
    style.legend(drawn.figure, key)
    style.save(drawn.figure, svg, png, title)


_TICK: dict[str, Any] = {
    "linestyle": "none",
    "marker": "v",
    "markersize": 4.5,
    "markerfacecolor": style.FAINT,
    "markeredgecolor": "white",
    "markeredgewidth": 0.5,
    "zorder": 7,
    "clip_on": False,
}


def hidden_vs_visible(summary: Path, svg: Path, png: Path) -> None:
    """Draw hidden and visible shares of one setting as a pair, per model, mask and place.

    The setting is the one that found most VISIBLE tokens: chosen without looking at the hidden
    ones, and the one whose failure on them is least likely to be the search's.
    """
    title = "Do hidden tokens come back as visible ones do?"
    rows = data.load(summary)
    masks, unshown = data.few_masks(data.hidden(rows))
    rows = data.at_few_places([row for row in rows if row["mask"] in masks])
    if not rows:
        _empty(title, svg, png)
        return
    colours = style.family_colours(panels.families(rows))
    drawn = panels.make(
        rows,
        data.places_of(rows),
        masks,
        title=title,
        subtitle="Same search, two kinds of position. Far apart: the search works, and the hidden "
        "tokens still do not come back. Both low: the search failed, which says nothing about "
        "the model. " + unshown + panels.note_weights(rows),
        column_title=_mask_title,
        axis_label="tokens found (%)",
        line_height=0.29,
    )
    for place, mask, axes in drawn.each():
        style.percent_axis(axes, room=0.04)
        here = data.where(rows, place=place, mask=mask)
        drawn.chance(axes, here)
        for label, at in drawn.lines.items():
            shown = data.visible(data.where(here, label=label))
            unseen = data.hidden(data.where(here, label=label))
            if shown:
                chosen = data.best(shown)
                unseen = [row for row in unseen if data.setting(row) == data.setting(chosen)]
                pair = [row["top1"] for row in (*unseen, chosen)]
                axes.plot(pair, [at] * len(pair), color=style.FAINT, linewidth=2.2, zorder=1)
                style.error_bar(axes, chosen["top1_low"], chosen["top1_high"], at - 0.16)
                axes.plot(chosen["top1"], at - 0.16, **_VISIBLE)
            for row in unseen[:1]:
                panels.point(axes, row, at + 0.16, colours[row["family"]], "o")
    key = [
        Line2D([], [], **_VISIBLE, label="visible tokens"),
        *(
            Line2D([], [], **_hidden_mark(state == "trained"), label=f"hidden, {state}")
            for state in panels.states(rows)
        ),
        style.interval_key(),
        style.chance_key([row["chance_top1"] for row in rows]),
        *style.family_key(panels.families(rows), ()),
    ]
    style.legend(drawn.figure, key)
    style.save(drawn.figure, svg, png, title)


_VISIBLE: dict[str, Any] = {
    "linestyle": "none",
    "marker": "|",
    "markersize": 10,
    "markeredgewidth": 3,
    "color": style.INK,
    "zorder": 6,
    "clip_on": False,
}


def _hidden_mark(filled: bool) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": "o",
        "markersize": 6.5,
        "markerfacecolor": style.OTHER_COLOUR if filled else "white",
        "markeredgecolor": style.OTHER_COLOUR,
        "markeredgewidth": 1.5,
    }


def by_site_depth(summary: Path, svg: Path, png: Path) -> None:
    """Draw the hidden share against how deep in the model the activations were read.

    One column per source, one row per mask; the best setting at each depth.
    """
    title = "Does depth mix hidden tokens into the visible activations?"
    rows = data.hidden(data.load(summary))
    if not rows:
        _empty(title, svg, png)
        return
    colours = style.family_colours(panels.families(rows))
    sources = data.distinct(rows, "source")
    masks, unshown = data.few_masks(rows)
    shown = sources[:_MOST_SOURCES]
    figure = style.new_figure(1.9 + 1.75 * len(masks))
    dropped = len(sources) - len(shown)
    style.heading(
        figure,
        title,
        "Share of hidden tokens found (best solver and metric), against the depth of the site: "
        "0 is the embedding, 100 the last block. "
        + unshown
        + (f"{dropped} more sources are in the tables. " if dropped else "")
        + panels.note_weights([row for row in rows if row["source"] in shown]),
    )
    grid = figure.subplots(len(masks), len(shown), sharex=True, sharey=True, squeeze=False)
    weights = style.marks(sorted(data.distinct(rows, "quantization"), key=weights_order))
    for i, mask in enumerate(masks):
        for j, source in enumerate(shown):
            axes = grid[i][j]
            style.percent_axis(axes, along="y", room=0.04)
            axes.set_xlim(-0.09, 1.09)
            axes.set_xticks([0, 0.5, 1], ["0", "50", "100"])
            axes.spines[["top", "right"]].set_visible(False)
            here = data.where(rows, mask=mask, source=source)
            if i == 0:
                axes.set_title(source)
            if j == 0:
                axes.set_ylabel(f"{style.mask_words(mask)}\nfound (%)")
            if i == len(masks) - 1:
                axes.set_xlabel("depth (%)")
            labels = data.distinct(here, "label")
            for label, shift in zip(labels, panels.offsets(len(labels), 0.1), strict=True):
                line = [
                    data.best(data.where(here, label=label, site=site))
                    for site in data.distinct(data.where(here, label=label), "site")
                ]
                line.sort(key=lambda row: row["share_of_depth"])
                depth = [row["share_of_depth"] + shift for row in line]
                colour, trained = colours[line[0]["family"]], line[0]["state"] == "trained"
                for at, row in zip(depth, line, strict=True):
                    ends = row["top1_low"], row["top1_high"]
                    style.error_bar(axes, *ends, at, along="y", colour=colour)
                axes.plot(
                    depth,
                    [row["top1"] for row in line],
                    color=colour,
                    linestyle="-" if trained else "--",
                    marker=weights[line[0]["quantization"]],
                    markersize=6,
                    markerfacecolor=colour if trained else "white",
                    markeredgecolor=colour,
                    markeredgewidth=1.4,
                    linewidth=1.6,
                    zorder=6,
                    clip_on=False,
                )
            for row in here[:1]:
                axes.axhline(
                    row["chance_top1"], color=style.INK, linestyle=style.DOTTED, linewidth=1.2
                )
    key = [
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
        style.interval_key(),
        style.chance_key([row["chance_top1"] for row in rows]),
    ]
    style.legend(figure, key, columns=6)
    style.save(figure, svg, png, title)


_MOST_SOURCES = 6
"""Columns that still leave room for numbers; a study with more reads the rest in the tables."""


def _mask_title(mask: str) -> str:
    return f"mask {mask}\n{style.mask_words(mask)}"


def _empty(title: str, svg: Path, png: Path) -> None:
    figure = style.new_figure(2.2)
    style.heading(figure, title)
    style.message(figure, NOTHING_HIDDEN)
    style.save(figure, svg, png, title)
