"""What a GGUF file says of its model: all of it is in what was read of the file, or it is refused.

`transformers` passes over keys and tensors that it does not know, in silence. So every key of the
architecture is compared here with the configuration that was read, and every tensor must have a
place in the decoder.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokinfo.io.errors import FetchError
from tokinfo.models.checkpoint import empty_decoder

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig

HEAD = ("output.weight", "output.bias")
"""The output head, which no site lies behind, by its names in GGUF files."""

KEY_HEADS = "attention.head_count_kv"
LARGEST_EPSILON = 1e-2
"""What a norm adds to a variance; models have 1e-12 to 1e-3."""
_NUMBERS_APART = {
    *("context_length", "rope.scaling.original_context_length", "rope.scaling.finetuned"),
    *("final_logit_softcapping", "logit_scale"),
}
"""Keys on which no activation depends: limits, remarks, and what comes behind the output head."""
_NOTHING: Mapping[str, tuple[object, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0, 1),
    "rope.scale_linear": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "feed_forward_length": (0,),
    "attention.head_count": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "nextn_predict_layers": (0,),
    "ssm.dt_b_c_rms": (False,),
}
"""Values of keys by which a model is as it would be without them."""
_NAMES: Mapping[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "vocab_size": ("vocab_size",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": (
        *("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    ),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
    "rope.freq_base": ("rope_theta",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "ssm.conv_kernel": ("conv_kernel",),
    "ssm.state_size": ("state_size",),
    "ssm.time_step_rank": ("time_step_rank",),
    "ssm.inner_size": ("intermediate_size",),
    "shortconv.l_cache": ("conv_L_cache",),
}
"""What a key is called in configurations; the first name that a configuration has counts."""


def check_gguf(file: Path, config: PretrainedConfig, name: str) -> None:
    """Compare a GGUF file with the configuration that was read of it.

    Raises FetchError naming a key or tensor that is not in it: read without, the model would be
    another one. ``name`` is what the message calls the file.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)
    architecture = str(reader.fields["general.architecture"].contents())
    prefix = f"{architecture}."
    fields = {
        key: field.contents()
        for key, field in reader.fields.items()
        if key.startswith((prefix, "split."))
    }
    if (parts := fields.get("split.count", 1)) > 1:
        part = fields.get("split.no", 0) + 1
        raise FetchError(
            f"{name}: is file {part} of {parts} of a split model (split.count); join them first "
            "(llama-gguf-split --merge)"
        )
    _check_needed(architecture, fields, name)
    for key, value in fields.items():
        said = key.removeprefix(prefix)
        if key.startswith(prefix) and not _read(said, value, config):
            raise FetchError(
                f"{name}: says {key} = {value}, which is not read from GGUF files: use the "
                "repository of the original weights"
            )
    if (scale := getattr(config, "query_pre_attn_scalar", None)) not in (None, _head(config)):
        raise FetchError(
            f"{name}: does not say by what attention's scores are scaled (query_pre_attn_scalar is "
            f"{scale} in a {config.model_type}, its heads are of width {_head(config)}): use the "
            "repository of the original weights"
        )
    _check_rotations(reader, name)
    known = set(_places(architecture, config))
    for tensor in reader.tensors:
        where = {tensor.name, tensor.name.removesuffix(".weight")}
        if tensor.name not in HEAD and tensor.name != _ROTATIONS and not where & known:
            raise FetchError(
                f"{name}: holds {tensor.name}, for which a {config.model_type} made of it has no "
                "place: use the repository of the original weights"
            )


