"""The command line: `tokinfo validate`, `cells`, `plan`, `clean`, `invert`, `sweep` and others.

Every command imports what it needs when it runs, so that `tokinfo --help` is quick.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tokinfo.cli.clean import clean
from tokinfo.cli.flow import flow
from tokinfo.cli.options import Config, ConfigFiles, Files, either, read_study, say
from tokinfo.cli.parity import parity
from tokinfo.cli.plan import plan
from tokinfo.cli.prompt import invert, sweep, tokens
from tokinfo.io.errors import InvalidError, foreseen

if TYPE_CHECKING:
    from tokinfo.study.cell import Cell

SCHEMA = Path("docs/study.schema.json")
WIDE = 10_000
"""Columns of a table that goes into a file or a pipe: no line of it is broken."""


class Commands(TyperGroup):
    """Ends any command whose error was foreseen with one line and status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever reads has enough
            raise
        except Exception as error:
            text = foreseen(error)
            if text is None:
                raise
            say(text, err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    help="Measure how much information passes between the tokens of a language model.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"tokinfo {version('tokinfo')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Measure how much information passes between the tokens of a language model."""


@app.command()
def validate(files: Files = None, configfile: ConfigFiles = None, config: Config = None) -> None:
    """Check a study and list everything that is wrong with it.

    \b
    Examples:
      tokinfo validate studies/chapter.yaml
      tokinfo validate --config device=cuda
    """
    study = read_study(either(files, configfile), config)
    cells = study.cells()
    models = {cell.model for cell in cells}
    sets = {cell.prompts for cell in cells}
    prompts = sum(map(study.prompt_count, sets))
    say(
        f"{study.name}: valid. {len(cells)} cells, {len(models)} models, "
        f"{prompts} prompts, outputs in {study.results}/"
    )


@app.command()
def cells(
    files: Files = None,
    configfile: ConfigFiles = None,
    config: Config = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON list instead of a table.")
    ] = False,
) -> None:
    """List the cells of a study: one line for each job of the inversion stage.

    \b
    Examples:
      tokinfo cells studies/smoke.yaml
      tokinfo cells studies/smoke.yaml --json
    """
    study = read_study(either(files, configfile), config)
    found = study.cells()
    if as_json:
        rows = [{**cell.model_dump(), "path": f"{study.results}/{cell.path}"} for cell in found]
        say(json.dumps(rows, indent=1))
        return
    _print_table(found, study.name)


def _print_table(found: tuple[Cell, ...], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tokinfo.study.cell import Cell

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in Cell.model_fields:
        table.add_column(name, overflow="fold")
    for cell in found:
        # Text, because rich would read a mask such as `[1:]` as markup.
        table.add_row(*(Text(_word(value)) for value in cell.model_dump().values()))
    console.print(table)
    say(f"{title}: {len(found)} cells")


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


@app.command()
def schema(
    out: Annotated[Path, typer.Option(help="Where the schema is kept.")] = SCHEMA,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 if it is out of date.")
    ] = False,
) -> None:
    """Write the JSON Schema of a study, for editors that complete and check YAML."""
    from tokinfo.io.atomic import new_file
    from tokinfo.study.form import schema_text

    text = schema_text()
    current = out.read_text(encoding="utf-8") if out.is_file() else None
    if check:
        if current is None:
            raise InvalidError(f"{out}: there is no such file; `tokinfo schema` writes it")
        if current != text:
            say(f"{out}: out of date; `tokinfo schema` renews it", err=True)
            raise typer.Exit(1)
        say(f"{out}: up to date")
        return
    with new_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    say(f"{out}: written")


app.command()(invert)
app.command()(sweep)
app.command()(flow)
app.command()(tokens)
app.command()(clean)
app.command()(parity)
app.command()(plan)

if __name__ == "__main__":
    app()
