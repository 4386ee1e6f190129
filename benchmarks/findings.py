r"""Numbers of docs/findings.md and of the evidence's README, from the tables: write or check them.

    python benchmarks/findings.py            # writes every number anew
    python benchmarks/findings.py --check    # fails where one is not what its table says

A number stands between a marker and its end:

    <!--= joint.csv model=flat => share hidden_found/hidden -->0 of 20 (0.00 to 0.16)<!--/-->

The marker names a table, the rows (`key=value`; `a|b` for either; `!=` for none of them; quotes as
in a shell) and what is stated of them:

- `share FOUND/ALL`: totals over the rows with a 95 % interval. Where a table has totals only, it is
  Wilson's with as many trials as PROMPTS: tokens of one prompt are not independent, and this is
  the most cautious reading of their share. `share FOUND/ALL by COLUMN`: prompts are in that column.
- `point`: one row of a scaling table, whose interval (over prompts) is in the row.
- `interval COLUMN`: one row's share with the interval of COLUMN_low and COLUMN_high.
- `runs`: one row of the replication: runs that found what it asks for, and the interval in the row.
- `value`, `least`, `most COLUMN`: one row's value, or the smallest or largest of several.
- `count`: how many rows there are.
"""

from __future__ import annotations

import argparse
import csv
import re
import shlex
import sys
from pathlib import Path

from tokinfo.tables.intervals import wilson

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "docs" / "evidence"
DOCUMENTS = (ROOT / "docs" / "findings.md", EVIDENCE / "README.md")
NUMBER = re.compile(r"<!--= (\S+)(.*?) => (.*?) -->(.*?)<!--/-->", re.DOTALL)
Row = dict[str, str]


def rows_of(table: Path, conditions: str) -> list[Row]:
    """Return the rows of a table that meet conditions such as ``model=flat solver=adam|joint``.

    Raises:
        ValueError: no row meets them, or the table has no such column.
    """
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for condition in shlex.split(conditions):
        key, _, values = condition.partition("=")
        unequal, key = key.endswith("!"), key.removesuffix("!")
        if key not in rows[0]:
            raise ValueError(f"{table.name}: no column {key!r}")
        rows = [row for row in rows if (row[key] in values.split("|")) != unequal]
        if not rows:
            raise ValueError(f"{table.name}: no row with {conditions.strip()}")
    return rows


def stated(table: Path, conditions: str, what: str) -> str:
    """Return what a table says, in the words that stand in the text.

    Raises:
        ValueError: it says nothing of that kind.
    """
    rows = rows_of(table, conditions)
    kind, _, rest = what.partition(" ")
    if kind == "count":
        return f"{len(rows):,}"
    if kind == "share":
        counts, _, by = rest.partition(" by ")
        found, _, everything = counts.partition("/")
        hits, trials, prompts = (
            sum(int(row[column]) for row in rows) for column in (found, everything, by or "prompts")
        )
        low, high = wilson(hits / trials * prompts, prompts)
        return f"{hits:,} of {trials:,} ({low:.2f} to {high:.2f})"
    if kind in ("least", "most"):
        values = [float(row[rest]) for row in rows]
        return short(min(values) if kind == "least" else max(values))
    if kind not in ("point", "runs", "interval", "value"):
        allowed = "share, point, runs, interval, value, least, most, count"
        raise ValueError(f"{what!r}: allowed: {allowed}")
    if len(rows) != 1:
        raise ValueError(f"{table.name}: {len(rows)} rows with {conditions.strip()}, not one")
    (row,) = rows
    if kind == "value":
        return short(float(row[rest]))
    if kind == "interval":
        return f"{float(row[rest]):.2f} {between(row, f'{rest}_')}"
    if kind == "runs":
        return f"{int(row['runs_found']):,} of {int(row['runs']):,} {between(row, 'found_')}"
    hits = round(float(row["share"]) * int(row["tokens"]))
    return f"{hits:,} of {int(row['tokens']):,} {between(row)}"


def between(row: Row, of: str = "") -> str:
    """Return the interval of a row."""
    return f"({float(row[f'{of}low']):.2f} to {float(row[f'{of}high']):.2f})"


def short(value: float) -> str:
    """Return a number in two significant digits, or whole where it is large.

    >>> short(0.0749), short(5.62), short(47216.4), short(99.6)
    ('0.075', '5.6', '47,216', '100')
    """
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:.2g}"


def rewritten(text: str, evidence: Path = EVIDENCE) -> str:
    """Return a text in which every marked number is what its table says.

    Raises:
        ValueError: a table is missing, or says nothing of the kind.
    """

    def number(match: re.Match[str]) -> str:
        table, conditions, what, before = match.groups()
        try:
            now = stated(evidence / table, conditions, what)
        except OSError:
            raise ValueError(f"{table}: there is no such table") from None
        except KeyError as error:
            raise ValueError(f"{table}: no column {error}") from None
        return match.group(0).replace(f"-->{before}<!--/-->", f"-->{now}<!--/-->")

    return NUMBER.sub(number, text)


def differences(document: Path) -> list[str]:
    """Say of every marked number that is not what its table says what it should be."""
    text = document.read_text(encoding="utf-8")
    pairs = zip(NUMBER.finditer(text), NUMBER.finditer(rewritten(text)), strict=True)
    return [
        f"{document.name}: {old[4]!r} should be {new[4]!r} ({old[1]}{old[2]})"
        for old, new in pairs
        if old[4] != new[4]
    ]


def main() -> None:
    """Write or check the documents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    if parser.parse_args().check:
        if wrong := [line for document in DOCUMENTS for line in differences(document)]:
            sys.exit("\n".join(wrong))
        return
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        document.write_text(rewritten(text), encoding="utf-8")


if __name__ == "__main__":
    main()