def _check_needed(architecture: str, fields: Mapping[str, Any], name: str) -> None:
    """Raise FetchError for a missing number of key-value heads, or a missing or impossible epsilon.

    transformers puts the family's defaults in place of missing ones, in silence.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    read: dict[str, Any] = {
        known.replace("_", ""): keys for known, keys in GGUF_CONFIG_MAPPING.items()
    }
    heads, plain = f"{architecture}.{KEY_HEADS}", architecture.replace("-", "").replace("_", "")
    if KEY_HEADS in read.get(plain, {}) and heads not in fields:
        raise FetchError(f"{name}: has no {heads}, the number of key-value heads")
    epsilons = {key: fields[key] for key in fields if "norm" in key and key.endswith("epsilon")}
    if not epsilons:
        raise FetchError(
            f"{name}: has no {architecture}.attention.layer_norm_rms_epsilon or the like"
        )
    for key, value in epsilons.items():
        if not (isinstance(value, float) and 0 < value <= LARGEST_EPSILON):
            raise FetchError(f"{name}: {key} is {value}; allowed: above 0, to {LARGEST_EPSILON}")


def _read(key: str, value: Any, config: PretrainedConfig) -> bool:
    """Whether a configuration has what a key of the architecture says."""
    if key in _NUMBERS_APART or any(_equal(value, one) for one in _NOTHING.get(key, ())):
        return True
    if key == "attention.sliding_window" and value >= getattr(
        config, "max_position_embeddings", math.inf
    ):
        return True  # no prompt leaves it
    return any(_equal(value, found) for found in _found(key, config))


def _found(key: str, config: Any) -> Iterator[Any]:
    """Yield what a configuration says of a key of the architecture; nothing where it is silent."""
    head = _head(config)
    if key in ("attention.key_length", "attention.value_length"):
        # Gemma 4 has another one in blocks without a window, which the file states.
        yield getattr(config, "global_head_dim", None) or head
        return
    if key == "rope.dimension_count" and head:
        rotary = getattr(config, "rope_parameters", None) or {}
        share = rotary.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", 1)
        yield getattr(config, "rotary_dim", None) or int(head * (share or 1))
        return
    if key == "rope.freq_base":
        yield from _thetas(getattr(config, "rope_parameters", None))
    for name in _NAMES.get(key, ()):
        if (value := getattr(config, name, None)) is not None:
            yield value
            return
    if key == "feed_forward_length":  # GPT-2's n_inner is None by default
        yield 4 * config.hidden_size
    if key == "attention.head_count_kv":
        yield 1 if getattr(config, "multi_query", False) else config.num_attention_heads


def _head(config: Any) -> int | None:
    """Return the width of an attention head; None: there is no attention."""
    heads = getattr(config, "num_attention_heads", None)
    found: int | None = getattr(config, "head_dim", None)
    return found or (config.hidden_size // heads if heads else None)


def _thetas(parameters: Any) -> Iterator[Any]:
    """Yield the bases of rotary frequencies, which some families have for each kind of block."""
    for name, value in (parameters or {}).items():
        if isinstance(value, dict):
            yield from _thetas(value)
        elif name == "rope_theta":
            yield value


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are the same, to the precision of GGUF's 32 bits."""
    if isinstance(one, list):
        several = other if isinstance(other, list) else [other] * len(one)
        return len(one) == len(several) and all(map(_equal, one, several))
    if isinstance(one, str) or isinstance(other, str | None | list):
        return bool(one == other)
    return math.isclose(one, other, rel_tol=1e-6)


class _Names:
    """A model as a list of names; of modules inside it, `transformers` would ask each one again."""

    def __init__(self, config: PretrainedConfig) -> None:
        decoder = empty_decoder(config)
        self.config = decoder.config
        self._names = [
            prefix + name
            for name in decoder.state_dict()
            for prefix in ("", f"{decoder.base_model_prefix}.")
        ]

    def state_dict(self) -> list[str]:
        return self._names

    def named_children(self) -> tuple[()]:
        return ()


def _places(architecture: str, config: PretrainedConfig) -> dict[str, str]:
    """Return the tensors of a GGUF file that `transformers` has a place for, and its names."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    found: dict[str, str] = get_gguf_hf_weights_map(_Names(config), processor)
    return found


_ROTATIONS = "rope_freqs.weight"


def _check_rotations(reader: Any, name: str) -> None:
    """Raise FetchError for scaled rotary frequencies, which transformers ignores in silence.

    Llama 3.1 and later, and Phi-3 of the long kind, have them as a tensor of factors.
    """
    from gguf import dequantize

    for tensor in reader.tensors:
        if tensor.name.startswith(("rope_freqs", "rope_factors")):
            factors = dequantize(tensor.data, tensor.tensor_type)
            if tensor.name != _ROTATIONS or (factors != 1).any():
                raise FetchError(
                    f"{name}: its rotary frequencies are scaled ({tensor.name}), which is not "
                    "read from GGUF files: use the repository of the original weights"
                )
