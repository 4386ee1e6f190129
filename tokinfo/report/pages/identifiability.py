"""The page on identifiability: not found, or not there?

Every number is computed from the long table when the page is written. Like the token strips
it is one file with no script and nothing fetched, and whatever comes from the study is text.
"""

from __future__ import annotations

from pathlib import Path

from tokinfo.report.pages.template import write_page
from tokinfo.study.targets import other_model
from tokinfo.tables.identifiability import (
    SETTING,
    finding,
    hidden_rows,
    independent,
    noise_table,
    searches,
    unexplained,
    verdicts,
)


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
    table = verdicts(rows)
    keys = [*SETTING, "metric", "solver"]
    thresholds = {
        tuple(row[key] for key in keys): row for row in noise_table(rows).iter_rows(named=True)
    }
    models = [(one, rows.filter(model=one)) for one in dict.fromkeys(row["model"] for row in table)]
    solvers = searches(rows)
    write_page(
        page,
        "identifiability.html",
        name=name,
        description=description,
        swept=rows["around"].is_not_null().any(),
        findings=[(*one, found) for one in solvers if (found := finding(rows, one[0]))],
        models=[
            (model, solver, found)
            for model, part in models
            for solver, _ in solvers
            if (found := finding(part, solver))
        ],
        independent=independent(rows),
        unexplained=[row | {"other": other_model(row["target"])} for row in unexplained(recovery)],
        prior=any(row["prior_bits"] is not None for row in table),
        rows=[
            row | {"threshold": thresholds.get(tuple(row[key] for key in keys))} for row in table
        ],
    )
