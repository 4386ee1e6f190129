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
from tokinfo.cli.options import Config, ConfigFiles, read_messages, read_study, say
from tokinfo.cli.parity import parity
from tokinfo.cli.plan import plan
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
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def validate(configfile: ConfigFiles = None, config: Config = None) -> None:
    """Check a study and list everything that is wrong with it."""
    study = read_study(configfile, config)
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
    configfile: ConfigFiles = None,
    config: Config = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON list instead of a table.")
    ] = False,
) -> None:
    """List the cells of a study: one line for each job of the inversion stage."""
    study = read_study(configfile, config)
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
        if current != text:
            say(f"{out}: out of date; `tokinfo schema` renews it", err=True)
            raise typer.Exit(1)
        say(f"{out}: up to date")
        return
    with new_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    say(f"{out}: written")


# A mask such as `-1` or `-3:` begins like an option.
_ONE_PROMPT = {"ignore_unknown_options": True}

ModelName = Annotated[
    str, typer.Argument(help="A model of the study; with --checkpoint, a name for the output.")
]
SiteName = Annotated[
    str, typer.Argument(help="embedding, attention.K, mlp.K, block.K or block.last.")
]
MaskText = Annotated[
    str,
    typer.Argument(
        help="Python slice over the positions that stay visible, such as 1:, or with --messages "
        "what is hidden, such as hide=system."
    ),
]
Prompt = Annotated[
    str | None,
    typer.Argument(help="The prompt, in quotes; left out with --messages.", show_default=False),
]
Messages = Annotated[
    Path | None,
    typer.Option(
        "--messages",
        help="YAML or JSON file with a list of messages, each with a role and a content, in place "
        "of the prompt; the model's chat template makes a text of them.",
    ),
]
Known = Annotated[
    str,
    typer.Option(
        help="Positions whose token is given: none, visible, or a Python slice such as 8:."
    ),
]
Metric = Annotated[str, typer.Option(help="l1, l2, cosine or l1+cosine.")]
SolverName = Annotated[
    str | None,
    typer.Option(
        "--solver",
        help="A solver of the study, or a kind (chapter, adam, sequential, sweep, joint, mixture) "
        "with its default settings.  [default: the study's first of the command's kind]",
        show_default=False,
    ),
]
CheckpointPath = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Use this checkpoint directory; no study is needed."),
]
Judge = Annotated[
    bool,
    typer.Option(
        "--judge",
        help="Sweep the hidden positions around the found prompt: which of its tokens are "
        "identifiable. May take longer than the search.  [default: where the study's solver says "
        "`sweep_found: true`]",
        show_default=False,
    ),
]


def _one_prompt(name: str, kind: str, about: str) -> None:
    """Add the command of this name, which solves one prompt by a solver of a kind."""

    @app.command(name, help=about, context_settings=_ONE_PROMPT)
    def command(
        model: ModelName,
        site: SiteName,
        mask: MaskText,
        prompt: Prompt = None,
        messages: Messages = None,
        known: Known = "none",
        configfile: ConfigFiles = None,
        config: Config = None,
        metric: Metric = "l1",
        solver: SolverName = None,
        checkpoint: CheckpointPath = None,
        judge: Judge = False,
    ) -> None:
        from tokinfo.cli.prompt import Request, answer

        # A checkpoint directory needs no study, unless one is named for its solvers.
        study = read_study(configfile, config) if checkpoint is None or configfile else None
        named = ["--configfile", *map(str, configfile)] if configfile else []
        named += ["--config", *config] if config else []
        if (prompt is None) == (messages is None):
            raise InvalidError("give a prompt, or --messages FILE in its place")
        given = read_messages(messages) if messages is not None else prompt or ""
        if messages is None and not _is_text(given):
            raise InvalidError("the prompt is not UTF-8")
        request = Request(kind, model, site, mask, given, metric, solver, checkpoint, known, judge)
        answer(request, study, named)


def _is_text(given: object) -> bool:
    """Return whether an argument of the command line was UTF-8; other bytes come as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(given))


_one_prompt(
    "invert",
    "joint",
    "Find one prompt from its visible activations alone, and say what is certain of it.",
)
_one_prompt(
    "sweep",
    "sweep",
    "Test every candidate for each hidden position of one prompt, given its other tokens.",
)
app.command()(clean)
app.command()(parity)
app.command()(plan)

if __name__ == "__main__":
    app()
