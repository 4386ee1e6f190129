"""The page of token strips: each prompt, and under every token what came back in its place.

One file with no script and nothing fetched. Everything that comes from a prompt or a
tokenizer is text to be shown, never markup: it is escaped, invisible characters are spelled
out, and each token is isolated from the writing direction of its neighbours.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from tokinfo.io.atomic import new_file
from tokinfo.report.pages.template import HEAD, LEGEND
from tokinfo.report.pages.template import text as _text
from tokinfo.tables.recovery import OTHERS_KNOWN, OWN_TARGET, TableError, display_order, scan
from tokinfo.tables.schema import CELL_KEYS
from tokinfo.tables.summary import shares, shares_by_cell

MOST_BYTES = 2_000_000
"""The page's size aimed at; what does not fit is left out and said to be."""

_LONGEST = 24
"""Characters of a token that are shown."""

_SHOWN_AS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\ufffd": "�"}
# Control, format (writing direction among them), surrogate, private, unassigned, separators.
_SPELLED_OUT = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}

_SECTION = tuple(key for key in CELL_KEYS if key not in ("metric", "seed"))
"""What a section is about; it shows one metric and one seed unless all fit."""

_COLUMNS = (
    *CELL_KEYS,
    "depth",
    "prompt_id",
    "position",
    "visible",
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

    Cells of a sweep around the true prompt are left out, and said to be: they are told the
    other tokens, so what they show right was not found by searching. So are controls, under whose
    targets nothing can be found.

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
    every = scan(recovery)
    told = every.filter(OTHERS_KNOWN).select(CELL_KEYS).unique().collect(engine="streaming")
    controls = scan(recovery, controls=True).select(CELL_KEYS).unique()
    notes = [
        note.format(count=count)
        for note, count in (
            (_SWEEPS, len(told)),
            (_CONTROLS, len(controls.collect(engine="streaming"))),
        )
        if count
    ]
    rows = every.filter(~OTHERS_KNOWN)
    by_cell = shares_by_cell(recovery, OWN_TARGET & ~OTHERS_KNOWN)
    if by_cell.is_empty():
        if not notes:
            raise TableError(f"{recovery}: has no rows")
        with new_file(page) as partial:
            partial.write_text(_no_search(name, notes), encoding="utf-8")
        return
    sizes = rows.group_by(*CELL_KEYS, "prompt_id").len().collect(engine="streaming")
    chosen = _choose(by_cell, sizes, most_bytes)
    shown = rows.select(_COLUMNS).join(chosen.cells.lazy(), on=list(CELL_KEYS), how="semi")
    table = shown.filter(pl.col("prompt_id") < chosen.prompts).collect(engine="streaming")
    sections = _sections(chosen.cells, by_cell)
    anchors = {section: f"s{i}" for i, section in enumerate(sections)}
    frames = table.partition_by(CELL_KEYS, as_dict=True, maintain_order=True)
    title = f"Token strips: {name}" if name else "Token strips"
    with new_file(page) as partial, partial.open("w", encoding="utf-8") as out:
        out.write(HEAD.format(title=_text(title)))
        out.write(f"<h1>{_text(title)}</h1>")
        if description:
            out.write(f"<p>{_text(description)}")
        out.writelines(_numbers(rows, by_cell))
        out.write(LEGEND)
        out.writelines(_left_out(chosen))
        out.writelines(notes)
        out.writelines(_index(sections, anchors))
        for section, cells in sections.items():
            out.writelines(_section(section, anchors[section], cells, frames))
        out.write("</main></html>\n")


_SWEEPS = (
    "<p class=note>{count:,} cells of sweeps are not on this page and in none of its numbers: a "
    "sweep is told the other tokens, so it bounds what a search could find and finds nothing "
    "itself. <code>pages/identifiability.html</code> shows them."
)
_CONTROLS = (
    "<p class=note>{count:,} cells of controls are not on this page and in none of its numbers: no "
    "prompt explains their targets. <code>pages/identifiability.html</code> says what came out."
)


def _no_search(name: str, notes: Sequence[str]) -> str:
    """Return the page of a study that holds sweeps and controls alone."""
    title = _text(f"Token strips: {name}" if name else "Token strips")
    said = f"<p>No search in this study.{''.join(notes)}"
    return f"{HEAD.format(title=title)}<h1>{title}</h1>{said}</main></html>\n"


# --- what fits ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """The cells and the number of prompts that the page shows, and why not all."""

    cells: pl.DataFrame
    prompts: int
    of_cells: int
    of_prompts: int
    reasons: tuple[str, ...] = ()


def _choose(by_cell: pl.DataFrame, sizes: pl.DataFrame, most_bytes: int) -> _Chosen:
    """Cut the study down until its page is estimated to fit."""
    cells = by_cell.group_by(CELL_KEYS, maintain_order=True).agg(
        pl.col("loss").first(),
        seen=pl.col("top1").filter(pl.col("visible")).first(),
    )
    prompts = int(sizes["prompt_id"].max()) + 1  # type: ignore[arg-type]
    chosen = _Chosen(cells, prompts, len(cells), prompts)
    cuts: Sequence[tuple[tuple[str, ...], list[str], list[bool], str]] = (
        # Losses of different seeds are in the same units; the smallest is what a searcher keeps.
        (
            tuple(key for key in CELL_KEYS if key != "seed"),
            ["loss", "seed"],
            [False, False],
            "of each cell the seed with the smallest loss",
        ),
        # Losses of different metrics are not; what came back where all can see it is compared.
        (
            _SECTION,
            ["seen", "metric"],
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


def _left_out(chosen: _Chosen) -> Iterator[str]:
    if chosen.reasons:
        yield (
            f"<p class=note><strong>Not everything is here.</strong> This page shows "
            f"{len(chosen.cells):,} of {chosen.of_cells:,} cells: {'; '.join(chosen.reasons)}. "
            "Left out are the others, to keep the page small; <code>tables/recovery.csv</code> "
            "and <code>tables/recovery.parquet</code> hold every cell and prompt."
        )
    else:
        yield f"<p class=note>All {chosen.of_cells:,} cells of the study are on this page."


# --- the numbers at the top ---------------------------------------------------------------


def _numbers(rows: pl.LazyFrame, by_cell: pl.DataFrame) -> Iterator[str]:
    """Say in numbers what came back, model by model."""
    yield "<h2>What came back</h2>"
    # Model by model: the prompts of all cells of one are held, not of all.
    names = by_cell["model"].unique(maintain_order=True)
    pooled = pl.concat([shares(rows.filter(model=name), ["model"]) for name in names])
    unseen = pooled.filter(~pl.col("visible"))
    if unseen.is_empty():
        yield "<p>No hidden positions in this study: every mask shows all tokens."
    else:
        chance = round(1 / float(unseen["chance_top1"].max()))  # type: ignore[arg-type]
        yield (
            "<p>Share of tokens found exactly (top-1), with a 95 % interval over prompts. "
            "<em>Hidden, all searches</em> pools every site, mask, metric and solver of the "
            "study that hides something; <em>best cell</em> is the one that found most hidden "
            "tokens, chosen in hindsight; <em>visible</em> pools every cell and says how well the "
            "search itself works. "
            f"Guessing would find at most 1 in {chance:,} hidden tokens."
        )
    yield (
        "<div class=wide><table><thead><tr><th>model<th>hidden, all searches<th>hidden, best cell"
        "<th>which cell<th>visible, all searches</thead><tbody>"
    )
    hidden_cells = by_cell.filter(~pl.col("visible"))
    models = {row["model"]: display_order(row) for row in pooled.to_dicts()}
    for model in sorted(models, key=models.__getitem__):
        both = {row["visible"]: row for row in pooled.filter(model=model).to_dicts()}
        best = hidden_cells.filter(model=model).sort("top1", descending=True).head(1).to_dicts()
        yield (
            f"<tr><th>{_text(model)}<td>{_share(both.get(False))}"
            f"<td>{_share(best[0] if best else None)}"
            f"<td>{_cell_words(best[0]) if best else ''}<td>{_share(both.get(True))}"
        )
    yield "</tbody></table></div>"


def _share(row: Cell | None) -> str:
    """Return a share with its interval and numbers, as text."""
    if row is None:
        return "<span class=none>none</span>"
    found = round(row["top1"] * row["positions"])
    return (
        f"<b>{100 * row['top1']:.1f} %</b> <span class=ci>"
        f"({100 * row['top1_low']:.1f} to {100 * row['top1_high']:.1f}; "
        f"{found:,} of {row['positions']:,})</span>"
    )


def _cell_words(cell: Cell) -> str:
    return _text(f"{cell['site']}, mask {cell['mask']}, {cell['metric']}, {cell['solver']}")


# --- sections -----------------------------------------------------------------------------

Section = tuple[Any, ...]


def _sections(cells: pl.DataFrame, by_cell: pl.DataFrame) -> dict[Section, list[Cell]]:
    """Return the shares of each section's cells, in the order of the figures' models."""
    kept = by_cell.join(cells, on=list(CELL_KEYS), how="semi", maintain_order="left")
    found: dict[Section, list[Cell]] = {}
    for row in sorted(kept.to_dicts(), key=lambda row: (display_order(row), row["block"])):
        found.setdefault(tuple(row[key] for key in _SECTION), []).append(row)
    return found


def _index(sections: dict[Section, list[Cell]], anchors: dict[Section, str]) -> Iterator[str]:
    """Link to every section, a line per model and site, with its hidden share."""
    yield (
        "<h2>Index</h2><p>Each link leads to a section below (click its title to open it). "
        "Numbers are the share of hidden tokens found, in percent.<ul class=index>"
    )
    for (model, site), of_site in groupby(sections, key=_named("model", "site")):
        yield f"<li><b>{_text(model)}</b> {_text(site)}"
        for (mask,), of_mask in groupby(of_site, key=_named("mask")):
            links = []
            for section in of_mask:
                label = section[_SECTION.index("solver")] + _variants(section)
                hidden = [cell["top1"] for cell in sections[section] if not cell["visible"]]
                best = f" {100 * max(hidden):.0f}" if hidden else ""
                links.append(f"<a href=#{anchors[section]}>{_text(label)}</a>{best}")
            yield f" · mask <code>{_text(mask)}</code> {', '.join(links)}"
    yield "</ul><h2>Strips</h2>"


def _named(*names: str) -> Callable[[Section], tuple[Any, ...]]:
    """Return a function that takes these fields out of a section's key."""
    places = [_SECTION.index(name) for name in names]
    return lambda section: tuple(section[place] for place in places)


def _variants(section: Section) -> str:
    """Return in what a section differs from how a model is usually run."""
    cell = dict(zip(_SECTION, section, strict=True))
    words = [
        text
        for text, present in (
            ("no residual", not cell["residual"]),
            ("acausal", not cell["causal"]),
            ("padded", cell["padding"] != "none"),
            (cell["parametrisation"], cell["parametrisation"] != "embedding"),
        )
        if present
    ]
    return f" ({', '.join(words)})" if words else ""


def _section(
    section: Section,
    anchor: str,
    cells: Sequence[Cell],
    frames: dict[tuple[Any, ...], pl.DataFrame],
) -> Iterator[str]:
    cell = dict(zip(_SECTION, section, strict=True))
    title = f"{cell['model']} · {cell['site']} · mask {cell['mask']} · {cell['solver']}"
    yield (
        f"<details id={anchor}><summary>{_text(title + _variants(section))} "
        f"<span class=ci>{_text(cell['prompts'])}</span></summary>"
    )
    keys = dict.fromkeys(tuple(row[key] for key in CELL_KEYS) for row in cells)
    for key in keys:
        own = [row for row in cells if tuple(row[k] for k in CELL_KEYS) == key]
        yield f"<h4>{_text(own[0]['metric'])}, seed {own[0]['seed']}</h4><p class=ci>"
        yield "; ".join(
            f"{'visible' if row['visible'] else 'hidden'}: {_share(row)}" for row in own
        )
        frame = frames.get(key)
        if frame is not None:
            rows = frame.sort("prompt_id", "position").to_dicts()
            for _, prompt in groupby(rows, key=lambda row: row["prompt_id"]):
                yield from _strip(prompt)
    yield "</details>\n"


def _strip(rows: Iterable[Cell]) -> Iterator[str]:
    """Show one prompt: a column per position, the true token above the found one."""
    yield "<p class=s>"
    for row in rows:
        kind = "r" if row["correct"] else "t" if row["in_top5"] else "w"
        classes = kind if row["visible"] else f'"{kind} h"'
        true, found = show(row["true_token"]), show(row["found_token"])
        if not row["correct"] and true == found:
            # Two tokens may read alike (bytes of one character do): only ids tell them apart.
            true, found = f"{true}#{row['true_id']}", f"{found}#{row['found_id']}"
        title = ""
        if kind == "t":
            title = f' title="top 5: {_text(", ".join(map(show, row["top5_tokens"] or [])))}"'
        yield f"<i class={classes}{title}><b>{_text(true)}</b><u>{_text(found)}</u></i>"


def show(token: str) -> str:
    r"""Return a token as visible text: whitespace as signs, what cannot be seen as its code.

    >>> show(" blue"), show("\n"), show("\u202e"), show("")
    ('·blue', '↵', '⟨U+202E⟩', '∅')
    """
    if not token:
        return "∅"
    parts = [
        _SHOWN_AS[letter]
        if letter in _SHOWN_AS
        else f"⟨U+{ord(letter):04X}⟩"
        if unicodedata.category(letter) in _SPELLED_OUT
        else letter
        for letter in token[:_LONGEST]
    ]
    if unicodedata.category(token[0]) in ("Mn", "Mc", "Me"):
        parts.insert(0, "◌")  # a combining mark needs something to stand on
    if len(token) > _LONGEST:
        parts.append("…")
    return "".join(parts)
