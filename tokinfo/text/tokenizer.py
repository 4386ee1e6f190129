"""Byte-level BPE tokenizers: trained here, or read from any model's tokenizer.json.

Every byte is a token, so any string comes back unchanged from its tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from tokinfo.io.atomic import new_directory, save_sealed
from tokinfo.io.damaged import check, reading
from tokinfo.io.errors import InvalidError
from tokinfo.text.documents import END_OF_TEXT, read_documents

PAD = "<|pad|>"
SPECIAL = (END_OF_TEXT, PAD)  # ids 0 and 1
ENCODE_AT_ONCE = 1000  # documents; bounds the memory of a large corpus


def train_tokenizer(text: Path, vocabulary: int, out: Path) -> None:
    """Train a byte-level BPE tokenizer on the documents of ``text`` and write it to ``out``.

    The directory can be read by `load_tokenizer` and by transformers' AutoTokenizer. The same
    text and size give the same bytes. ``vocabulary`` counts the special tokens ``<|endoftext|>``
    (id 0, ends a document) and ``<|pad|>`` (id 1) and the 256 bytes.
    Raises ValueError when the text is too short for a vocabulary of that size.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_documents(text), trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise InvalidError(
            f"{text.name}: gives {tokenizer.get_vocab_size()} tokens, the study asks for "
            f"{vocabulary}: use a longer text or a smaller vocabulary"
        )
    with new_directory(out) as partial:
        tokenizer.save(str(partial / "tokenizer.json"))
        (partial / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "eos_token": END_OF_TEXT,
                    "pad_token": PAD,
                    "clean_up_tokenization_spaces": False,
                },
                indent=2,
            )
            + "\n",
            encoding="utf-8",
        )


def load_tokenizer(directory: Path) -> tokenizers.Tokenizer:
    """Read tokenizer.json of a directory, without truncation or padding.

    Raises FileNotFoundError naming the file when it is missing, DamagedError when it was changed.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no tokenizer here")
    check(directory, path.name)
    with reading(path):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_ids(tokenizer: tokenizers.Tokenizer, rows: int, name: str) -> None:
    """Raise ValueError where a tokenizer has tokens that an embedding of ``rows`` has no row for.

    Ids need not be consecutive: added tokens may leave a gap. ``name`` is what the message names.
    """
    if (count := tokenizer.get_vocab_size()) > rows:
        raise InvalidError(f"{name}: the tokenizer has {count} tokens, the embedding {rows} rows")
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if last >= rows:
        raise InvalidError(
            f"{name}: the tokenizer's {token!r} has the id {last}, the embedding {rows} rows "
            f"(0 to {rows - 1})"
        )


def encode_corpus(tokenizer: Path, train: Path, held_out: Path, out: Path) -> None:
    """Encode both parts of a corpus into one safetensors file.

    It holds ``train`` and ``held_out``, int32 [tokens]: the documents one after another, each
    followed by ``<|endoftext|>``.
    """
    loaded = load_tokenizer(tokenizer)
    tensors = {"train": _encode(loaded, train), "held_out": _encode(loaded, held_out)}
    save_sealed(tensors, out)


def _encode(tokenizer: tokenizers.Tokenizer, text: Path) -> torch.Tensor:
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise InvalidError(f"the tokenizer has no {END_OF_TEXT} to end a document with")
    parts = list(read_documents(text))
    ids: list[int] = []
    for start in range(0, len(parts), ENCODE_AT_ONCE):
        for encoding in tokenizer.encode_batch_fast(
            parts[start : start + ENCODE_AT_ONCE], add_special_tokens=False
        ):
            ids.extend(encoding.ids)
            ids.append(end)
    return torch.tensor(ids, dtype=torch.int32)
