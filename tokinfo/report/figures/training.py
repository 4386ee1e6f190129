"""Training curves: loss against tokens seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import seaborn as sns
from matplotlib.axes import Axes

from tokinfo.io.errors import InvalidError
from tokinfo.report.figures import style

_COLUMNS = ("step", "tokens", "train_loss", "held_out_loss")


def training_curves(
    *histories: Path, svg: Path, png: Path, families: Mapping[str, str] | None = None
) -> None:
    """Draw training and held-out loss against tokens, one pair of lines per source.

    Args:
        *histories: CSV files that `tokinfo.models.train.train` wrote; a file's stem is its source.
        svg: written.
        png: written.
        families: family of each source, for its colour; by name where absent.

    Raises:
        ValueError: a file is unreadable or lacks a column; one line that names it.
    """
    title = "Training: how good did the models get?"
    curves = {path.stem: _read(path) for path in histories}
    curves = {source: curve for source, curve in curves.items() if len(curve)}
    if not curves:
        style.empty(title, "No model is trained in this study.", svg, png)
        return
    of = {source: (families or {}).get(source) or guess_family(source) for source in curves}
    colours, dashes = style.family_colours(of.values()), _dashes(of)
    figure = style.new_figure(5.0)
    style.heading(
        figure,
        title,
        "Next-token loss against tokens seen. Thick line with points: text kept from training; "
        "thin line: training batches, smoothed. A gap that grows is overfitting.",
    )
    axes = figure.subplots()
    ends = []
    for source, curve in curves.items():
        colour = colours[of[source]]
        ends.append((_curves(axes, curve, colour, dashes[source]), source, colour))
    _finish(axes, ends, max(max(curve["tokens"]) for curve in curves.values()))
    key = [
        style.entry("held-out text", linestyle="-", linewidth=2.2, marker="o"),
        style.entry("training text", linestyle="-", linewidth=1, alpha=0.6),
    ]
    style.legend(figure, key)
    style.save(figure, svg, png, title)


def _curves(axes: Axes, curve: pl.DataFrame, colour: str, dashes: str) -> float:
    """Draw the two curves of one source; returns the loss at which they end."""
    window = max(1, len(curve) // 40)
    smooth = curve["train_loss"].rolling_mean(window, min_samples=1, center=True)
    tokens = curve["tokens"].to_list()
    sns.lineplot(x=tokens, y=smooth.to_list(), ax=axes, color=colour, linewidth=1, alpha=0.6)
    held = curve.drop_nulls("held_out_loss")
    axes.plot(
        held["tokens"].to_list(),
        held["held_out_loss"].to_list(),
        color=colour,
        linewidth=2.2,
        linestyle=dashes,
        marker="o",
        markersize=4.5,
    )
    return float((held["held_out_loss"] if len(held) else smooth)[-1])


def _finish(axes: Axes, ends: list[tuple[float, str, str]], last: float) -> None:
    """Name each source beside its end (a loss, its name, its colour), and set the axes."""
    low, high = axes.get_ylim()
    for at, (loss, source, colour) in zip(
        _apart([e[0] for e in ends], (high - low) * 0.055), sorted(ends), strict=True
    ):
        axes.annotate(
            f"{source}  {loss:.2f}",
            xy=(last, loss),
            xytext=(last * 1.04, at),
            color=colour,
            va="center",
            fontweight="bold",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )
    axes.set_xlim(0, last * 1.28)
    axes.set_ylim(low - (high - low) * 0.04, high)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= last])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color=style.GRID)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(lambda value, _: _tokens(value))
    axes.set_xlabel("tokens seen in training")
    axes.set_ylabel("loss (nats per token)")


def guess_family(source: str) -> str:
    """Return the family that a source's name suggests, or the name itself.

    >>> guess_family("flat"), guess_family("tiny-transformer"), guess_family("x")
    ('mixer-flat', 'llama', 'x')
    """
    for part, family in (
        ("flat", "mixer-flat"),
        ("expanded", "mixer-expanded"),
        ("parallel", "mixer-parallel"),
        ("transformer", "llama"),
        ("llama", "llama"),
    ):
        if part in source:
            return family
    return source


def _read(path: Path) -> pl.DataFrame:
    try:
        curve = pl.read_csv(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = (str(error).splitlines() or ["empty"])[0]
        raise InvalidError(f"{path}: cannot be read as a training history ({reason})") from None
    missing = [name for name in _COLUMNS if name not in curve.columns]
    if missing:
        raise InvalidError(f"{path}: not a training history: missing {', '.join(missing)}")
    return curve.with_columns(pl.col(name).cast(pl.Float64) for name in _COLUMNS)


def _dashes(families: Mapping[str, str]) -> dict[str, str]:
    """Return a line style for each source that sets sources of one family apart."""
    styles = ("-", "--", "-.", ":")
    seen: dict[str, int] = {}
    found = {}
    for source, family in families.items():
        found[source] = styles[seen.get(family, 0) % len(styles)]
        seen[family] = seen.get(family, 0) + 1
    return found


def _apart(values: Sequence[float], least: float) -> list[float]:
    """Return sorted heights for names, moved about their middle so that none overlap."""
    order = sorted(values)
    heights: list[float] = []
    for value in order:
        heights.append(max(value, heights[-1] + least) if heights else value)
    shift = sum(heights) / len(heights) - sum(order) / len(order)
    return [height - shift for height in heights]


def _tokens(value: float) -> str:
    """Return a number of tokens in short: 250k, 1.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"
