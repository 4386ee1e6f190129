"""New models: random weights from a source of the study and a seed."""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from tokinfo.models import remote_code
from tokinfo.models.modeling_mixer import MixerConfig, MixerForCausalLM
from tokinfo.study.sources import Built, MixerSource


def new_model(source: Built, vocabulary: int, seed: int) -> PreTrainedModel:
    """Build a causal language model in float32 with random weights.

    The weights depend on ``source``, ``vocabulary`` and ``seed`` only, and the global random
    state is left as it was found.
    """
    if isinstance(source, MixerSource):
        mixer = MixerConfig(
            vocab_size=vocabulary,
            hidden_size=source.d_model,
            num_hidden_layers=source.blocks,
            n_ctx=source.n_ctx,
            form=source.form,
            expansion=source.expansion,
            kernels=source.kernels,
        )
        return random_model(mixer, seed)
    llama = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=source.d_model,
        intermediate_size=source.intermediate or 4 * source.d_model,
        num_hidden_layers=source.blocks,
        num_attention_heads=source.heads,
        max_position_embeddings=source.n_ctx,
        tie_word_embeddings=False,
    )
    return random_model(llama, seed)


def random_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """Build the causal language model of any configuration, float32, weights from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, MixerConfig):
            return MixerForCausalLM(config)
        if isinstance(config, LlamaConfig):
            return LlamaForCausalLM(config)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=remote_code.allowed()
        )
        return model
