"""What `tokinfo.Model.flow` returns: which visible position carries which token."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from tokinfo.report.answer import Result
from tokinfo.report.figures.flow import Map, draw, of_rows

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Flow:
    """Sweeps of every position of one prompt, at one site or several.

    Attributes:
        results: the sweeps, a site each.
    """

    results: tuple[Result, ...]

    @property
    def maps(self) -> tuple[Map, ...]:
        """Of each site, the shares [token, position] as an array, with what they are of."""
        return tuple(of_rows(result.rows) for result in self.results)

    def plot(self) -> Figure:
        """Return the maps as a figure of matplotlib, which a notebook shows."""
        name = str(self.results[0].rows[0]["model"])
        figure = draw({name: self.maps})
        # It belongs to no window, so a notebook would show it as text.
        vars(figure)["_repr_html_"] = lambda: _image(figure)
        return figure

    def to_polars(self) -> pl.DataFrame:
        """Return a table with a row for each site, token and position that depends on it.

        Columns: ``site``, ``hidden`` (the token's position) and ``hidden_token``, ``position`` and
        ``token``, ``share`` (the smallest change there over all other tokens, as a share of the
        activations' norm) and ``floor`` (the noise floor, as a share of the same).
        """
        import polars as pl

        return pl.DataFrame(list(self._entries()))

    def _entries(self) -> Iterator[dict[str, Any]]:
        for result in self.results:
            seen = [row for row in result.rows if row["visible"]]
            for row in result.rows:
                pairs = zip(seen, row["carried"] or (), row["carried_floor"] or (), strict=False)
                for at, share, floor in pairs:
                    if share is not None:
                        yield {
                            "site": row["site"],
                            "hidden": row["position"],
                            "hidden_token": row["true_token"],
                            "position": at["position"],
                            "token": at["true_token"],
                            "share": share,
                            "floor": floor,
                        }

    def _repr_html_(self) -> str:
        return _image(self.plot())


def _image(figure: Figure) -> str:
    kept = BytesIO()
    figure.savefig(kept, format="png", dpi=110)
    text = b64encode(kept.getvalue()).decode()
    return f"<img alt='flow map' src='data:image/png;base64,{text}'>"
