"""How every figure looks: colours, marks, words, and how it is written.

One language throughout. Colour says the family (Okabe and Ito's colour-blind-safe palette),
filling says the state (filled: trained, hollow or hatched: untrained), shape says what a
figure compares, a bar with ends is a 95 % interval, a dotted line is what guessing would give.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullLocator, PercentFormatter

from tokinfo.io.atomic import new_file
from tokinfo.study.masks import Mask

FAMILY_COLOURS = {
    "mixer-flat": "#0072B2",
    "mixer-expanded": "#E69F00",
    "mixer-parallel": "#009E73",
    "llama": "#D55E00",
    "mistral": "#CC79A7",
    "gpt2": "#56B4E9",
}
_SPARE_COLOURS = ("#882255", "#999933", "#44AA99", "#AA4499", "#117733", "#332288")
OTHER_COLOUR = "#666666"
INK, FAINT, GRID = "#222222", "#8a8a8a", "#e3e3e3"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DOTTED = (0, (1, 1.6))

WIDTH = 10.0
"""Width of a figure in inches; at 150 dots an inch it fills a report page."""

_SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "tokinfo",  # else ids, and so the file, differ from run to run
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": False,
    "hatch.linewidth": 0.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of this size in inches, with room made for its labels."""
    sns.set_theme(style="ticks", rc=_SETTINGS)
    mpl.use("Agg")
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, svg: Path, png: Path, title: str) -> None:
    """Write a figure as SVG and PNG, whole or not at all; equal figures give equal files."""
    with mpl.rc_context(_SETTINGS):  # type: ignore[arg-type]
        with new_file(svg) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None, "Title": title})
        with new_file(png) as partial:
            figure.savefig(
                partial, format="png", dpi=150, metadata={"Software": None, "Title": title}
            )


def heading(figure: Figure, title: str, subtitle: str = "") -> None:
    """Put a title, and under it how to read the figure; panels go below."""
    lines = textwrap.wrap(subtitle, int(12.8 * figure.get_figwidth()))
    height = figure.get_figheight()
    left = 0.08 / figure.get_figwidth()
    figure.text(left, 1 - 0.1 / height, title, va="top", fontsize=13, fontweight="bold")
    figure.text(
        left, 1 - 0.4 / height, "\n".join(lines), va="top", color="#444444", linespacing=1.35
    )
    engine = figure.get_layout_engine()
    if engine is not None:
        taken = (0.5 + 0.2 * len(lines)) / height
        engine.set(rect=(0, 0, 1, 1 - taken), w_pad=0.06, h_pad=0.06)  # type: ignore[call-arg]


def message(figure: Figure, text: str) -> None:
    """Fill an empty figure with one sentence."""
    figure.text(0.5, 0.45, text, ha="center", va="center", fontsize=12, color="#444444")


def empty(title: str, reason: str, svg: Path, png: Path) -> None:
    """Write a figure that says in words why there is nothing to draw."""
    figure = new_figure(2.2)
    heading(figure, title)
    message(figure, reason)
    save(figure, svg, png, title)


def family_colours(families: Iterable[str]) -> dict[str, str]:
    """Return a colour for each family: fixed for named ones, spare ones in order of name."""
    others = sorted({family for family in families} - set(FAMILY_COLOURS))
    spare = {
        family: _SPARE_COLOURS[i] if i < len(_SPARE_COLOURS) else OTHER_COLOUR
        for i, family in enumerate(others)
    }
    return FAMILY_COLOURS | spare


def marks(names: Sequence[str]) -> dict[str, str]:
    """Return a marker for each of the things a figure compares, in their order."""
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def percent_axis(axes: Axes, *, along: str = "x", room: float = 0.02) -> None:
    """Make an axis a share from 0 to 100 %, with ``room`` beyond it (in shares) for numbers."""
    axis = axes.xaxis if along == "x" else axes.yaxis
    (axes.set_xlim if along == "x" else axes.set_ylim)(-0.02, 1 + room)
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1.0])
    axis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.grid(True, axis="x" if along == "x" else "y", color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)


def log_axis(axes: Axes, along: str) -> None:
    """Make an axis logarithmic, its ticks powers of ten and few."""
    axis = axes.xaxis if along == "x" else axes.yaxis
    (axes.set_xscale if along == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(base=10, numticks=6))
    axis.set_major_formatter(LogFormatterMathtext())
    axis.set_minor_locator(NullLocator())
    axes.grid(True, axis="x" if along == "x" else "y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def error_bar(
    axes: Axes, low: float, high: float, at: float, *, along: str = "x", colour: str = INK
) -> None:
    """Draw a 95 % interval, with a white edge that keeps it readable on a filled bar."""
    ends = ([low, high], [at, at]) if along == "x" else ([at, at], [low, high])
    mark: dict[str, Any] = {
        "marker": "|" if along == "x" else "_",
        "solid_capstyle": "butt",
        "clip_on": False,
    }
    axes.plot(*ends, color="white", linewidth=3, markersize=6, markeredgewidth=3, zorder=4, **mark)
    axes.plot(*ends, color=colour, linewidth=1.1, markersize=4.5, zorder=4.5, **mark)


