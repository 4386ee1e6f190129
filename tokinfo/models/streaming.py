"""Checkpoints written part by part: one block in memory at a time, whatever the model's size.

The decoder is built on the meta device, without weights. Block after block, and last what lies
outside them, its tensors are read, converted and quantised by the very functions that
`from_pretrained` calls for a whole model, written to a safetensors file of their own, and
dropped. The result is what `save_pretrained` would have written of the whole, in more files.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokinfo.io.errors import InvalidError
from tokinfo.models.bitsandbytes import import_bitsandbytes
from tokinfo.models.checkpoint import DTYPES, empty_decoder, quiet
from tokinfo.models.parts import EMBEDDING, block_file
from tokinfo.models.structure import blocks_path, find_blocks
from tokinfo.models.weights import INDEX, Weights, check_shapes, open_part, write_part
from tokinfo.study.sources import Model

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig
    from transformers.modeling_utils import PreTrainedModel


def write_decoder(
    weights: Weights, config: PretrainedConfig, model: Model, out: Path
) -> tuple[str, ...]:
    """Write a decoder, cast or quantised, as `AutoModel.from_pretrained` loads it.

    int8 is LLM.int8 (absmax per row, outlier columns above ``model.outlier_threshold`` in 16
    bits); nf4 has blocks of 64, without double quantisation. Embedding, norms, a mixer's
    convolutions and the activations have ``model.compute_dtype`` (by default float32) in both;
    LLM.int8 itself multiplies inputs rounded to 16 bits.

    Args:
        weights: what it is made from.
        config: of the decoder, with as many blocks as ``weights``.
        model: its precision is used, nothing else.
        out: directory for config.json, the weights' files and their index.

    Returns:
        Matrices inside the blocks that bitsandbytes leaves unquantised (experts that are one
        tensor, convolutions), their blocks' numbers written ``*``.

    Raises:
        ValueError: a tensor is missing, damaged, or of the wrong shape; or bitsandbytes knows
            none of the model's matrices.
        OSError: the disk is full.
    """
    decoder = empty_decoder(config)
    shapes = {name: parameter.shape for name, parameter in decoder.named_parameters()}
    for part in weights.parts:
        check_shapes(part, shapes, decoder.base_model_prefix)
    packed = model.quantization not in DTYPES
    dtype = DTYPES[model.activations if packed else model.quantization]
    blocks = len(weights.parts) - 1
    layers = find_blocks(decoder) if blocks else nn.ModuleList()
    path = blocks_path(decoder) if blocks else ""
    quantizer = _quantizer(decoder, model) if packed else None
    unquantised = _unquantised(decoder, path, quantizer, weights.name) if packed and blocks else ()
    files: dict[str, dict[str, Tensor]] = {}
    for number, part in enumerate(weights.parts):
        inside = number < blocks
        file = block_file(number + 1) if inside else EMBEDDING
        module, prefix = (layers[number], f"{path}.{number}.") if inside else (decoder, "")
        with ExitStack() as opened, quiet():
            _fill(decoder, open_part(part, opened), weights, quantizer)
            state = _state(decoder, module, prefix, dtype, weights.name)
            write_part(state, out / file)
        files[file] = {name: tensor.to("meta") for name, tensor in state.items()}
        del state
        if inside:
            layers[number] = nn.Identity()
    _write_index(files, out)
    if quantizer is not None:
        quantizer.postprocess_model(decoder)
    decoder.config.dtype = str(dtype).removeprefix("torch.")
    decoder.config.architectures = [type(decoder).__name__]
    decoder.config.save_pretrained(out)
    return unquantised


# --- quantising ---------------------------------------------------------------------------


def _quantizer(decoder: PreTrainedModel, model: Model) -> Any:
    """Put bitsandbytes' layers in place of the linear ones; return what fills them."""
    import_bitsandbytes()
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    settings = (
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=model.outlier_threshold)
        if model.quantization == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=DTYPES[model.activations],
        )
    )
    with quiet():
        quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
        quantizer.preprocess_model(decoder, dtype=torch.float32, device_map={"": "cpu"})
    return quantizer


def _unquantised(decoder: PreTrainedModel, path: str, quantizer: Any, name: str) -> tuple[str, ...]:
    """Name the matrices inside the blocks that bitsandbytes does not quantise.

    Raises ValueError where that is all of them: a model called int8 would not be int8.
    """
    matrices = [
        key
        for key, parameter in decoder.named_parameters()
        if key.startswith(f"{path}.") and parameter.ndim > 1
    ]
    left = [key for key in matrices if not quantizer.param_needs_quantization(decoder, key)]
    if left == matrices:
        raise InvalidError(
            f"{name}: bitsandbytes quantises none of the linear layers of {type(decoder).__name__} "
            "(they are of a class of their own): use another precision"
        )
    inside = (key.removeprefix(f"{path}.").partition(".")[2] for key in left)
    return tuple(sorted({f"{path}.*.{key}" for key in inside}))


# --- one part -----------------------------------------------------------------------------


def _fill(
    decoder: PreTrainedModel, tensors: dict[str, Any], weights: Weights, quantizer: Any
) -> None:
    """Load some tensors into a decoder in float32, and quantise them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    mapping: list[Any] = []
    if weights.stored:
        mapping += get_model_conversion_mapping(decoder, None, quantizer)
    settings = LoadStateDictConfig(
        device_map={"": "cpu"}, dtype=torch.float32, hf_quantizer=quantizer, weight_mapping=mapping
    )
    info, _ = convert_and_load_state_dict_in_model(decoder, tensors, settings)
    if info.conversion_errors:
        name = min(info.conversion_errors)
        raise InvalidError(f"{weights.name}: {name} cannot be made from the tensors stored")
    if not weights.stored:
        decoder._weight_conversions = None  # type: ignore[assignment]  # those of its class count


def _state(
    decoder: PreTrainedModel, module: nn.Module, prefix: str, dtype: torch.dtype, name: str
) -> dict[str, Tensor]:
    """Return a part's tensors, cast, named and formed as in the files of its family.

    Raises ValueError for tensors that were not among those loaded.
    """
    from transformers.core_model_loading import revert_weight_conversion

    # Parameters only: rotary frequencies are buffers and stay in float32, as from_pretrained
    # keeps them; bitsandbytes' scales are neither. What it has packed are whole numbers.
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    state: dict[str, Tensor] = module.state_dict(prefix=prefix)
    missing = [key for key, tensor in state.items() if tensor.is_meta]
    # What every model of the family makes for itself is not in its files.
    ignored = decoder._keys_to_ignore_on_load_missing or []
    needed = sorted(key for key in missing if not any(re.search(i, key) for i in ignored))
    if needed:
        raise InvalidError(f"{name}: no weights for {needed[0]} ({len(needed)} missing)")
    unsaved = {*missing, *(decoder._keys_to_ignore_on_save or [])}
    kept = {key: tensor for key, tensor in state.items() if key not in unsaved}
    stored: dict[str, Tensor] = revert_weight_conversion(decoder, kept)
    return {key: tensor.contiguous() for key, tensor in stored.items()}


# --- writing ------------------------------------------------------------------------------


def _write_index(files: Mapping[str, Mapping[str, Tensor]], out: Path) -> None:
    held = {name: file for file, tensors in files.items() for name in tensors}
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(held.items()))}
    (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
