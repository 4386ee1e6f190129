"""`tokinfo flow`: which position of a prompt carries which token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokinfo.cli import asking
from tokinfo.cli.options import Config, StudyFiles
from tokinfo.cli.prompt import opened, prompt_of, request_of
from tokinfo.io.errors import InvalidError

if TYPE_CHECKING:
    from tokinfo.report.figures.flow import Map

Sites = Annotated[
    list[str],
    typer.Option(
        "--site",
        help="Where activations are read, as for invert. May be given more than once.",
        show_default=False,
    ),
]
Drawn = Annotated[
    Path | None,
    typer.Option(help="Also draw the maps: a .svg, .png or .pdf file.", show_default=False),
]
_WIDE = 120


def flow(
    model: asking.ModelName,
    site: Sites,
    prompt: asking.PromptText = None,
    messages: asking.Messages = None,
    out: Drawn = None,
    minutes: asking.Minutes = None,
    study: StudyFiles = None,
    config: Config = None,
    device: asking.Device = None,
    quantization: asking.QuantizationName = "float32",
    dtype: asking.Dtype = None,
    no_special_tokens: asking.NoSpecialTokens = False,
    trust_remote_code: asking.Trust = False,
) -> None:
    """Say which position carries which token of a prompt.

    Every token is replaced by all others, the rest of the prompt as it is. What is printed is the
    smallest change at its own position and at later ones, as a share of the activations there.

    \b
    Examples:
      tokinfo flow "The sky is blue." --model models/mine --site block.1 --out flow.svg
      tokinfo flow "The sky is blue." --model models/mine --site block.1 --site block.8
    """
    if out is not None and out.suffix not in (".svg", ".png", ".pdf"):
        raise InvalidError(f"--out {out}: allowed: a file that ends in .svg, .png or .pdf")
    text = prompt_of(prompt, messages)
    requests = [
        request_of(
            *(model, one, study, config, device, quantization, dtype, not no_special_tokens),
            *(trust_remote_code, False, None),
        )
        for one in site
    ]
    # The blocks that the deepest site needs serve the others too.
    deepest = max(requests, key=lambda request: _depth(request.site))
    found = opened(deepest).flow(text, site=site, minutes=minutes)
    for one in found.maps:
        _print(one)
    if out is not None:
        from tokinfo.io.atomic import new_file

        with new_file(out) as partial:
            found.plot().savefig(partial, format=out.suffix[1:], dpi=150)


def _depth(site: str) -> float:
    from tokinfo.study.sites import Site

    block = Site.parse(site).block
    return math.inf if block == -1 else block


def _print(one: Map) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=one.site)
    columns: tuple[tuple[str, Any], ...] = (
        ("#", "right"),
        ("token", "left"),
        ("here", "right"),
        ("elsewhere", "right"),
        ("most at", "left"),
    )
    for name, side in columns:
        table.add_column(name, justify=side, no_wrap=True, overflow="ellipsis")
    for number, place in enumerate(one.rows):
        shares = {
            at: share
            for at, share in zip(one.columns, one.shares[number].tolist(), strict=True)
            if share == share
        }
        here = shares.pop(place, None)
        most = max(shares, key=lambda at: shares[at], default=None)
        table.add_row(
            str(place),
            Text(one.tokens[place]),
            "" if here is None else _percent(here),
            "" if most is None else _percent(shares[most]),
            Text("" if most is None else f"{most} {one.tokens[most]}"),
        )
    console.print(table)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
