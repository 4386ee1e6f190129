"""One prompt's answer: as a table of positions and sentences below it, as HTML, as rows.

The rows are those of a cell (`tokinfo.tables.schema`), whoever asked: a job, a notebook or a shell.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokinfo.io.errors import plain
from tokinfo.report.tokens import show

if TYPE_CHECKING:
    import polars as pl

Row = Mapping[str, Any]

_WIDE = 200
"""Columns of a table that goes into a file or a pipe."""
_COLOURS = {
    "visible": "#e8e8e8",
    "known": "#e8e8e8",
    "right": "#cfe2f7",
    "wrong": "#f7d4d0",
    "found": "#fdf0c4",
}
"""Backgrounds of a token in HTML; each comes with a word or sign, for those who see no colour."""


_OF_TRUTH = (
    *("prompt", "true_id", "true_token", "true_loss", "correct", "in_top5", "in_prompt", "role"),
    *("reference_id", "published_correct", "prompt_exact", "token_f1", "edit_similarity"),
)
"""Columns that say something of the true prompt."""


def without_truth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows, made with the found prompt in the true one's place, with nothing said of it."""
    return [
        row
        | dict.fromkeys(_OF_TRUTH)
        | {"verdict": "certified" if row["verdict"] == "certified" else "not certified"}
        for row in rows
    ]


