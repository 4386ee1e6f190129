"""Which cells a benchmark measures: models and blocks of a study's results, prompts of a text."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from exact import passages

from tokinfo.models.checkpoint import Checkpoint, load


@dataclass(frozen=True)
class Chosen:
    """One model cut after a block, and passages of the text in its tokens."""

    model: str
    block: int
    checkpoint: Checkpoint
    prompts: list[str]


def parser(description: str | None, cells: Sequence[str], prompts: int) -> argparse.ArgumentParser:
    """Return a parser of the arguments that benchmarks of cells share; ``cells``: the default."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("results", type=Path)
    arguments.add_argument("text", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--cells", nargs="+", default=list(cells), help="model/block")
    arguments.add_argument("--prompts", type=int, default=prompts)
    arguments.add_argument("--tokens", type=int, default=8)
    return arguments


def chosen(options: argparse.Namespace) -> Iterator[Chosen]:
    """Load the requested cells, one after another."""
    for name in options.cells:
        model, block = name.rsplit("/", 1)
        checkpoint = load(options.results / "checkpoints" / model / block)
        prompts = passages(options.text, checkpoint, options.prompts, options.tokens)
        yield Chosen(model, int(block), checkpoint, prompts)
