"""GGUF files: their first blocks as float32 safetensors, their tokenizer as tokenizer.json."""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokinfo.models.checkpoint import quiet, save_model, shorter
from tokinfo.wheel import FetchError

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig


def read_gguf_config(file: Path, name: str) -> PretrainedConfig:
    """Return the configuration of a GGUF model.

    Raises FetchError when the file is not GGUF, or of an architecture that transformers does not
    know; ``name`` is what the message calls it.
    """
    from transformers import AutoConfig

    if not file.is_file():
        raise FetchError(f"{name}: there is no such file")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise FetchError(f"{name}: not a GGUF file")
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # of many types: unknown architecture, cut file
        raise FetchError(f"{name}: {_first_line(error)}") from None
    values = config.to_dict()
    # The weights are written dequantised, and know nothing of the file they came from.
    values.pop("quantization_config", None)
    return type(config).from_dict(values)


def write_gguf_blocks(file: Path, config: PretrainedConfig, blocks: int, out: Path) -> None:
    """Write the embedding and first ``blocks`` blocks of a GGUF model, dequantised to float32."""
    from transformers import AutoModel

    with quiet():
        loaded = AutoModel.from_pretrained(
            file.parent, gguf_file=file.name, config=shorter(config, blocks), dtype=torch.float32
        )
        # save_pretrained refuses a model that came from a GGUF file, so the weights move into a
        # fresh one of the same class.
        with torch.device("meta"):
            model = type(loaded)(shorter(config, blocks))
    model.load_state_dict(loaded.state_dict(), assign=True)
    save_model(model, out)


def write_gguf_tokenizer(file: Path, out: Path, name: str) -> None:
    """Write tokenizer.json from the vocabulary inside a GGUF file; raises FetchError."""
    from transformers import AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name}
    try:
        with quiet():
            AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(out)
    except Exception as error:
        raise FetchError(f"{name}: no tokenizer inside: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