def family_key(families: Sequence[str], states: Sequence[str]) -> list[Artist]:
    """Return legend entries for families and, where both occur, for the two states."""
    colours = family_colours(families)
    key: list[Artist] = [
        Patch(facecolor=colours[family], edgecolor=colours[family], label=family)
        for family in families
    ]
    if "trained" in states:
        key.append(Patch(facecolor=OTHER_COLOUR, edgecolor=OTHER_COLOUR, label="trained"))
    if "untrained" in states:
        key.append(
            Patch(facecolor="white", edgecolor=OTHER_COLOUR, hatch="////", label="untrained")
        )
    return key


def entry(label: str, **look: Any) -> Line2D:
    """Return a legend entry in no family's colour, a mark alone unless ``look`` says more."""
    return Line2D([], [], **({"color": OTHER_COLOUR, "linestyle": "none"} | look), label=label)


def marks_key(marks: Mapping[str, str]) -> list[Artist]:
    """Return legend entries for the things that a figure compares, by their marker."""
    return [entry(name, marker=marker) for name, marker in marks.items()]


def states_key(states: Sequence[str], words: str = "{fill}: {state}", **look: Any) -> list[Artist]:
    """Return a legend entry for each state, in ``words``: filled marks and hollow ones."""
    key: list[Artist] = []
    for state in states:
        fill = "filled" if state == "trained" else "hollow"
        face = OTHER_COLOUR if state == "trained" else "white"
        label = words.format(fill=fill, state=state)
        key.append(entry(label, marker="o", markerfacecolor=face, **look))
    return key


def interval_key() -> Artist:
    """Return the legend entry of an interval."""
    return Line2D([], [], color=INK, marker="|", markersize=6, linewidth=1.1, label="95 % interval")


def chance_key(chances: Sequence[float]) -> Artist:
    """Return the legend entry of the chance line, with the numbers it stands for."""
    low, high = min(chances), max(chances)
    words = f"1 in {round(1 / high):,}"
    if round(1 / low) != round(1 / high):
        words += f" to 1 in {round(1 / low):,}"
    return Line2D([], [], color=INK, linestyle=DOTTED, label=f"chance ({words})")


def legend(figure: Figure, key: Sequence[Artist], columns: int = 5) -> None:
    """Put the legend below the panels, never over data."""
    figure.legend(
        handles=list(key),
        loc="outside lower left",
        ncols=min(columns, len(key)),
        handlelength=1.8,
        columnspacing=1.6,
    )


def share_words(value: float) -> str:
    """Return a share as a number to print: whole percent, but never a false 0 or 100.

    >>> [share_words(value) for value in (0.0, 0.004, 0.5, 0.997, 1.0)]
    ['0', '<1', '50', '>99', '100']
    """
    if 0 < value < 0.01:
        return "<1"
    if 0.99 < value < 1:
        return ">99"
    return f"{100 * value:.0f}"


def mask_words(mask: str) -> str:
    """Return a mask in words.

    >>> [mask_words(mask) for mask in (":", "1:", "3:", "-1", ":2", "::2", "hide=system")]
    ['nothing hidden', 'first token hidden', 'first 3 hidden', 'only the last visible', \
'only the first 2 visible', 'visible: ::2', 'system hidden']
    """
    if named := Mask(mask).named:
        return f"{' and '.join(named)} hidden"
    if "," in mask:
        return f"visible: {mask}"
    parts = mask.split(":")
    if len(parts) == 1:
        names = {"-1": "only the last visible", "0": "only the first visible"}
        return names.get(mask, f"only token {mask} visible")
    if len(parts) == 2:
        start, stop = parts
        if not stop and not start.startswith("-"):
            hidden = int(start or 0)
            many = "first token hidden" if hidden == 1 else f"first {hidden} hidden"
            return many if hidden else "nothing hidden"
        if not start and not stop.startswith("-"):
            return "only the first visible" if stop == "1" else f"only the first {stop} visible"
    return f"visible: {mask}"


def mask_title(mask: str) -> str:
    """Return the title of a column of panels: the mask, and what it means."""
    return f"mask {mask}\n{mask_words(mask)}"


def mask_order(mask: str) -> tuple[int, str]:
    """Return a sorting key: masks that hide less come first, those that hide by name last."""
    if Mask(mask).named:
        return 64, mask
    return 64 - len(Mask(mask).visible(64)), mask
