"""The page of token strips: each prompt, and under every token the one found in its place.

One file with no script and nothing fetched. Everything that comes from a prompt or a
tokenizer is shown as text, never as markup: it is escaped, invisible characters are spelled
out, and each token is isolated from the writing direction of its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from tokinfo.report.pages.template import write_page
from tokinfo.report.tokens import show
from tokinfo.tables.recovery import OTHERS_KNOWN, OWN_TARGET, TableError, display_order, scan
from tokinfo.tables.schema import CELL_KEYS
from tokinfo.tables.summary import shares, shares_by_cell

MOST_BYTES = 2_000_000
"""The page's size aimed at; what does not fit is left out, and the page says so."""

_SECTION = tuple(key for key in CELL_KEYS if key not in ("metric", "seed"))
"""What a section is about; it shows one metric and one seed unless all fit."""

_COLUMNS = (
    *CELL_KEYS,
    "depth",
    "prompt_id",
    "position",
    "visible",
    "given",
    "true_id",
    "true_token",
    "found_id",
    "found_token",
    "top5_tokens",
    "correct",
    "in_top5",
)

Cell = dict[str, Any]


def write_strips(
    recovery: Path,
    page: Path,
    *,
    name: str = "",
    description: str = "",
    most_bytes: int = MOST_BYTES,
) -> None:
    """Write the page of token strips from the long table.

    Cells of a sweep around the true prompt are left out, and the page says so: there the other
    tokens are known, so nothing was found by searching. So are controls, under whose targets
    nothing can be found.

    A study that is too large for the page is cut down in this order, each cut stated on the
    page: one seed a cell, one metric a section (never chosen by what was found at hidden
    positions), fewer prompts a section, fewer sections.

    Args:
        recovery: the long table.
        page: HTML file to write.
        name: title of the study.
        description: what it is about.
        most_bytes: size aimed at.

    Raises:
        TableError: the long table cannot be read or has no rows.
    """
    rows = scan(recovery).filter(~OTHERS_KNOWN)
    by_cell = shares_by_cell(recovery, OWN_TARGET & ~OTHERS_KNOWN)
    sweeps = _cells(scan(recovery).filter(OTHERS_KNOWN))
    controls = _cells(scan(recovery, controls=True))
    searched: dict[str, Any] = {}
    if not by_cell.is_empty():
        sizes = rows.group_by(*CELL_KEYS, "prompt_id").len().collect(engine="streaming")
        chosen = _choose(by_cell, sizes, most_bytes)
        kept = rows.select(_COLUMNS).join(chosen.cells.lazy(), on=list(CELL_KEYS), how="semi")
        table = kept.filter(pl.col("prompt_id") < chosen.prompts).collect(engine="streaming")
        models = _models(rows, by_cell)
        chances = (model.hidden["chance_top1"] for model in models if model.hidden)
        searched = {
            "models": models,
            "chance": max(chances, default=None),
            "chosen": chosen,
            "given": bool(table["given"].any()),
            "sections": _sections(chosen.cells, by_cell, table),
        }
    elif not sweeps + controls:
        raise TableError(f"{recovery}: has no rows")
    write_page(
        page,
        "strips.html",
        name=name,
        description=description,
        sweeps=sweeps,
        controls=controls,
        searched=searched,
    )


def _cells(rows: pl.LazyFrame) -> int:
    return len(rows.select(CELL_KEYS).unique().collect(engine="streaming"))


# --- what fits ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """The cells and the number of prompts that the page shows, and why not all."""

    cells: pl.DataFrame
    prompts: int
    of_cells: int
    reasons: tuple[str, ...] = ()