@dataclass(frozen=True)
class Result:
    """What a search or a sweep says of one prompt.

    Attributes:
        rows: one for each position, with the columns of recovery.parquet.
        heading: model, site, mask and solver in one line.
        text: the found prompt; None: a sweep, which finds none.
    """

    rows: list[dict[str, Any]]
    heading: str
    text: str | None

    @property
    def sweep(self) -> bool:
        """Whether this is of a sweep around the true prompt, which searches nothing."""
        return bool(self.rows[0]["around"] == "true")

    @property
    def tokens(self) -> list[str | None]:
        """The found token of every position as text; None where a sweep did not visit it."""
        return [row["found_token"] for row in self.rows]

    @property
    def ids(self) -> list[int | None]:
        """Their ids."""
        return [row["found_id"] for row in self.rows]

    @property
    def hidden(self) -> list[int]:
        """The positions in question: hidden, not known, and some visible one depends on them."""
        return [row["position"] for row in self._hidden]

    @property
    def certified(self) -> bool:
        """Whether the found prompt explains the visible activations to within the noise floor."""
        return bool(self.rows[0]["verdict"] == "certified")

    @property
    def correct(self) -> int | None:
        """How many hidden tokens were found; None: nobody knows the prompt."""
        of_hidden = [row["correct"] for row in self._hidden]
        return None if None in of_hidden else sum(map(bool, of_hidden))

    @property
    def recovered(self) -> int | None:
        """How many hidden tokens were found, in a certified prompt, and identifiable around it.

        None: nobody knows the prompt, or nothing was swept around the found one (``judge=True``
        does that).
        """
        if self.correct is None or self.rows[0]["around"] != "found":
            return None
        return len(
            [
                row
                for row in self._hidden
                if row["correct"] and self.certified and row["identified"] == "identifiable"
            ]
        )

    @property
    def claims(self) -> dict[int, str]:
        """The tokens that somebody without the prompt may claim, by hidden position.

        They are the only ones that explain the activations, the rest of the found prompt around
        them; without ``judge=True`` there are none.
        """
        return {
            row["position"]: row["found_token"]
            for row in self._hidden
            if row["claimed_id"] is not None and row["claimed_id"] == row["found_id"]
        }

    @property
    def stopped(self) -> str | None:
        """Why it ended early (``minutes`` or ``interrupted``), or None."""
        found: str | None = self.rows[0]["stopped"]
        return found

    @property
    def _hidden(self) -> list[dict[str, Any]]:
        return [
            row for row in self.rows if not (row["visible"] or row["given"] or row["independent"])
        ]

    def to_polars(self) -> pl.DataFrame:
        """Return the rows as a table with the columns of recovery.parquet."""
        import polars as pl

        from tokinfo.tables.schema import RECOVERY_SCHEMA

        return pl.DataFrame(self.rows, schema=RECOVERY_SCHEMA)

    def show(self, console: Console | None = None) -> None:
        """Print the table of positions and what follows from it."""
        console = console or Console()
        if not (console.is_terminal or console.is_jupyter):
            console = Console(file=console.file, width=_WIDE)
        console.print(plain(self.heading), markup=False, highlight=False)
        console.print(self._table())
        for line in self.sentences():
            console.print(line, markup=False, highlight=False)

    def _table(self) -> Table:
        swept = any(row.get("rank") is not None for row in self.rows)
        noisy = any(row.get("noise_threshold") is not None for row in self.rows)
        truth = any(row["true_id"] is not None for row in self.rows)
        columns: list[tuple[str, bool, Any]] = [
            ("#", True, lambda row: str(row["position"])),
            ("", False, _state),
            *([("true", False, lambda row: show(row["true_token"]))] if truth else []),
            ("found", False, self._found),
        ]
        if swept:
            columns += [
                ("rank", True, lambda row: "" if row.get("rank") is None else f"{row['rank']:,}"),
                ("margin", True, _margin),
                ("bits", True, _bits),
            ]
        if noisy:
            columns.append(("lost at", True, _lost))
        columns.append(("", False, self._verdict))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for name, right, _ in columns:
            token = name in ("true", "found")
            table.add_column(
                name,
                justify="right" if right else "left",
                no_wrap=not token,
                overflow="ellipsis",
                min_width=6 if token else None,
            )
        for row in self.rows:
            # Text, because rich would read a token such as `[b]` as markup.
            table.add_row(*(Text(cell(row)) for _, _, cell in columns))
        return table

    def _found(self, row: Row) -> str:
        if row["found_token"] is None or (row["given"] and self.sweep):
            return ""
        found = show(row["found_token"])
        if row["correct"] is False and found == show(row["true_token"]):
            found = f"{found}#{row['found_id']}"  # two tokens may read alike
        return found

    def _verdict(self, row: Row) -> str:
        if row["given"] or (self.sweep and row["visible"]):
            return ""
        if row["independent"]:
            return "a control"
        words = [] if self.sweep or row["correct"] is None else [_outcome(row["correct"])]
        if row.get("identified") is not None:
            several = row["identified"] == "ambiguous"
            words.append(f"1 of {row['candidates']:,} that fit" if several else row["identified"])
        elif self.sweep:
            words.append("not swept")
        return ", ".join(words)

    def sentences(self) -> Iterator[str]:
        """Yield what the rows say about the prompt as a whole."""
        first, hidden = self.rows[0], self._hidden
        floor = f"noise floor {first['noise_floor']:.3g}"
        controls = sum(
            row["independent"] for row in self.rows if not row["visible"] and not row["given"]
        )
        if controls:
            yield (
                f"Nothing visible depends on {controls} of the hidden tokens: they are controls, "
                "and no number below counts them."
            )
        swept = [row for row in self.rows if row.get("identified") and not row["independent"]]
        identifiable = [row for row in swept if row["identified"] == "identifiable"]
        if self.sweep:
            if swept or hidden:
                yield (
                    f"Identifiable: {len(identifiable)} of {len(swept)} swept positions, the other "
                    f"tokens known: an upper bound of what any search could claim ({floor})."
                )
        else:
            yield from self._of_search(identifiable, floor)
        for row in swept:
            if row.get("noise_threshold") is not None:
                yield (
                    "`lost at` is the noise, as a share of the activations at their position, at "
                    f"which the token is no longer the best (steps of x{row['noise_step']:.3g})."
                )
                break
        if self.stopped:
            why = "by Ctrl-C" if self.stopped == "interrupted" else "when the time was up"
            yield (
                f"Sweeps were stopped {why}: hidden tokens without a rank were not reached."
                if self.sweep or self.certified
                else f"The search was stopped {why}: this is the best prompt so far."
            )

    def _of_search(self, identifiable: list[dict[str, Any]], floor: str) -> Iterator[str]:
        first, hidden = self.rows[0], self._hidden
        known = first["true_loss"] is not None
        truth = f", true prompt at {first['true_loss']:.3g}" if known else ""
        yield (
            f"Prompt: {first['verdict']} (found tokens at distance {first['found_loss']:.3g}"
            f"{truth}, {floor}; {first['evaluations']:,} prompts tried)."
        )
        if not hidden:
            return
        judged = first["around"] is not None
        if not known:
            yield (
                f"{len(self.claims)} of {len(hidden)} hidden tokens are the only ones that explain "
                "the activations, the others as found."
                if judged
                else "Nothing was swept around the found prompt, so nothing says whether other "
                "tokens explain the activations as well."
            )
            return
        if not judged:
            yield (
                f"Found {self.correct} of {len(hidden)} hidden tokens; nothing was swept around "
                "the found prompt, so none counts as recovered."
            )
            return
        yield (
            f"Recovered {self.recovered} of {len(hidden)} hidden tokens: found ({self.correct}), "
            f"in a certified prompt ({'yes' if self.certified else 'no'}), and identifiable around "
            f"it ({len([row for row in identifiable if not row['visible']])})."
        )

    def __repr__(self) -> str:
        return f"<{plain(self.heading)}: {' '.join(self.sentences())}>"

    def _repr_html_(self) -> str:
        tokens = "".join(map(self._html, self.rows))
        lines = "".join(f"<p style='margin:.2em 0'>{html.escape(s)}</p>" for s in self.sentences())
        return (
            f"<div><p style='margin:.2em 0'><b>{html.escape(plain(self.heading))}</b></p>"
            f"<div style='display:flex;flex-wrap:wrap;gap:2px'>{tokens}</div>{lines}</div>"
        )

    def _html(self, row: Row) -> str:
        found, word = self._found(row), _state(row)
        if row["given"]:
            kind = "known"
        elif row["visible"]:
            kind = "visible"
        elif self.sweep:
            kind = "right" if row.get("identified") == "identifiable" else "wrong"
        elif row["correct"] is None:
            kind = "found"
        else:
            kind = "right" if row["correct"] else "wrong"
        true = show(row["true_token"]) if row["true_id"] is not None else ""
        cells = (word, true, found, self._verdict(row))
        inner = "".join(f"<div><bdi>{html.escape(cell) or '&nbsp;'}</bdi></div>" for cell in cells)
        style = f"background:{_COLOURS[kind]};color:#111;padding:2px 4px;font-family:monospace"
        return f"<div style='{style};text-align:center'>{inner}</div>"


def _outcome(correct: bool) -> str:
    return "found" if correct else "not found"


def _state(row: Row) -> str:
    return "known" if row["given"] else "visible" if row["visible"] else "hidden"


def _margin(row: Row) -> str:
    return "" if row.get("margin") is None else f"{row['margin']:.3g}"


def _bits(row: Row) -> str:
    low, high = row.get("bits"), row.get("bits_high")
    if low is None or high is None:
        return ""
    return f"{low:.1f}" if math.isclose(low, high) else f"{low:.1f}-{high:.1f}"


def _lost(row: Row) -> str:
    level = row.get("noise_threshold")
    if level is None:
        return ""
    return f"{level:.3g}" if math.isfinite(level) else "never"
