"""The command `tokinfo plan`: what a study will fetch and hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    configfile: Annotated[
        list[Path] | None,
        typer.Option(
            "--configfile",
            help="Study to read, as of the other commands.  [default: config.yaml]",
            show_default=False,
        ),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="One fetched source, by the number of blocks, in Markdown."
        ),
    ] = None,
) -> None:
    """Say what a study will fetch and what its jobs will hold; nothing is fetched for it."""
    from tokinfo.cli import read_study
    from tokinfo.plan import depth_table, table

    study = read_study(configfile)
    try:
        typer.echo(table(study) if depths is None else depth_table(study, depths))
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