def _choose(by_cell: pl.DataFrame, sizes: pl.DataFrame, most_bytes: int) -> _Chosen:
    """Cut the study down until its page is estimated to fit."""
    cells = by_cell.group_by(CELL_KEYS, maintain_order=True).agg(
        pl.col("loss").first(),
        visible=pl.col("top1").filter(pl.col("visible")).first(),
    )
    prompts = int(sizes["prompt_id"].max()) + 1  # type: ignore[arg-type]
    chosen = _Chosen(cells, prompts, len(cells))
    cuts: Sequence[tuple[tuple[str, ...], list[str], list[bool], str]] = (
        # Losses of different seeds are in the same units; the smallest is what a searcher keeps.
        (
            tuple(key for key in CELL_KEYS if key != "seed"),
            ["loss", "seed"],
            [False, False],
            "of each cell the seed with the smallest loss",
        ),
        # Losses of different metrics are not; the shares of visible tokens are compared.
        (
            _SECTION,
            ["visible", "metric"],
            [True, False],
            "of each section the metric that found most visible tokens",
        ),
    )
    for by, columns, falling, reason in cuts:
        if _estimate(chosen, sizes) <= most_bytes:
            return chosen
        kept = chosen.cells.sort(columns, descending=falling, nulls_last=True)
        kept = kept.unique(by, keep="first", maintain_order=True)
        kept = chosen.cells.join(kept, on=list(CELL_KEYS), how="semi", maintain_order="left")
        if len(kept) < len(chosen.cells):
            chosen = replace(chosen, cells=kept, reasons=(*chosen.reasons, reason))
    while _estimate(chosen, sizes) > most_bytes and chosen.prompts > 1:
        chosen = replace(chosen, prompts=chosen.prompts - 1)
    if chosen.prompts < prompts:
        reason = f"the first {chosen.prompts} prompts of each set"
        chosen = replace(chosen, reasons=(*chosen.reasons, reason))
    if (size := _estimate(chosen, sizes)) > most_bytes:
        fits = max(1, int(len(chosen.cells) * most_bytes / size))
        # Evenly through the study, so that no model is left out for coming last.
        index = [i * len(chosen.cells) // fits for i in range(fits)]
        chosen = replace(
            chosen, cells=chosen.cells[index], reasons=(*chosen.reasons, "an even choice of cells")
        )
    return chosen


def _estimate(chosen: _Chosen, sizes: pl.DataFrame) -> int:
    """Return about how many bytes the strips of these cells and prompts take."""
    kept = sizes.filter(pl.col("prompt_id") < chosen.prompts).join(
        chosen.cells, on=list(CELL_KEYS), how="semi"
    )
    return 20_000 + 62 * int(kept["len"].sum()) + 30 * len(kept) + 500 * len(chosen.cells)


# --- the numbers at the top ---------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """Shares of a model's tokens that one search found: pooled, and in its best cell."""

    name: str
    solver: str
    hidden: Cell | None
    visible: Cell | None
    best: Cell | None


def _models(rows: pl.LazyFrame, by_cell: pl.DataFrame) -> list[_Model]:
    first = {row["model"]: row for row in by_cell.to_dicts()}
    found = []
    for name in sorted(first, key=lambda name: display_order(first[name])):
        of_model = by_cell.filter(model=name)
        for solver in of_model["solver"].unique().sort():
            # One by one: the prompts of all cells of one are held, not of all. Searches of
            # different strength are not pooled.
            mine = {"model": name, "solver": solver}
            pooled = shares(rows.filter(**mine), list(mine)).to_dicts()
            best = of_model.filter(~pl.col("visible"), solver=solver).sort("top1", descending=True)
            found.append(
                _Model(
                    **{"name": name, "solver": solver},
                    hidden=next((row for row in pooled if not row["visible"]), None),
                    visible=next((row for row in pooled if row["visible"]), None),
                    best=next(best.iter_rows(named=True), None),
                )
            )
    return found


# --- sections -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Token:
    """A position of a strip: its outcome, and its tokens (the five best where one is right)."""

    outcome: str
    true: str
    found: str
    five: str | None


@dataclass(frozen=True)
class _Strips:
    """A cell: its shares of hidden and visible tokens, and its prompts."""

    shares: list[Cell]
    strips: list[list[_Token]]


@dataclass(frozen=True)
class _Section:
    """Cells that differ in metric and seed alone, and the best share of hidden tokens there."""

    key: Cell
    hidden: float | None
    cells: list[_Strips]


def _sections(cells: pl.DataFrame, by_cell: pl.DataFrame, table: pl.DataFrame) -> list[_Section]:
    """Return the sections, in the order of the figures' models."""
    frames = table.sort("prompt_id", "position").partition_by(CELL_KEYS, as_dict=True)
    kept = by_cell.join(cells, on=list(CELL_KEYS), how="semi", maintain_order="left")
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Cell]]] = {}
    for row in sorted(kept.to_dicts(), key=lambda row: (display_order(row), row["block"])):
        section = found.setdefault(tuple(row[key] for key in _SECTION), {})
        section.setdefault(tuple(row[key] for key in CELL_KEYS), []).append(row)
    sections = []
    for of_section in found.values():
        rows = [row for of_cell in of_section.values() for row in of_cell]
        hidden = max((row["top1"] for row in rows if not row["visible"]), default=None)
        strips = [
            _Strips(of_cell, _strips(frames.get(key, table.clear())))
            for key, of_cell in of_section.items()
        ]
        sections.append(_Section(rows[0], hidden, strips))
    return sections


def _strips(table: pl.DataFrame) -> list[list[_Token]]:
    rows = table.iter_rows(named=True)
    return [
        [_token(row) for row in prompt] for _, prompt in groupby(rows, lambda row: row["prompt_id"])
    ]


def _token(row: Cell) -> _Token:
    outcome = "g" if row["given"] else "r" if row["correct"] else "t" if row["in_top5"] else "w"
    true, found = show(row["true_token"]), show(row["found_token"])
    if not row["correct"] and true == found:
        # Two tokens may read alike (bytes of one character do): only their ids differ.
        true, found = f"{true}#{row['true_id']}", f"{found}#{row['found_id']}"
    five = ", ".join(map(show, row["top5_tokens"] or [])) if outcome == "t" else None
    return _Token(outcome if row["visible"] else f"{outcome} h", true, found, five)
