"""Figures on what is there: found beside identifiable, and the rank of the true token."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch

from tokinfo.report.figures import data, panels, style
from tokinfo.report.figures.data import Row
from tokinfo.tables.identifiability import SETTING, best_cells, hidden_rows, share

_BAND, _EDGE = "#d9d9d9", "#5f5f5f"
_SHAPES = {"chapter": "^", "adam": "s", "mixture": "D", "joint": "o"}
_NAMES = {
    "chapter": "found by the published descent",
    "adam": "found by better descent",
    "mixture": "found by mixtures of tokens",
    "joint": "found by joint search",
}


def found_vs_identifiable(recovery: Path, svg: Path, png: Path) -> None:
    """Draw, per model, mask and place, what each kind of search found beside what is there."""
    title = "Not found, or not there?"
    table = hidden_rows(recovery).filter(~pl.col("control"))
    swept = best_cells(table.filter(kind="sweep"), pl.col("identified") == "identifiable")
    swept = swept.filter(pl.col("identified").is_not_null())
    if swept.is_empty():
        style.empty(title, panels.NOTHING_SWEPT, svg, png)
        return
    # A search's share can be judged only where a sweep says what is there.
    table = table.join(swept.select(SETTING).unique(), on=list(SETTING), how="semi")
    # In a study with searches, a setting without one compares nothing.
    compared = table.filter(pl.col("kind").is_in(list(_SHAPES)))
    if len(compared):
        kept = compared.select(SETTING).unique()
        table = table.join(kept, on=list(SETTING), how="semi")
    rows = data.at_few_places(data.settings(table, SETTING))
    masks, unshown = data.few_masks(rows)
    rows = [row for row in rows if row["mask"] in masks]
    colours = style.family_colours(panels.families(rows))
    best = {
        kind: best_cells(
            table.filter(kind=kind), pl.col("recovered" if kind == "joint" else "correct")
        )
        for kind in _SHAPES
    }
    present = [kind for kind in _SHAPES if len(best[kind])]
    drawn = panels.make(
        rows,
        data.places_of(rows),
        masks,
        title=title,
        subtitle="Hidden tokens. Grey: identifiable, i.e. with the other tokens known no other "
        "token explains the visible activations. Marks: found by a search that is given "
        "none of the hidden ones. A mark left of the end of the grey: not FOUND. No grey: not "
        "THERE. " + unshown + panels.note_weights(rows),
        column_title=style.mask_title,
        axis_label="hidden tokens (%)",
        line_height=0.45,
    )
    for place, mask, axes in drawn.each():
        style.percent_axis(axes, room=0.04)
        for label, at in drawn.lines.items():
            here = data.where(rows, place=place, mask=mask, label=label)
            if not here:
                panels.absent(axes, at)
                continue
            is_here = {name: here[0][name] for name in SETTING}
            _line(axes, at, here[0], colours[here[0]["family"]], present, swept, best, is_here)
    style.legend(drawn.figure, _key(rows, present), columns=4)
    style.save(drawn.figure, svg, png, title)


def _line(
    axes: Axes,
    at: float,
    row: Row,
    colour: str,
    present: list[str],
    swept: pl.DataFrame,
    best: dict[str, pl.DataFrame],
    is_here: Row,
) -> None:
    """Draw one model's line: the grey band, and a mark for each kind of search."""
    there = share(swept.filter(**is_here), pl.col("identified") == "identifiable")
    if there is not None:
        axes.barh(at, there.value, 0.9, facecolor=_BAND, edgecolor="none", zorder=1)
        axes.plot([there.value] * 2, [at - 0.45, at + 0.45], color=_EDGE, linewidth=1.6, zorder=3)
        ends = [there.low, there.high], [at + 0.43] * 2
        axes.plot(*ends, color=_EDGE, linewidth=1, marker="|", markersize=4, clip_on=False)
    for kind, shift in zip(present, panels.offsets(len(present), 0.5), strict=True):
        shift -= 0.08
        mine = best[kind].filter(**is_here)
        found = share(mine, pl.col("correct"))
        if found is None:
            continue
        if kind == "joint":
            sure = share(mine, pl.col("recovered"))
            if sure is not None and sure.value:
                axes.barh(at + shift, sure.value, 0.2, color=colour, zorder=3)
        drawn = row | {"top1": found.value, "top1_low": found.low, "top1_high": found.high}
        panels.point(axes, drawn, at + shift, colour, _SHAPES[kind], size=5.5)


