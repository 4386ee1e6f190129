"""`tokinfo parity`: does the probe read what `transformers` computes? As a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokinfo.cli.options import say

if TYPE_CHECKING:
    from torch import nn

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

    In float32, at the embedding and at blocks 1, 2 and last; exits with 1 if a site differs or
    all are refused. At the embedding and blocks 1 and 2, checkpoints that end there are read, as
    a study would.
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
        with checkpoints(model, config, decoder) as cut:
            rows = compare(decoder, ids, cut)
    except (TokinfoError, OSError, ValueError) as error:
        say(f"{model}: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    _print(rows)
    agree = sum(row.passes() for row in rows)
    differ = sum(row.error is not None and not row.passes() for row in rows)
    worst = max((row.error for row in rows if row.error is not None), default=float("nan"))
    say(
        f"{type(decoder).__name__}, {prompts} prompts of {tokens} random tokens (seed {seed}): "
        f"{agree} of {len(rows)} agree to {TOLERANCE:.0e}; largest error {worst:.1e}"
    )
    window = getattr(config, "sliding_window", None)
    if window is not None and window >= tokens:
        say(f"The sliding window ({window}) is not left; --tokens {window + 2} would do so.")
    if (getattr(config, "quantization_config", None) or {}).get("load_in_8bit"):
        say("LLM.int8 rounds by what is in the batch: after a prefix it may differ.")
    if differ or not agree:
        raise typer.Exit(1)


@contextmanager
def checkpoints(
    model: Path, config: Any, decoder: nn.Module
) -> Iterator[Callable[[int], nn.Module] | None]:
    """Give what reads a model's first blocks as a study does, from checkpoints made for this.

    At the last block, where nothing is cut, the whole decoder stands for a copy of all files. So
    does it everywhere where the weights are packed: they are a checkpoint already.
    """
    from tokinfo.models.checkpoint import read_config, read_decoder, shorter
    from tokinfo.models.streaming import write_decoder
    from tokinfo.models.weights import weights_in
    from tokinfo.study.sources import Model

    if getattr(config, "quantization_config", None) is not None:
        yield None
        return
    with TemporaryDirectory() as scratch:

        def cut(number: int) -> nn.Module:
            if number > 2:
                return decoder
            out = Path(scratch) / str(number)
            out.mkdir()
            write_decoder(
                weights_in(model, config, number), shorter(config, number), Model(source="it"), out
            )
            found: nn.Module = read_decoder(out, read_config(out))
            return found.requires_grad_(False).train(False)

        yield cut


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
