"""Figures on the tokens found: by mask, hidden beside visible, by depth of the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokinfo.report.figures import data, panels, style


def found_by_mask(summary: Path, svg: Path, png: Path) -> None:
    """Draw the share of hidden tokens found, per model, mask and place.

    A bar is the setting (solver, metric, parametrisation) that found most; ticks are the
    others, so that choosing the best in hindsight hides nothing.
    """
    title = "Which models give up hidden tokens?"
    rows = data.at_few_places(data.hidden(data.load(summary)))
    if not rows:
        style.empty(title, panels.NOTHING_HIDDEN, svg, png)
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
        column_title=style.mask_title,
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
                panels.absent(axes, at)
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
        key.append(style.entry("other solvers and metrics", **_TICK))
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
        style.empty(title, panels.NOTHING_HIDDEN, svg, png)
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
        column_title=style.mask_title,
        axis_label="tokens found (%)",
        line_height=0.29,
    )
    for place, mask, axes in drawn.each():
        style.percent_axis(axes, room=0.04)
        here = data.where(rows, place=place, mask=mask)
        drawn.chance(axes, here)
        for label, at in drawn.lines.items():
            visible = data.visible(data.where(here, label=label))
            hidden = data.hidden(data.where(here, label=label))
            if visible:
                chosen = data.best(visible)
                hidden = [row for row in hidden if data.setting(row) == data.setting(chosen)]
                pair = [row["top1"] for row in (*hidden, chosen)]
                axes.plot(pair, [at] * len(pair), color=style.FAINT, linewidth=2.2, zorder=1)
                style.error_bar(axes, chosen["top1_low"], chosen["top1_high"], at - 0.16)
                axes.plot(chosen["top1"], at - 0.16, **_VISIBLE)
            for row in hidden[:1]:
                panels.point(axes, row, at + 0.16, colours[row["family"]], "o")
    key = [
        style.entry("visible tokens", **_VISIBLE),
        *style.states_key(
            panels.states(rows), "hidden, {state}", markersize=6.5, markeredgewidth=1.5
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


def by_site_depth(summary: Path, svg: Path, png: Path) -> None:
    """Draw the hidden share against how deep in the model the activations were read.

    One column per source, one row per mask; the best setting at each depth.
    """
    title = "Does depth mix hidden tokens into the visible activations?"
    rows = data.hidden(data.load(summary))
    if not rows:
        style.empty(title, panels.NOTHING_HIDDEN, svg, png)
        return
    colours = style.family_colours(panels.families(rows))
    weights = panels.weights_marks(rows)
    sources, dropped = data.few_sources(rows)
    masks, unshown = data.few_masks(rows)
    figure = style.new_figure(1.9 + 1.75 * len(masks))
    style.heading(
        figure,
        title,
        "Share of hidden tokens found (best solver and metric), against the depth of the site: "
        "0 is the embedding, 100 the last block. "
        + unshown
        + dropped
        + panels.note_weights([row for row in rows if row["source"] in sources]),
    )
    names = {mask: f"{style.mask_words(mask)}\nfound (%)" for mask in masks}
    for mask, source, axes in panels.depth_axes(figure, sources, names, sharey=True):
        style.percent_axis(axes, along="y", room=0.04)
        here = data.where(rows, mask=mask, source=source)
        best = [
            data.best(data.where(here, label=label, site=site))
            for label in data.distinct(here, "label")
            for site in data.distinct(data.where(here, label=label), "site")
        ]
        for depth, line, look in panels.depth_lines(best, colours, weights):
            for at, row in zip(depth, line, strict=True):
                ends = row["top1_low"], row["top1_high"]
                style.error_bar(axes, *ends, at, along="y", colour=look["color"])
            look |= {"markeredgewidth": 1.4, "clip_on": False}
            axes.plot(depth, [row["top1"] for row in line], **look)
        for row in here[:1]:
            axes.axhline(row["chance_top1"], color=style.INK, linestyle=style.DOTTED, linewidth=1.2)
    key = [
        *panels.depth_key(rows, weights),
        style.interval_key(),
        style.chance_key([row["chance_top1"] for row in rows]),
    ]
    style.legend(figure, key, columns=6)
    style.save(figure, svg, png, title)
