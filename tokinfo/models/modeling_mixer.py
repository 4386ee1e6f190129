"""Masked mixers as `transformers` models, registered with the Auto classes.

The layers are those of `tokinfo.models.mixer`; this module gives them a configuration,
`save_pretrained`, a language-model head (not tied to the embedding) and `generate`.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.configuration_utils import PretrainedConfig
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import PreTrainedModel

from tokinfo.models.mixer import MODEL_TYPE, MixerSpec, MixerStack


class MixerConfig(PretrainedConfig):
    """Configuration of a masked mixer; the fields are those of `MixerSpec`."""

    model_type = MODEL_TYPE
    attribute_map = {"max_position_embeddings": "n_ctx"}  # noqa: RUF012 (as the base class has it)

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 4
    n_ctx: int = 64
    form: str = "flat"
    expansion: float = 1.0
    kernels: int = 2
    use_cache: bool = False
    tie_word_embeddings: bool = False


class MixerPreTrainedModel(PreTrainedModel):
    """What the two mixer classes share."""

    config_class = MixerConfig
    base_model_prefix = "model"
    _no_split_modules = ["MixerBlock"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Start every layer as PyTorch starts it, in the place of N(0, 0.02)."""
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


class MixerModel(MixerStack, MixerPreTrainedModel):
    """`MixerStack` as a `PreTrainedModel`: same layers, same parameter names."""

    def __init__(self, config: MixerConfig) -> None:
        MixerPreTrainedModel.__init__(self, config)
        self.build(MixerSpec.from_config(config.to_dict()))
        self.post_init()

    def forward(self, *arguments: Any, **keywords: Any) -> BaseModelOutput:  # type: ignore[override]
        """Run the stack; see `MixerStack.forward` for the arguments and errors."""
        out = MixerStack.forward(self, *arguments, **keywords)
        return BaseModelOutput(
            last_hidden_state=out.last_hidden_state,
            hidden_states=out.hidden_states,
        )


class MixerForCausalLM(MixerPreTrainedModel, GenerationMixin):
    """A masked mixer with a language-model head."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.model = MixerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutput:
        """Return logits [batch, positions, vocabulary] and, with ``labels``, the next-token loss.

        ``labels`` [batch, positions] are the tokens themselves (shifted here; -100 is ignored).
        ``logits_to_keep`` computes the logits of that many last positions only (0: all).
        """
        out = self.model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            if logits_to_keep:
                raise ValueError("labels need the logits of every position: logits_to_keep = 0")
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
            )
        return CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, **_: Any
    ) -> dict[str, Any]:
        """Give `generate` the whole sequence each time: a mixer has no key-value cache."""
        return {"input_ids": input_ids, "logits_to_keep": 1}


AutoConfig.register(MODEL_TYPE, MixerConfig, exist_ok=True)
AutoModel.register(MixerConfig, MixerModel, exist_ok=True)
AutoModelForCausalLM.register(MixerConfig, MixerForCausalLM, exist_ok=True)
