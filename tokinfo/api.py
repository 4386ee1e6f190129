"""For a person: one call for any model, in a notebook or a script.

>>> import tokinfo as ti
>>> ti.load  # doctest: +ELLIPSIS
<function load at ...>

`load` opens a model; its methods hide tokens of a prompt and look for them. The same rooms are used
as by a study's cells, so the numbers are the same. `invert` also takes activations that another
program captured, of a prompt that nobody here knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tokinfo.io.errors import InvalidError
from tokinfo.model import Model
from tokinfo.models.borrowed import Borrowed
from tokinfo.models.opening import Named
from tokinfo.report.answer import Result
from tokinfo.report.flow import Flow
from tokinfo.study import sources
from tokinfo.study.asked import validated

__all__ = ["Flow", "Model", "Result", "invert", "load"]

_MODEL: TypeAdapter[sources.Model] = TypeAdapter(sources.Model)


def load(
    model: Any,
    tokenizer: Any = None,
    *,
    device: str = "auto",
    quantization: str = "float32",
    dtype: str | None = None,
    special_tokens: bool = True,
    trust_remote_code: bool = False,
) -> Model:
    """Open a model. Of one that is named, the blocks are read when a site needs them, no others.

    Args:
        model: a directory written by ``save_pretrained``, a checkpoint of a study, a .gguf file, a
            repository on the hub (``OWNER/NAME``, ``OWNER/NAME@REVISION``), or a model of
            transformers in memory. One in memory is used as it is: device, precision,
            quantisation and hooks are kept, and after a call it is what it was before.
        tokenizer: of a model in memory: its fast tokenizer.
        device: of a named model: ``auto``, ``cpu`` or ``cuda``.
        quantization: of a named model: ``float32``, ``bfloat16``, ``float16``, ``int8`` or ``nf4``.
        dtype: of a named model: what activations are computed in; None: the weights' precision,
            and float32 for int8 and nf4.
        special_tokens: whether prompts get the special tokens that the tokenizer adds.
        trust_remote_code: run the code that a named model brings with it.

    Raises:
        TokinfoError: there is no such model, or it is of a kind that cannot be probed.

    A model in memory, here one of a block with random weights:

    >>> from tokinfo.examples import tiny_model
    >>> model = load(*tiny_model())
    >>> model
    <model LlamaForCausalLM: 2 blocks>
    """
    if not isinstance(model, str | Path):
        if tokenizer is None:
            raise InvalidError("load: a model in memory needs its tokenizer beside it")
        return Model(Borrowed(model, tokenizer, special_tokens=special_tokens))
    precision = {"source": "it", "quantization": quantization, "compute_dtype": dtype}
    return Model(
        Named(
            str(model),
            validated(_MODEL, precision),
            device=device,
            special_tokens=special_tokens,
            trust_remote_code=trust_remote_code,
        )
    )


def invert(model: Model, prompt: Any = None, **keywords: Any) -> Result:
    """Look for hidden tokens; see `Model.invert` for what it takes.

    Without a prompt it takes ``activations`` (see `Model.invert_activations`).
    """
    if "activations" in keywords:
        if prompt is not None:
            raise InvalidError("invert: takes a prompt or activations, not both")
        return model.invert_activations(**keywords)
    return model.invert(prompt, **keywords)
