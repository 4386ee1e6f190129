"""One tiny untrained model of each family that is tested: width 32, three blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 96
WIDTH = 32
BLOCKS = 3
POSITIONS = 64
WINDOW = 4


@dataclass(frozen=True)
class Family:
    """A causal language model's class and the configuration it is made from.

    Attributes:
        model: class of `transformers`.
        settings: of its configuration, over those that all share.
        attention: path of attention in a block.
        after: what attention's output goes through before it is added.
        branch: what the residual stream goes through in the MLP's branch, in order.
        mlp: which of these returns the output of the MLP alone.
        parallel: whether attention and MLP run side by side.
        window: the sliding window of some of its blocks.
    """

    model: str
    settings: dict[str, Any]
    attention: str = "self_attn"
    after: tuple[str, ...] = ()
    branch: tuple[str, ...] = ("post_attention_layernorm", "mlp")
    mlp: str = "mlp"
    parallel: bool = False
    window: int | None = None

    def config(self, **more: Any) -> Any:
        kind: Callable[..., Any] = getattr(transformers, self.model).config_class
        shared = {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "max_position_embeddings": POSITIONS,
            # Wide enough that every part of a block shows in its output.
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        return kind(**{**shared, **self.settings, **more})


_GLU = {"intermediate_size": 48, "num_key_value_heads": 2}
_GEMMA = {**_GLU, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

_NEOX = {"intermediate_size": 48}
_FALCON = {"attention": "self_attention", "parallel": True}
_GEMMA_BLOCK: dict[str, Any] = {
    "after": ("post_attention_layernorm",),
    "branch": ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
    "window": WINDOW,
}

FAMILIES = {
    "Llama 1": Family("LlamaForCausalLM", {"intermediate_size": 48}),
    "Llama 2": Family("LlamaForCausalLM", _GLU),
    "Llama 3": Family(
        "LlamaForCausalLM", {**_GLU, "rope_parameters": _LLAMA_3, "tie_word_embeddings": True}
    ),
    "Mistral": Family("MistralForCausalLM", {**_GLU, "sliding_window": WINDOW}, window=WINDOW),
    "Mixtral": Family("MixtralForCausalLM", {**_GLU, "num_local_experts": 4}),
    "Qwen2": Family("Qwen2ForCausalLM", _GLU),
    "Qwen2, sliding": Family(
        "Qwen2ForCausalLM",
        {**_GLU, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        window=WINDOW,
    ),
    "Qwen3": Family("Qwen3ForCausalLM", {**_GLU, "head_dim": 8}),
    "Gemma 2": Family(
        "Gemma2ForCausalLM", {**_GEMMA, **_SLIDING, "attn_logit_softcapping": 5.0}, **_GEMMA_BLOCK
    ),
    "Gemma 3": Family("Gemma3ForCausalLM", {**_GEMMA, **_SLIDING}, **_GEMMA_BLOCK),
    "Phi-3": Family("Phi3ForCausalLM", {**_GLU, "sliding_window": WINDOW}, window=WINDOW),
    "GPT-2": Family("GPT2LMHeadModel", {}, "attn", branch=("ln_2", "mlp")),
    "GPT-NeoX": Family("GPTNeoXForCausalLM", _NEOX, "attention", parallel=True),
    "GPT-NeoX, sequential": Family(
        "GPTNeoXForCausalLM", {**_NEOX, "use_parallel_residual": False}, "attention"
    ),
    "GPT-J": Family(
        "GPTJForCausalLM", {"rotary_dim": 4}, "attn", branch=("ln_1", "mlp"), parallel=True
    ),
    "OPT": Family(
        "OPTForCausalLM",
        {"ffn_dim": 48},
        branch=("final_layer_norm", "fc1", "activation_fn", "fc2"),
        mlp="fc2",
    ),
    "OPT-350m": Family(
        "OPTForCausalLM",
        {"ffn_dim": 48, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
        branch=("fc1", "activation_fn", "fc2"),
        mlp="fc2",
    ),
    "Falcon": Family(
        "FalconForCausalLM", {"multi_query": True}, branch=("input_layernorm", "mlp"), **_FALCON
    ),
    "Falcon, new decoder": Family(
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        branch=("ln_mlp", "mlp"),
        **_FALCON,
    ),
    "Falcon, alibi": Family(
        "FalconForCausalLM",
        {"alibi": True, "multi_query": False, "parallel_attn": False},
        "self_attention",
    ),
}


def tiny(name: str, **more: Any) -> Any:
    """An untrained model of a family for causal language modelling, in float32."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, family.model)(family.config(**more))
    for norm, values in model.named_parameters():
        # Norms and biases start at one and zero, where a forgotten one does not show.
        if values.ndim == 1:
            nn.init.normal_(values, 1.0 if "norm" in norm or "ln" in norm else 0.0, 0.2)
    return model.eval().requires_grad_(False)


NOT_TAKEN_APART = {
    # The first block's window is shorter than the prompts that are compared.
    "Mistral": "is no weighted mean of values",
    "Gemma 3": "is no weighted mean of values",
    "Phi-3": "is no weighted mean of values",
    # Capped scores.
    "Gemma 2": "cannot be taken apart",
    # Attention is not called through the interface of `transformers`.
    "GPT-J": "cannot be taken apart",
    "Falcon": "cannot be taken apart",
    "Falcon, new decoder": "cannot be taken apart",
    "Falcon, alibi": "cannot be taken apart",
}
"""Why the first block's attention cannot be taken apart, by family."""
