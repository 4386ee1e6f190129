"""The page on identifiability: not found, or not there?

Every number is computed from the long table when the page is written. Like the token strips
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
from tokinfo.study.targets import other_model
from tokinfo.tables.identifiability import (
    SETTING,
    Finding,
    finding,
    hidden_rows,
    noise_table,
    unexplained,
    unseen,
    verdicts,
)
from tokinfo.tables.intervals import Share
from tokinfo.tables.schema import POSITION_VERDICTS, PROMPT_VERDICTS

Row = dict[str, Any]

DESCENT = ("chapter", "adam")
"""Searches by descent alone, the published one and the better one."""


def write_identifiability(
    recovery: Path, page: Path, *, name: str = "", description: str = ""
) -> None:
    """Write the page on what is identifiable beside what was found.

    Args:
        recovery: the long table.
        page: HTML file to write.
        name: title of the study.
        description: what it is about.

    Raises:
        TableError: the long table cannot be read or has another schema.
    """
    rows = hidden_rows(recovery)
    controls = [*map(_unseen, unseen(rows)), *map(_unexplained, unexplained(recovery))]
    title = text(f"Not found, or not there? {name}".strip())
    with new_file(page) as partial, partial.open("w", encoding="utf-8") as out:
        out.write(HEAD.format(title=title))
        out.write(f"<h1>{title}</h1>")
        if description:
            out.write(f"<p>{text(description)}")
        if rows["around"].drop_nulls().is_empty():
            out.write(
                "<p class=note>No cell of this study was swept, so nothing here says what the "
                "visible activations identify. Add a grid with a solver of kind "
                "<code>sweep</code> (what is there) or <code>joint</code> (what a search can "
                "find and certify) to the study."
            )
            if controls:
                out.writelines(_controls(controls))
        else:
            table = verdicts(rows)
            out.writelines(_finding(rows))
            out.write(_WORDS)
            if any(row["prior_bits"] is not None for row in table):
                out.write(_PRIOR)
            out.writelines(_controls(controls))
            out.writelines(_table(table, noise_table(rows)))
        out.write("</main></html>\n")


# --- the finding --------------------------------------------------------------------------


def _finding(rows: pl.DataFrame) -> Iterator[str]:
    """State in two sentences what was found, what is there, and what was certified."""
    yield "<h2>The finding</h2>"
    descent, joint = finding(rows, DESCENT), finding(rows, ("joint",))
    yield f"<p>{_descent_sentence(descent)} {_joint_sentence(joint)}"
    yield (
        "<p class=ci>Each sentence is about the settings (model, site, mask) where both of its "
        "sides ran; of several cells of one kind in a setting the best one counts, chosen in "
        "hindsight. Positions that nothing visible can depend on are left out. Intervals are "
        "95 %, over prompts, not over random weights, training runs or starts; settings that "
        "share their prompts add none."
    )
    models = dict.fromkeys(row["model"] for row in verdicts(rows))
    if len(models) > 1:
        yield (
            "<div class=wide><table><thead><tr><th>model<th>hidden tokens<th>found by descent"
            "<th>identifiable<th>found by joint search<th>recovered</thead><tbody>"
        )
        for model in models:
            own = rows.filter(model=model)
            first, second = finding(own, DESCENT), finding(own, ("joint",))
            either = first or second
            if either is None:
                continue
            yield (
                f"<tr><th>{text(model)}<td>{either.positions:,}"
                f"<td>{_share(first.found if first else None)}<td>{_share(either.identifiable)}"
                f"<td>{_share(second.found if second else None)}"
                f"<td>{_share(second.recovered if second else None)}"
            )
        yield "</tbody></table></div>"


def _descent_sentence(found: Finding | None) -> str:
    if found is None:
        return (
            "No setting of this study has both a descent and a sweep, so what descent does not "
            "find cannot be told from what is not there."
        )
    return (
        f"Of {_tokens(found)} descent found {_share(found.found)}, while "
        f"{_share(found.identifiable)} are <strong>identifiable</strong>: with the other "
        "tokens known, no token but the true one explains the visible activations to within "
        "twice the noise floor."
    )


def _joint_sentence(found: Finding | None) -> str:
    if found is None:
        return "No setting of this study has both a joint search and a sweep."
    certified = "gave no verdicts"
    if found.certified is not None:
        certified = f"certified {_share(found.certified)} of its prompts"
    recovered = ""
    if found.recovered is not None:
        recovered = (
            f", and {_share(found.recovered)} of the tokens are <strong>recovered</strong> in full "
            "(found, the prompt certified, and identifiable around the found prompt)"
        )
    return (
        f"Of {_tokens(found)}, {_share(found.identifiable)} of them identifiable, a joint search "
        f"that was told none of them found {_share(found.found)}; it {certified}{recovered}."
    )


def _tokens(found: Finding) -> str:
    settings = f"{found.settings:,} setting{'s' * (found.settings != 1)}"
    prompts = f"{found.prompts:,} prompt{'s' * (found.prompts != 1)}"
    return f"{found.positions:,} hidden tokens ({settings}, {prompts})"


def _share(share: Share | None) -> str:
    if share is None:
        return "<span class=none>none</span>"
    return (
        f"<b>{100 * share.value:.1f}&nbsp;%</b> "
        f"<span class=ci>({100 * share.low:.1f} to {100 * share.high:.1f})</span>"
    )


_WORDS = """<h2>Words</h2>
<p><b>Identifiable</b>: in a sweep of every token at one position, only the true one lies within
twice the noise floor of the visible activations. <b>Ambiguous</b>: it and others do.
<b>Excluded</b>: it does not, which around the <em>true</em> prompt is a fault until explained, and
around a <em>found</em> prompt means that the found prompt is wrong elsewhere. A sweep <em>around
the true prompt</em> knows the other tokens and bounds what anyone could claim; one <em>around the
found prompt</em> is what an observer without the truth could claim.
<p><b>Certified</b>: the found prompt's visible activations equal the target's to within the noise
floor. <b>Search failure</b>: they are further off than the true prompt's by more than the floor,
so the search is to blame and never the model. <b>Bits</b>: information on a token, if the other
tokens are known: the logarithm of all candidates over those that the activations leave open, which
are the ones within twice the noise floor of the best (lower bound) or as good as the best (upper
bound). <b>Noise threshold</b>: noise-to-signal ratio on the visible activations at which the true
token stops being the best.
"""

_PRIOR = """<p><b>Prior bits</b>: the same for a reader who knows how often each token occurs in the
study's prior text: minus the logarithm of the prior probability of the candidates left open. The
prior is the text's token counts plus one each (Laplace's rule of succession; Manning and Schütze
1999, section 6.2.2); it knows nothing of context. In brackets, what a token of that text holds
on average (the prior's entropy); tokens that are rarer there hold more.
"""


# --- controls -----------------------------------------------------------------------------


def _controls(rows: list[Row]) -> Iterator[str]:
    yield "<h2>Controls</h2>"
    if not rows:
        yield (
            "<p>None in this study: no swept position lies right of every visible one, and no "
            "cell has a target that nothing explains. A causal model with a mask such as "
            "<code>:2</code>, or <code>targets: [shuffled]</code>, would give some."
        )
        return
    bad = sum(not row["as_must"] for row in rows)
    verdict = (
        "All come out so."
        if not bad
        else f"<strong>{bad} of {len(rows)} do not: nothing else on this page may be believed "
        "before that is explained.</strong>"
    )
    yield (
        "<p>Settings in which it is known beforehand what must come out; they enter no share. In a "
        "causal model nothing visible depends on a token <em>right of every visible one</em>, even "
        "where the prompt is certified. And no prompt explains activations whose <em>positions "
        "are shuffled</em> (they still hold its tokens), or those of <em>another model</em>. "
        f"{verdict}"
        "<div class=wide><table><thead><tr><th>control<th>model<th>site<th>mask<th>solver, metric"
        "<th>must come out<th>came out<th>as it must</thead><tbody>"
    )
    for row in rows:
        yield (
            f"<tr><th>{text(row['control'])}{_names(row, 'td')}"
            f"<td>{text(row['solver'])}, {text(row['metric'])}"
            f"<td class=words>{row['must']}<td class=words>{'; '.join(row['came'])}"
            f"<td>{'yes' if row['as_must'] else '<b>NO</b>'}\n"
        )
    yield "</tbody></table></div>"


def _unseen(row: Row) -> Row:
    """Say what came out right of every visible token."""
    came = [
        f"{row['ambiguous']:,} of {row['swept']:,} ambiguous",
        f"{row['whole']:,} with the whole vocabulary",
        f"most bits {row['bits']:.2f}",
    ]
    if row["around"] == "found":
        came += [_chance(row), f"{row['certified']:,} of {row['n_prompts']:,} prompts certified"]
    must = "every position ambiguous with the whole vocabulary, 0 bits"
    return row | {"control": "right of every visible token", "must": must, "came": came}


def _unexplained(row: Row) -> Row:
    """Say what came out under a target that no prompt explains."""
    other = other_model(row["target"])
    came = [f"{row['certified']:,} of {row['n_prompts']:,} prompts certified"]
    if row["swept"]:
        came.append(f"{row['identifiable']:,} of {row['swept']:,} positions identifiable")
    if row["kind"] != "sweep":
        came.append(_chance(row))
    return row | {
        "control": "positions shuffled" if other is None else f"activations of {other}",
        "must": "no prompt certified, no position identifiable",
        "came": came,
    }


def _chance(row: Row) -> str:
    return (
        f"{row['found']:,} of {row['positions']:,} hidden tokens found "
        f"(chance: 1 in {row['vocabulary']:,})"
    )


# --- the table ----------------------------------------------------------------------------


def _table(rows: list[Row], noise: pl.DataFrame) -> Iterator[str]:
    yield (
        "<h2>Every model, site and mask</h2>"
        "<p>Counts of hidden positions (identifiable, ambiguous, excluded) and of prompts "
        "(certified, search failure, undecided). Margin: median of how much further off the best "
        "wrong token is than the true one, in noise floors. Bits: means of the lower and upper "
        "bounds, of what knowing the token takes. Noise threshold: median with its interval, where "
        "six prompts or more allow one; the same in <code>tables/noise.csv</code>."
    )
    if not rows:
        yield "<p>Nothing but controls was swept in this study."
        return
    keys = [*SETTING, "metric", "solver"]
    thresholds = {tuple(row[key] for key in keys): row for row in noise.to_dicts()}
    prior = any(row["prior_bits"] is not None for row in rows)
    heads = (
        *("model", "site", "mask", "solver, metric", "swept around", *POSITION_VERDICTS),
        *(*PROMPT_VERDICTS, "margin / floor", "bits", *(["prior bits"] if prior else [])),
        "noise threshold",
    )
    yield "<div class=wide><table><thead><tr>" + "".join(f"<th>{head}" for head in heads)
    yield "</thead><tbody>"
    for row in rows:
        known = row["around"] == "true"
        yield f"<tr>{_names(row)}<td>{text(row['solver'])}, {text(row['metric'])}"
        yield f"<td>{text(row['around'])} prompt"
        yield "".join(f"<td>{row[name]:,}" for name in POSITION_VERDICTS)
        # Around the true prompt nothing was searched: there is no prompt to judge.
        yield "".join(f"<td>{'' if known else format(row[name], ',')}" for name in PROMPT_VERDICTS)
        yield f"<td>{_margin(row['margin_floors'])}<td>{_bits(row)}"
        yield f"<td>{_prior_bits(row)}" if prior else ""
        yield f"<td>{_threshold(thresholds.get(tuple(row[key] for key in keys)))}\n"
    yield "</tbody></table></div>"


def _names(row: Row, first: str = "th") -> str:
    """Return the cells that name a setting: model (and how it was run), site, mask."""
    words = [
        words
        for words, present in (
            ("no residual", not row["residual"]),
            ("acausal", not row["causal"]),
            ("padded", row["padding"] != "none"),
        )
        if present
    ]
    run = f" <span class=ci>({', '.join(words)})</span>" if words else ""
    return (
        f"<{first}>{text(row['model'])}{run}<td>{text(row['site'])}"
        f"<td><code>{text(row['mask'])}</code>"
    )


def _margin(value: float | None) -> str:
    if value is not None and math.isinf(value):
        return "no noise at all" if value > 0 else "none"
    return _number(value)


def _bits(row: Row) -> str:
    if row["bits"] is None:
        return ""
    return f"{row['bits']:.1f} to {row['bits_high']:.1f} of {math.log2(row['vocabulary']):.1f}"


def _prior_bits(row: Row) -> str:
    if row["prior_bits"] is None:
        return "<span class=none>no prior</span>"
    low, high, average = row["prior_bits"], row["prior_bits_high"], row["prior_entropy"]
    return f"{low:.1f} to {high:.1f} <span class=ci>(the text's tokens: {average:.1f})</span>"


def _threshold(row: Row | None) -> str:
    if row is None:
        return "<span class=none>not measured</span>"
    words = _number(row["threshold"])
    if row["threshold_low"] is not None:
        ends = f"{_number(row['threshold_low'])} to {_number(row['threshold_high'])}"
        words += f" <span class=ci>({ends})</span>"
    return words


def _number(value: float | None) -> str:
    """Return a number in three digits; infinite ones in words."""
    if value is None:
        return ""
    if math.isinf(value):
        return "above all tried"
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"
