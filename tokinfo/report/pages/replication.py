"""The page on the source chapter, row by row: what it states, what was found here, do they agree?

Every number is read from the table `replication` when the page is written. Like the other pages
it is one file with no script and nothing fetched, and everything from the study is text.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tokinfo.report.pages.template import write_page
from tokinfo.tables.replication import counts
from tokinfo.tables.verdicts import VERDICTS


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
    run = found.filter(pl.col("verdict") != "not run")
    joint = run.filter(pl.col("joint_found").is_not_null(), "hides")
    waiting: dict[tuple[str, str, str], list[str]] = {}
    for row in found.filter(verdict="not run").iter_rows(named=True):
        alike = (row["stand_in"], row["reason"], row["command"] or "")
        waiting.setdefault(alike, []).append(row["row"])
    by_verdict = counts(found).group_by("answered_by", maintain_order=True)
    write_page(
        page,
        "replication.html",
        name=name,
        description=description,
        stated=found["row"].n_unique(),
        run=run["row"].n_unique(),
        by_chapter_model=run.filter(stand_in="")["row"].n_unique(),
        verdicts=VERDICTS,
        counts=[(who, part["rows"].to_list()) for (who,), part in by_verdict],
        joint=len(joint),
        returned=len(joint.filter(joint_returned=1)),
        descended=len(joint.filter(found=1)),
        chapter_models=run.filter(stand_in="").to_dicts(),
        stand_ins=run.filter(pl.col("stand_in") != "").to_dicts(),
        waiting=list(waiting.items()),
    )
