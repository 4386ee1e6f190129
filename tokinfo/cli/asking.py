"""The options of `tokinfo invert`, `tokinfo sweep` and `tokinfo flow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokinfo.io.errors import InvalidError

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="A checkpoint, a directory written by save_pretrained, a .gguf file, a repository on "
        "the hub (OWNER/NAME or OWNER/NAME@REVISION), or a model of the study.",
        show_default=False,
    ),
]
SiteName = Annotated[
    str,
    typer.Option(
        "--site",
        help="Where activations are read: embedding, attention.K, mlp.K, block.K, block.last, "
        "kv.K, kv.A-B or norm.",
        show_default=False,
    ),
]
Visible = Annotated[
    str | None,
    typer.Option(
        help="Positions that stay visible, as a Python slice.  [default: 1:]", show_default=False
    ),
]
Hide = Annotated[
    list[str] | None,
    typer.Option(
        help="In its place: text in the prompt whose tokens are hidden. May be given more than "
        "once.",
        show_default=False,
    ),
]
PromptText = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The prompt, in quotes.", show_default=False),
]
Messages = Annotated[
    Path | None,
    typer.Option(
        help="YAML or JSON file with a list of messages, each with a role and a content, in place "
        "of the prompt; the model's chat template makes a text of them. --visible may then be "
        "hide=system, or another role.",
        show_default=False,
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
        help="mixture, joint, adam, chapter or sequential, with default settings, or a solver of "
        "the study.  [default: the study's first joint one, else mixture]",
        show_default=False,
    ),
]
SweepName = Annotated[
    str | None,
    typer.Option(
        "--solver",
        help="A sweep of the study.  [default: its first one, else all hidden positions]",
        show_default=False,
    ),
]
Judge = Annotated[
    bool,
    typer.Option(
        "--judge",
        help="Sweep the hidden positions around the found prompt: which of its tokens are "
        "identifiable. May take longer than the search.",
        show_default=False,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Time after which the best so far is printed; Ctrl-C does it at once.",
        show_default=False,
    ),
]
SeedNumber = Annotated[int, typer.Option("--seed", min=0, help="Seed of the starts.")]
Noise = Annotated[
    float,
    typer.Option(
        min=0,
        help="Ratio to the signal of gaussian noise that is added to the visible activations, so "
        "that the search is tested under it.",
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default=False)]
QuantizationName = Annotated[
    str,
    typer.Option("--quantization", help="float32, bfloat16, float16, int8 or nf4."),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="What activations are computed in.  [default: the weights' precision; float32 for "
        "int8 and nf4]",
        show_default=False,
    ),
]
NoSpecialTokens = Annotated[
    bool,
    typer.Option(
        "--no-special-tokens", help="Leave the tokenizer's special tokens out of the prompt."
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the code that the model brings with it."),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="One JSON object: heading, text, certified, correct, recovered, claims, sentences and "
        'rows. A number that is not finite is a string ("inf").',
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Also write the rows to this .parquet file, with the columns of recovery.parquet.",
        show_default=False,
    ),
]
Activations = Annotated[
    Path | None,
    typer.Option(
        help="In place of a prompt: activations that another program captured, [position, width] "
        "in a .safetensors, .npz, .npy or .pt file.",
        show_default=False,
    ),
]
Positions = Annotated[
    str | None,
    typer.Option(
        help="Of --activations: the position of each row, such as 4:9 or 4,5,8.  [default: the "
        "file's, else 0, 1, ...]",
        show_default=False,
    ),
]
Length = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Of --activations: tokens of the prompt.  [default: up to the last position]",
        show_default=False,
    ),
]
Tokens = Annotated[
    list[str] | None,
    typer.Option(
        "--token",
        metavar="POSITION=TEXT",
        help="Of --activations: a token that is known. May be given more than once.  [default: the "
        "tokenizer's special tokens]",
        show_default=False,
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Of --activations: share of their norm by which the true prompt's may differ from "
        "those computed here.  [default: what rounding does]",
        show_default=False,
    ),
]
Everywhere = Annotated[bool, typer.Option("--all", help="Sweep visible positions too.")]
Threshold = Annotated[
    bool,
    typer.Option("--threshold", help="Also find the noise at which each token is lost."),
]


def read_mask(visible: str | None, hide: list[str] | None) -> dict[str, str]:
    """Return the field of a cell that --visible and --hide stand for."""
    from tokinfo.study import asked
    from tokinfo.study.masks import Mask

    text = asked.read_mask(visible, hide)
    Mask(text)  # before torch is imported
    return {"mask": text}


def read_positions(text: str | None, length: int | None) -> list[int] | None:
    """Return positions, of a slice or a list of them."""
    if text is None:
        return None
    from tokinfo.study.masks import Mask

    last = text.split(":")[1] if text.count(":") == 1 else ""
    if length is None and ":" in text and not last.isdecimal():
        raise InvalidError(f"--positions {text}: needs --length, or an end such as 4:9")
    found: list[int] = []
    for part in text.split(","):
        found += Mask(part).positions(length if length is not None else int(last or part) + 1)
    return [place for place in found if length is not None or not last or place < int(last)]


def read_tokens(given: list[str] | None) -> dict[int, str | int] | None:
    """Return tokens by position."""
    if given is None:
        return None
    found: dict[int, str | int] = {}
    for one in given:
        place, equals, text = one.partition("=")
        if not equals or not place.strip().isdecimal() or not text:
            raise InvalidError(f"--token {one!r}: allowed: POSITION=TEXT, such as 0=<s>")
        found[int(place)] = text
    return found
