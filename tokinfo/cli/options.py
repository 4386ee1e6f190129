"""Which study a command is about: its options, and reading it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokinfo.io.errors import InvalidError, plain

if TYPE_CHECKING:
    from tokinfo.study.prompts import Message
    from tokinfo.study.study import Study

ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--configfile",
        help="Study to read; given more than once, later files override earlier ones, as in "
        "Snakemake.  [default: config.yaml]",
        show_default=False,
    ),
]

Files = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[FILE]...", help="Study to read, as --configfile.", show_default=False),
]

StudyFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--study",
        "--configfile",
        help="Study whose model, solvers and metric weights are used; may be given more than once, "
        "as in Snakemake.  [default: config.yaml for a model that is no path and no repository]",
        show_default=False,
    ),
]

Config = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        metavar="KEY=VALUE",
        help="Value over the study's, as in Snakemake; may be given more than once.",
        show_default=False,
    ),
]


def say(text: str, *, err: bool = False) -> None:
    """Print a text, whatever it holds: every line of a command that is no table goes this way."""
    typer.echo(plain(text), err=err)


def either(files: list[Path] | None, configfile: list[Path] | None) -> list[Path] | None:
    """Return the study's files, whichever way they were named; raises InvalidError of both."""
    if files and configfile:
        raise InvalidError("FILE and --configfile: allowed: one of them")
    return files or configfile


def read_study(configfile: list[Path] | None, config: list[str] | None = None) -> Study:
    """Return the study of the given files and values, or print all mistakes and exit with 1."""
    from tokinfo.study.files import parse
    from tokinfo.study.load import load_study
    from tokinfo.study.mistakes import StudyError

    if not configfile and not Path("config.yaml").exists():
        raise InvalidError(
            f"{Path.cwd()}: holds no config.yaml; allowed: `--configfile STUDY`, or a "
            "directory that has one, as a clone of tokinfo does"
        )
    over = parse(config or [])
    try:
        return load_study(configfile or [Path("config.yaml")], over)
    except StudyError as error:
        say(str(error), err=True)
        count = len(error.mistakes)
        say(f"{count} problem{'s' * (count != 1)}; nothing was started", err=True)
        raise typer.Exit(1) from None


def read_messages(file: Path) -> list[Message]:
    """Return the messages of a chat from a YAML or JSON file; raises TokinfoError, one line."""
    from pydantic import TypeAdapter, ValidationError

    from tokinfo.study.files import load
    from tokinfo.study.mistakes import Mistake
    from tokinfo.study.prompts import Chat

    chat: TypeAdapter[list[Message]] = TypeAdapter(Chat)
    try:
        return chat.validate_python(load(file).content)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ("messages", *wrong["loc"])
        raise InvalidError(
            str(Mistake(where, wrong["input"], wrong["msg"], file=str(file)))
        ) from None