def _key(rows: list[Row], present: list[str]) -> list[Artist]:
    key: list[Artist] = [
        Patch(facecolor=_BAND, edgecolor=_EDGE, label="identifiable (others known)")
    ]
    key += style.marks_key({_NAMES[kind]: _SHAPES[kind] for kind in present})
    if "joint" in present:
        words = "recovered: found, certified and identifiable"
        key.append(style.entry(words, linestyle="-", linewidth=4))
    return [
        *key,
        *style.states_key(panels.states(rows)),
        *style.family_key(panels.families(rows), ()),
        style.entry("95 % interval", color=style.INK, linestyle="-", marker="|", markersize=6),
    ]


# --- ranks --------------------------------------------------------------------------------

_TRUE = "around the true prompt"
_SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#9ecae1", "#08306b"])


def rank_histogram(recovery: Path, svg: Path, png: Path) -> None:
    """Draw how the true token ranks among all candidates, in powers of ten, model by model."""
    title = "How does the true token rank among all candidates?"
    table = hidden_rows(recovery).filter(pl.col("rank").is_not_null() & ~pl.col("control"))
    # Searches of different strength have a column each.
    around = pl.when(kind="sweep").then(pl.lit(_TRUE)).when(kind="joint").then("solver")
    table = table.with_columns(around=around).drop_nulls("around")
    columns = sorted(table["around"].unique(), key=lambda name: (name != _TRUE, name))
    if not columns:
        style.empty(title, panels.NOTHING_SWEPT, svg, png)
        return
    rows = data.settings(table, SETTING)
    labels = data.distinct(rows, "label")
    label_of = pl.DataFrame(rows).select(*SETTING, "label")
    table = table.join(label_of, on=list(SETTING)).with_columns(
        # 1; 2 to 10; 11 to 100; ...: rank 10 still stands in the first decade.
        bin=((pl.col("rank") - 0.5).log10().floor() + 1).clip(0).cast(pl.Int64)
    )
    largest = int(table["vocabulary"].max())  # type: ignore[arg-type]
    bins = list(range(len(str(max(largest - 1, 1))) + 1))
    drawn = panels.make(
        rows,
        [""],
        columns,
        title=title,
        subtitle="Share of hidden positions (%) by the true token's rank in a sweep of the whole "
        "vocabulary; sites and masks pooled, ties counted against it. Rank 1 is "
        "identifiable as far as the order goes. Positions that nothing visible can depend on are "
        "left out. " + panels.note_weights(rows),
        column_title=lambda name: (
            f"{_TRUE}\n(an upper bound)"
            if name == _TRUE
            else f"around what {name} found\n(no truth needed)"
        ),
        axis_label="rank of the true token",
        line_height=0.3,
    )
    for _, column, axes in drawn.each():
        axes.set_xlim(-0.5, len(bins) + 0.35)
        names = ["1", *(f"{10 ** (i - 1) + 1:,} to\n{10**i:,}" for i in bins[1:])]
        axes.set_xticks([*bins, len(bins)], [*names, "n"], fontsize=8.5)
        axes.tick_params(axis="x", length=0)
        for label in labels:
            mine = table.filter(around=column, label=label)
            counts = [int((mine["bin"] == number).sum()) for number in bins]
            _cells(axes, drawn.lines[label], counts)
    style.save(drawn.figure, svg, png, title)


def _cells(axes: Axes, at: float, counts: list[int]) -> None:
    """Draw one line of the heat table: a shaded cell with its percentage for each bin."""
    total = sum(counts)
    for number, count in enumerate(counts):
        part = count / total if total else 0.0
        axes.barh(at, 0.96, 0.92, left=number - 0.48, facecolor=_SHADES(part), edgecolor=style.GRID)
        if count:
            axes.text(
                number,
                at,
                style.share_words(part),
                ha="center",
                va="center",
                fontsize=8.5,
                color="white" if part > 0.68 else style.INK,
            )
    words = f"{total:,}" if total else "none"
    axes.text(len(counts), at, words, ha="center", va="center", fontsize=8.5, color=style.FAINT)
