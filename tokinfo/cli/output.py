"""What `tokinfo invert` and `tokinfo sweep` print: a table of positions, and sentences below it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokinfo.io.errors import plain
from tokinfo.report.pages.strips import show

_WIDE = 200
"""Columns of a table that goes into a file or a pipe."""


def print_rows(rows: list[dict[str, Any]], *, sweep: bool, heading: str) -> None:
    """Print the rows of one prompt, as `tokinfo.cell.make_rows` gives them, under a heading."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("position", "visible", "true", "found", "rank", "margin", "bits", "verdict"):
        right = name in ("position", "rank", "margin", "bits")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        judged = row.get("rank") is not None
        table.add_row(
            str(row["position"]),
            "yes" if row["visible"] else "hidden",
            # Text, because rich would read a token such as `[b]` as markup.
            Text(show(row["true_token"])),
            Text(_found(row, sweep)),
            f"{row['rank']:,}" if judged else "",
            _margin(row) if judged else "",
            _bits(row) if judged else "",
            _verdict(row, sweep),
        )
    console.print(plain(heading), markup=False, highlight=False)
    console.print(table)
    for line in _summary(rows, sweep):
        console.print(line, markup=False, highlight=False)


def _found(row: dict[str, Any], sweep: bool) -> str:
    if row["given"]:
        return "(known)"
    if row["found_token"] is None:
        return "(not swept)"
    found = show(row["found_token"])
    if not row["correct"] and found == show(row["true_token"]):
        found = f"{found}#{row['found_id']}"  # two tokens may read alike
    return found


def _margin(row: dict[str, Any]) -> str:
    return f"{row['margin']:.3g}"


def _bits(row: dict[str, Any]) -> str:
    low, high = row["bits"], row["bits_high"]
    if low is None:
        return ""
    bounds = f"{low:.1f}" if math.isclose(low, high) else f"{low:.1f} to {high:.1f}"
    return f"{bounds} of {math.log2(row['vocabulary']):.1f}"


def _verdict(row: dict[str, Any], sweep: bool) -> str:
    if row["given"]:
        return ""
    if row.get("identified") is None:
        return "" if sweep else "found" if row["correct"] else "not found"
    words = str(row["identified"])
    if row["identified"] == "ambiguous":
        words += f" ({row['candidates']:,} candidates)"
    level = row.get("noise_threshold")
    if level is not None:
        lost = f", lost at noise {level:.3g} (steps of x{row['noise_step']:.3g})"
        words += lost if math.isfinite(level) else ", no noise loses it"
    return words if sweep else f"{'found' if row['correct'] else 'not found'}, {words}"


def _summary(rows: list[dict[str, Any]], sweep: bool) -> Iterator[str]:
    """Yield what the rows say about the prompt as a whole."""
    first = rows[0]
    floor = f"noise floor {first['noise_floor']:.3g}"
    hidden = [row for row in rows if not row["visible"] and not row["given"]]
    controls = sum(row["independent"] for row in hidden)
    if controls:
        yield (
            f"Nothing visible depends on {controls} of the hidden tokens: they are controls, and "
            "no number below counts them."
        )
    hidden = [row for row in hidden if not row["independent"]]
    swept = [row for row in rows if row.get("identified") and not row["independent"]]
    identifiable = [row for row in swept if row["identified"] == "identifiable"]
    if sweep:
        if swept or hidden:
            yield (
                f"Identifiable: {len(identifiable)} of {len(swept)} swept positions, the other "
                f"tokens known: an upper bound of what any search could claim ({floor})."
            )
        return
    yield (
        f"Prompt: {first['verdict']} (found tokens at distance {first['found_loss']:.3g}, true "
        f"prompt at {first['true_loss']:.3g}, {floor}; {first['evaluations']:,} prompts tried)."
    )
    if not hidden:
        return
    correct = sum(row["correct"] for row in hidden)
    if first.get("around") is None:
        yield (
            f"Found {correct} of {len(hidden)} hidden tokens; nothing was swept around the found "
            "prompt, so none counts as recovered."
        )
        return
    recovered = sum(row["correct"] and first["verdict"] == "certified" for row in identifiable)
    yield (
        f"Recovered {recovered} of {len(hidden)} hidden tokens: found ({correct}), in a certified "
        f"prompt ({'yes' if first['verdict'] == 'certified' else 'no'}), and identifiable around "
        f"it ({len(identifiable)})."
    )
