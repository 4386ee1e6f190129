"""The command `tokinfo plan`: what a study will fetch and hold."""

from __future__ import annotations

from typing import Annotated

import typer

from tokinfo.cli.options import Config, ConfigFiles, Files, either, read_study, say


def plan(
    files: Files = None,
    configfile: ConfigFiles = None,
    config: Config = None,
    depths: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="One fetched source, by the number of blocks, in Markdown."
        ),
    ] = None,
) -> None:
    """List what a study will fetch and what its jobs will hold; fetches nothing.

    \b
    Examples:
      tokinfo plan studies/llama.yaml
      tokinfo plan studies/llama.yaml --depths llama-2-70b
    """
    from tokinfo.workflow.downloads import depth_table, table

    study = read_study(either(files, configfile), config)
    say(table(study) if depths is None else depth_table(study, depths))
