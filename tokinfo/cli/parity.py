"""`tokinfo parity`: does the probe read what `transformers` computes? As a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokinfo.cli.options import say

if TYPE_CHECKING:
    from tokinfo.probe.parity import Row

_WIDE = 200
"""Columns of a table that goes into a file or a pipe."""


def parity(
    model: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint of a study, or any directory written by save_pretrained."
        ),
    ],
    seed: Annotated[int, typer.Option(help="Draws the prompts' token ids.")] = 0,
    tokens: Annotated[
        int, typer.Option(min=2, help="Tokens of a prompt, at most the model's positions.")
    ] = 12,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts, as one batch.")] = 2,
) -> None:
    """Compare the activations of a model, site by site, with the hidden states of transformers.

    In float32, at the embedding and at blocks 1, 2 and last; exits with 1 if a site differs.
    """
    import torch

    from tokinfo.io.errors import TokinfoError
    from tokinfo.models.bitsandbytes import import_bitsandbytes
    from tokinfo.models.checkpoint import read_config, read_decoder
    from tokinfo.probe.parity import TOLERANCE, compare

    try:
        config = read_config(model)
        if getattr(config, "quantization_config", None) is not None:
            import_bitsandbytes()
        decoder = read_decoder(model, config).requires_grad_(False).train(False)
        limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_ctx"))
        tokens = min([tokens, *(limit for limit in limits if isinstance(limit, int))])
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(config.vocab_size, (prompts, tokens), generator=generator)
        rows = compare(decoder, ids)
    except (TokinfoError, OSError, ValueError) as error:
        say(f"{model}: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    _print(rows)
    failed = sum(not row.passes() for row in rows)
    worst = max((row.error for row in rows if row.error is not None), default=float("nan"))
    say(
        f"{type(decoder).__name__}, {prompts} prompts of {tokens} random tokens (seed {seed}): "
        f"{len(rows) - failed} of {len(rows)} agree to {TOLERANCE:.0e}; largest error {worst:.1e}"
    )
    window = getattr(config, "sliding_window", None)
    if window is not None and window >= tokens:
        say(f"The sliding window ({window}) is not left; --tokens {window + 2} would do so.")
    if (getattr(config, "quantization_config", None) or {}).get("load_in_8bit"):
        say("LLM.int8 rounds by what is in the batch: after a prefix it may differ.")
    if failed:
        raise typer.Exit(1)


def _print(rows: list[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("site", "read", "reference", "max relative error", "verdict"):
        right = name == "max relative error"
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        table.add_row(row.site, row.read, row.reference, error, _verdict(row))
    console.print(table)


def _verdict(row: Row) -> str:
    if row.error is None:
        return f"refused: {row.refusal}"
    return "ok" if row.passes() else "DIFFERS"
