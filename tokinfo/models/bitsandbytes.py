"""bitsandbytes, made to compute the same on every machine and to leave its inputs unchanged."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn


def import_bitsandbytes() -> None:
    """Import bitsandbytes without its use of `torch.compile`.

    Its fallback kernels compile themselves where the machine has a C++ compiler and run as they
    are where it has none: one checkpoint, two sets of numbers. Without it there is one, and the
    import is 1 s shorter.
    """

    def plain(function: Any = None, **_: Any) -> Any:
        return function if function is not None else plain

    # It logs at every int8 product that inputs are cast to float16 (see `quantize`), and at its
    # import that an optional kernel is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    compiler = torch.compile
    torch.compile = plain  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiler


def mend_bitsandbytes(decoder: nn.Module) -> None:
    """Keep bitsandbytes' layers from changing their weights or inputs.

    On CPUs with AVX512-BF16 it repacks 4-bit weights for good at the first pass without
    gradients: from then on it multiplies in bfloat16, whatever the compute dtype, and no
    gradient passes through the linear layers, with no error. LLM.int8 blanks the outliers of a
    float16 input in place while it rounds the rest, which autograd refuses.
    """
    for module in decoder.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        if type(module).__name__ == "Linear8bitLt":
            module.register_forward_pre_hook(_copy_half)


def _copy_half(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.clone() if x.dtype is torch.float16 else x for x in inputs)
