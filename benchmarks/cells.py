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
    """Return a parser of what every benchmark of cells is asked; ``cells`` are the default ones."""
    asked = argparse.ArgumentParser(description=description)
    asked.add_argument("results", type=Path)
    asked.add_argument("text", type=Path)
    asked.add_argument("out", type=Path)
    asked.add_argument("--cells", nargs="+", default=list(cells), help="model/block")
    asked.add_argument("--prompts", type=int, default=prompts)
    asked.add_argument("--tokens", type=int, default=8)
    return asked


def chosen(asked: argparse.Namespace) -> Iterator[Chosen]:
    """Load the cells asked for, one after another."""
    for name in asked.cells:
        model, block = name.rsplit("/", 1)
        checkpoint = load(asked.results / "checkpoints" / model / block)
        prompts = passages(asked.text, checkpoint, asked.prompts, asked.tokens)
        yield Chosen(model, int(block), checkpoint, prompts)
