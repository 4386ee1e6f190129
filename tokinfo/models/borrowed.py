"""A transformers model that lives in somebody's program: read as it is, and left as it was."""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from tokinfo.io.chats import ChatTemplate
from tokinfo.io.errors import InvalidError
from tokinfo.models.agreement import check_embeddings
from tokinfo.models.checkpoint import DTYPES, Checkpoint, Facts, family, input_table
from tokinfo.models.structure import find_blocks
from tokinfo.text.tokenizer import check_ids

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig
    from transformers.modeling_utils import PreTrainedModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


class Borrowed:
    """A model in memory, with its device, precision, quantisation and hooks.

    Args:
        model: a decoder of transformers, with or without a head.
        tokenizer: a fast tokenizer of transformers.
        special_tokens: whether prompts get the special tokens that the tokenizer adds.

    Raises:
        InvalidError: it is of a kind that cannot be probed; the message says which.
    """

    def __init__(self, model: Any, tokenizer: Any, *, special_tokens: bool = True) -> None:
        from transformers.modeling_utils import PreTrainedModel

        self.name = type(model).__name__
        if not isinstance(model, PreTrainedModel):
            raise InvalidError(
                f"{self.name}: no model of transformers; allowed: a PreTrainedModel, or a name "
                "(adapters: merge them into their model first)"
            )
        config = model.config
        if config.get_text_config(decoder=True) is not config:
            raise InvalidError(f"{self.name}: holds its decoder beside other parts; pass it alone")
        self._model = model
        self._tokenizer = tokenizer
        self._words = _backend(tokenizer, special_tokens)
        self.depth = len(find_blocks(model.base_model))
        self._special_tokens = special_tokens
        self._checked = 0
        if any(p.is_inference() for p in model.parameters()):
            raise InvalidError(
                f"{self.name}: was made under torch.inference_mode, so nothing can descend through "
                "it; load it outside"
            )

    @contextmanager
    def checkpoint(self, blocks: int) -> Iterator[Checkpoint]:
        """Give the model as a solver takes it; behind this it is again what it was.

        Raises InvalidError where it does not compute from embeddings what it does from tokens.
        """
        model = self._model
        if blocks > self.depth:
            raise InvalidError(f"{self.name}: has {self.depth} blocks, block {blocks} requested")
        with as_a_probe(model):
            decoder = model.base_model
            table = _table(decoder)
            found = Checkpoint(
                decoder=decoder,
                embedding=table.float(),
                tokenizer=self._words,
                pad_id=_pad_id(self._tokenizer, model.config),
                facts=self._facts(decoder, table),
                template=_template(self._tokenizer),
            )
            check_ids(self._words, len(table), self.name)
            if blocks > self._checked:
                check_embeddings(found, blocks, self.name)
                self._checked = blocks
            yield found

    def _facts(self, decoder: nn.Module, table: Tensor) -> Facts:
        config: Any = decoder.config
        dtypes = {dtype: name for name, dtype in DTYPES.items()}
        if table.dtype not in dtypes:
            raise InvalidError(
                f"{self.name}: is of dtype {str(table.dtype).removeprefix('torch.')}; allowed: "
                f"{', '.join(DTYPES)}"
            )
        quantization, threshold = _quantization(config, self.name)
        limit = getattr(config, "max_position_embeddings", None)
        return Facts(
            family=family(config),
            state="trained",
            seed=None,
            quantization=quantization or dtypes[table.dtype],
            dtype=dtypes[table.dtype],
            outlier_threshold=threshold,
            unquantised=(),
            blocks_kept=self.depth,
            depth=self.depth,
            n_ctx=limit if isinstance(limit, int) and limit > 0 else None,
            vocabulary=len(table),
            d_model=config.hidden_size,
            pad_id=0,
            digest=_digest(table),
            model=self.name,
            special_tokens=self._special_tokens,
        )

    def check_reading(self, text: str, ids: list[int]) -> None:
        """Raise InvalidError where the user's tokenizer reads a text as other tokens."""
        theirs = self._tokenizer(text, add_special_tokens=self._special_tokens)["input_ids"]
        if list(theirs) != ids:
            raise InvalidError(f"{self.name}: its tokenizer's settings change the tokens of a text")


@contextmanager
def as_a_probe(model: PreTrainedModel) -> Iterator[None]:
    """Have a model in evaluation mode, without gradients of its own, and put it back.

    Inside, gradients with respect to inputs are computed, whatever mode the caller is in.
    """
    modes = [(module, module.training) for module in model.modules()]
    # By name: hooks of accelerate put new parameters in the place of these.
    wanted = [
        (module, name, parameter.requires_grad)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    kept: list[tuple[nn.Module, str, Tensor]] = []
    device = next(model.parameters()).device.type
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device if device != "meta" else "cpu", enabled=False))
        try:
            for module in model.modules():
                module.training = False
                for name, buffer in module._buffers.items():
                    # Rotary frequencies that were last worked out under inference_mode.
                    if buffer is not None and buffer.is_inference():
                        kept.append((module, name, buffer))
                        module._buffers[name] = buffer.clone()
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name, needed in wanted:
                module.get_parameter(name).requires_grad_(needed)
            for module, name, buffer in kept:
                module._buffers[name] = buffer


def _backend(tokenizer: Any, special_tokens: bool) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise InvalidError(
            f"{type(tokenizer).__name__}: no fast tokenizer; allowed: one of transformers with a "
            "backend_tokenizer, or of the library tokenizers"
        )
    found: Tokenizer = Tokenizer.from_str(backend.to_str())
    found.no_truncation()
    found.no_padding()
    if not special_tokens:
        found.post_processor = None
    return found


def _table(decoder: nn.Module) -> Tensor:
    """Return the embedding; where accelerate keeps its weights elsewhere, row by row."""
    table: Any = decoder.get_input_embeddings()  # type: ignore[operator]
    if not table.weight.is_meta:
        return input_table(decoder)
    with torch.no_grad():
        rows: Tensor = table(torch.arange(table.num_embeddings))
    return rows


def _template(tokenizer: Any) -> ChatTemplate | None:
    source = getattr(tokenizer, "chat_template", None)
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        return None
    named = getattr(tokenizer, "special_tokens_map", {})
    return ChatTemplate(source, {n: v for n, v in named.items() if isinstance(v, str)})


def _pad_id(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    for candidate in (
        getattr(tokenizer, "pad_token_id", None),
        getattr(config, "pad_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    ):
        if type(candidate) is int:
            return candidate
    return 0


def _quantization(config: Any, name: str) -> tuple[str | None, float | None]:
    """Return how a model's weights are packed, and the outlier threshold of int8."""
    stated = getattr(config, "quantization_config", None)
    if not stated:
        return None, None
    found: dict[str, Any] = stated if isinstance(stated, dict) else stated.to_dict()
    if found.get("load_in_8bit"):
        return "int8", float(found.get("llm_int8_threshold", 6.0))
    if found.get("load_in_4bit") and found.get("bnb_4bit_quant_type") == "nf4":
        return "nf4", None
    method = found.get("quant_method", "unknown")
    raise InvalidError(f"{name}: is quantised by {method}; allowed: int8 or nf4 of bitsandbytes")


def _digest(table: Tensor) -> str:
    """Return the SHA-256 of the embedding: the whole model has no file to be named by."""
    plain = table.detach().float().cpu().contiguous()
    return hashlib.sha256(plain.numpy().tobytes()).hexdigest()
