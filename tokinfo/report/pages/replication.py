"""The page on the source chapter, row by row: what it states, what came out, do they agree?

Every number is read from the table `replication` when the page is written. Like the other pages
it is one file with no script and nothing fetched, and whatever comes from the study is text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tokinfo.io.atomic import new_file
from tokinfo.report.pages.template import HEAD, text
from tokinfo.tables.replication import counts
from tokinfo.tables.verdicts import VERDICTS

Row = dict[str, Any]


def write_replication_page(
    table: Path, page: Path, *, name: str = "", description: str = ""
) -> None:
    """Write the page on the chapter's rows.

    Args:
        table: the table `replication`, as parquet.
        page: HTML file to write.
        name: title of the study.
        description: what it is about.
    """
    found = pl.read_parquet(table)
    rows = found.to_dicts()
    title = text(f"Does it agree? {name}".strip())
    with new_file(page) as partial, partial.open("w", encoding="utf-8") as out:
        out.write(HEAD.format(title=title))
        out.write(f"<h1>{title}</h1>")
        if description:
            out.write(f"<p>{text(description)}")
        out.writelines(_summary(found))
        out.write(_WORDS)
        own = [row for row in rows if not row["stand_in"] and row["verdict"] != "not run"]
        stand_ins = [row for row in rows if row["stand_in"] and row["verdict"] != "not run"]
        out.writelines(_rows("Rows answered by their own models", own))
        out.writelines(_rows("Rows answered by stand-ins", stand_ins, stood_in=True))
        out.writelines(_waiting([row for row in rows if row["verdict"] == "not run"]))
        out.write("</main></html>\n")


def _summary(found: pl.DataFrame) -> Iterator[str]:
    stated = found["row"].n_unique()
    run = found.filter(pl.col("verdict") != "not run")
    own = run.filter(pl.col("stand_in") == "")["row"].n_unique()
    yield (
        f"<h2>The finding</h2><p>Of {stated} measured statements, {own} were run with the model "
        f"they are about, and {run['row'].n_unique() - own} more with a stand-in only."
    )
    yield "<table><thead><tr><th>answered by"
    yield "".join(f"<th>{text(word)}" for word in VERDICTS) + "</thead><tbody>"
    for (answered_by,), part in counts(found).group_by("answered_by", maintain_order=True):
        cells = "".join(
            f"<td>{count}" + f" <span class=ci>({empty} hollow)</span>" * bool(empty)
            for count, empty in part.select("rows", "hollow").iter_rows()
        )
        yield f"<tr><th>{text(answered_by)}{cells}\n"
    yield "</tbody></table>"
    asked = run.filter(pl.col("joint_found").is_not_null(), "hides")
    if len(asked):
        back = len(asked.filter(pl.col("joint_returned") == 1))
        yield (
            f"<p>Of the {len(asked)} answers with hidden tokens that joint search was asked for, "
            f"it finds every hidden token and certifies the prompt in {back}, told as little as "
            f"descent; the published descent finds them in every run in "
            f"{len(asked.filter(pl.col('found') == 1))}."
        )


_WORDS = """<h2>Words</h2>
<p><b>Found</b>: share of runs in which all tokens in question (the hidden ones, or every one where
the mask hides none) came out by the row's own criterion, with its 95 % interval over
initialisations, or over starts where there is one model. <b>Agrees</b>: at least half of the runs
came out as the chapter's one did; of a stated share, the interval meets it. <b>Settled</b>: the
interval leaves one half out. <b>Hollow</b>: the tokens are not found here, but fewer than half of
the visible ones came back either: the search failed, and no more is said. <b>Agrees, but it is
the optimiser</b>: the tokens are not found here
either, although a sweep identifies most of them (with the other tokens known, no token but the true
one explains the visible activations) or joint search, told as little as descent, finds them and
certifies the prompt. <b>Margin</b>: how much further off the best wrong token is
(median), beside the noise floor. <b>Bits</b>: what a swept position gives away of its token (mean,
lower bound). <b>Over more prompts</b>: share of the tokens in question over all prompts that the
row was asked of, its own and passages of held-out text, with intervals over prompts. Settings of
the published protocol that the chapter does not state are the <code>chapter</code> solver's.
"""


def _rows(title: str, rows: list[Row], *, stood_in: bool = False) -> Iterator[str]:
    if not rows:
        return
    yield f"<h2>{title}</h2><div class=wide><table><thead><tr>"
    heads = (
        *("row and verdict", "published text", "text here", "found: published", "found: here"),
        *("by adam", "by joint search", "identifiable", "margin (floor)", "bits", "visible"),
        "over more prompts",
        *("site, mask, metric", "model"),
    )
    yield "".join(f"<th>{head}" for head in heads) + "</thead><tbody>"
    for row in rows:
        yield (
            f"<tr><th>{text(row['row'])}<br>"
            f"<b>{text(row['verdict'])}</b>{'' if row['settled'] else ', not settled'}"
            f"{'<br>hollow: the search failed' * bool(row['hollow'])}"
            f"<td class=words>{_text(row['published'])}<td class=words>{_text(row['ours'])}"
            f"<td class=words>{text(row['published_found'])} <span class=ci>"
            f"({text(row['criterion'])})</span>"
            f"<td>{row['runs_found']} of {row['runs']} runs<br>{_interval(row, 'found')}"
            f"<td>{_search(row, 'adam')}<td>{_search(row, 'joint')}"
            f"<td>{_percent(row['identifiable'])}<br>{_interval(row, 'identifiable')}"
            f"<td>{_margin(row)}<td>{_bits(row)}<td>{_percent(row['visible_found'])}"
            f"<td class=words>{_prompts(row)}<td>{_setting(row)}"
            f"<td class=words>{_model(row, stood_in)}\n"
        )
    yield "</tbody></table></div>"


def _search(row: Row, kind: str) -> str:
    """Return what another search found, and beside it of the visible tokens."""
    found, visible = row[f"{kind}_found"], row[f"{kind}_visible"]
    of_visible = (
        "" if visible is None else f"<br><span class=ci>visible: {_percent(visible)}</span>"
    )
    return _percent(found) + of_visible


def _prompts(row: Row) -> str:
    """Return what was found of all prompts a row was asked of, where there are several."""
    if row["n_prompts"] == 1:
        return ""
    told = [f"{row['n_prompts']} prompts"]
    for key, what in (
        *(("found", "as published"), ("adam", "adam"), ("joint", "joint search")),
        ("identifiable", "identifiable"),
    ):
        if row[f"prompts_{key}"] is not None:
            share = f"{_percent(row[f'prompts_{key}'])} {_interval(row, f'prompts_{key}')}"
            told.append(f"{what}: {share}")
    return "<br>".join(told)


def _model(row: Row, stood_in: bool) -> str:
    words = f"{text(row['state'])} {text(row['size'])}"
    if stood_in:
        words = f"{text(row['stand_in'])}, for {text(row['claimed_model'])}: {words}"
    words += f"; {row['initialisations']} initialisation{'s' * (row['initialisations'] != 1)}"
    if row["trained_tokens"] is not None:
        words += (
            f"; {row['trained_tokens']:,} tokens seen, held-out loss {row['held_out_loss']:.2f}"
        )
    if row["loss_gap"] is not None:
        words += f" ({row['loss_gap']:+.2f} beside the chapter's)"
    return words


def _setting(row: Row) -> str:
    words = [f"{text(row['site'])}, <code>{text(row['mask'])}</code>, {text(row['metric'])}"]
    words += ["no residual"] * (not row["residual"]) + ["acausal"] * (not row["causal"])
    words += ["padded"] * (row["padding"] == "n_ctx")
    words += ["vocabulary"] * (row["parametrisation"] == "vocabulary")
    return ", ".join(words)


def _waiting(rows: list[Row]) -> Iterator[str]:
    if not rows:
        return
    yield (
        "<h2>Not run</h2><div class=wide><table><thead><tr><th>rows<th>why<th>what would run them"
        "</thead><tbody>"
    )
    alike: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        key = (row["stand_in"], row["reason"], row["command"] or "")
        alike.setdefault(key, []).append(row["row"])
    for (stand_in, reason, command), names in alike.items():
        stands = f"<br><span class=ci>{text(stand_in)}</span>" if stand_in else ""
        yield (
            f"<tr><td class=words>{text(', '.join(names))}{stands}<td class=words>{text(reason)}"
            f"<td class=words><code>{text(command)}</code>\n"
        )
    yield "</tbody></table></div>"


def _percent(value: float | None) -> str:
    return "<span class=none>not run</span>" if value is None else f"{100 * value:.0f}&nbsp;%"


def _interval(row: Row, name: str) -> str:
    if row[name] is None:
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"<span class=ci>({100 * low:.0f} to {100 * high:.0f}&nbsp;%)</span>"


def _margin(row: Row) -> str:
    if row["margin"] is None:
        return ""
    return f"{row['margin']:.3g} <span class=ci>({row['noise_floor']:.1g})</span>"


def _bits(row: Row) -> str:
    if row["bits"] is None:
        return ""
    return f"{row['bits']:.1f} of {math.log2(row['vocabulary']):.1f}"


def _text(value: str | None) -> str:
    return f"<code>{text(value)}</code>" if value else "<span class=none>none printed</span>"
