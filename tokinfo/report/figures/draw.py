"""Figures of the report; each is one function that writes an SVG and a PNG.

Every figure copes with what a study lacks: it draws the groups that exist and says in words
when there is nothing to draw. No figure needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokinfo.io.errors import InvalidError
from tokinfo.report.figures.identifiable import found_vs_identifiable, rank_histogram
from tokinfo.report.figures.margins import margin_by_depth, noise_threshold
from tokinfo.report.figures.recovery import by_site_depth, hidden_vs_visible, recovery_by_mask
from tokinfo.report.figures.search import by_metric, by_solver, descent_loss

FIGURES: dict[str, Callable[[Path, Path, Path], None]] = {
    "recovery_by_mask": recovery_by_mask,
    "hidden_vs_visible": hidden_vs_visible,
    "by_site_depth": by_site_depth,
    "by_metric": by_metric,
    "by_solver": by_solver,
    "descent_loss": descent_loss,
}
"""Figures made from the summary: `FIGURES[name](summary, svg, png)`."""

IDENTIFIABILITY: dict[str, Callable[[Path, Path, Path], None]] = {
    "found_vs_identifiable": found_vs_identifiable,
    "rank_histogram": rank_histogram,
    "margin_by_depth": margin_by_depth,
    "noise_threshold": noise_threshold,
}
"""Figures made from the long table: `IDENTIFIABILITY[name](recovery, svg, png)`."""


def draw(name: str, table: Path, svg: Path, png: Path) -> None:
    """Draw the figure of this name from its table: the summary, or the long table.

    Raises:
        ValueError: no such figure.
    """
    figures = FIGURES | IDENTIFIABILITY
    if name not in figures:
        raise InvalidError(f"figure {name!r}: allowed: {', '.join(figures)}")
    figures[name](table, svg, png)
