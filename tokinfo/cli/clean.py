"""The command `tokinfo clean`: what a study's results hold that the study no longer has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokinfo.cli.options import Config, ConfigFiles, read_study, say


def clean(
    configfile: ConfigFiles = None,
    config: Config = None,
    keep: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="STUDY",
            help="Another study that writes to the same directory; what it has stays. May be "
            "given more than once.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="List what would go; remove nothing.")
    ] = False,
) -> None:
    """Remove results of cells, models and sources that a study no longer has."""
    from tokinfo.workflow import running
    from tokinfo.workflow.stale import find, remove, size

    study = read_study(configfile, config)
    others = [read_study([path]) for path in keep or []]
    for path, other in zip(keep or [], others, strict=True):
        if Path(other.results).resolve() != Path(study.results).resolve():
            say(
                f"{path}: writes to {other.results}/, not to {study.results}/: --keep is for "
                "studies that share a directory; nothing was removed",
                err=True,
            )
            raise typer.Exit(1)
    busy = running.busy(Path.cwd())
    if busy is not None and not dry_run:
        say(f"{busy}; nothing was removed", err=True)
        raise typer.Exit(1)
    found = find([study, *others])
    if not dry_run:
        remove(found)
    for entry in found.stale:
        say(f"{size(entry.size):>9}  {study.results}/{entry.path}")
    total = size(sum(entry.size for entry in found.stale))
    would = "would be " if dry_run else ""
    say(f"{len(found.stale)} stale files and directories, {total}, {would}removed")
    for note in found.notes:
        say(f"kept: {study.results}/{note}")
