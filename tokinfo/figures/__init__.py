"""Figures of the report; each is one function that writes an SVG and a PNG.

Every figure copes with what a study lacks: it draws the groups that exist and says in words
when there is nothing to draw. No figure needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokinfo.figures.recovery import by_site_depth, hidden_vs_visible, recovery_by_mask
from tokinfo.figures.search import by_metric, by_solver, descent_loss
from tokinfo.figures.training import training_curves

FIGURES: dict[str, Callable[[Path, Path, Path], None]] = {
    "recovery_by_mask": recovery_by_mask,
    "hidden_vs_visible": hidden_vs_visible,
    "by_site_depth": by_site_depth,
    "by_metric": by_metric,
    "by_solver": by_solver,
    "descent_loss": descent_loss,
}
"""Figures made from the summary: `FIGURES[name](summary, svg, png)`."""

__all__ = [
    "FIGURES",
    "by_metric",
    "by_site_depth",
    "by_solver",
    "descent_loss",
    "draw",
    "hidden_vs_visible",
    "recovery_by_mask",
    "training_curves",
]


def draw(name: str, summary: Path, svg: Path, png: Path) -> None:
    """Draw the figure of this name from the summary table.

    Raises:
        ValueError: no such figure.
    """
    if name not in FIGURES:
        raise ValueError(f"figure {name!r}: allowed: {', '.join(FIGURES)}")
    FIGURES[name](summary, svg, png)
