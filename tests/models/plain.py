"""Checkpoints made the plain way, the whole decoder in memory: what others are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from tokinfo.models.bitsandbytes import import_bitsandbytes
from tokinfo.models.checkpoint import (
    DTYPES,
    decoder_class,
    quiet,
    read_config,
    read_decoder,
    save_model,
    shorter,
)


def write_whole(directory: Path, blocks: int, precision: str, out: Path) -> Any:
    """Write the decoder of a checkpoint, cast or quantised, and return it."""
    decoder: Any = read_decoder(directory, shorter(read_config(directory), blocks))
    if precision in DTYPES:
        for parameter in decoder.parameters():
            parameter.data = parameter.data.to(DTYPES[precision])
    else:
        import_bitsandbytes()
        save_model(decoder, out / "float32")
        settings = (
            BitsAndBytesConfig(load_in_8bit=True)
            if precision == "int8"
            else BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
            )
        )
        with quiet():
            decoder = decoder_class(decoder.config).from_pretrained(
                out / "float32", quantization_config=settings, dtype=torch.float32, device_map="cpu"
            )
    save_model(decoder, out)
    return decoder
