"""A token is shown as its tokenizer has it: with its spaces, and a special one by its name."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokinfo.text.pieces import Pieces

TEXTS = ["The sky is blue.", "Is it?\nIt is \u2014 na\u00efve \u4f60\u597d \U0001f600", "a  b\t#c"]


def byte_level(*, decoder: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if decoder:
        tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def llama_2() -> Tokenizer:
    """Pieces as SentencePiece writes them, with a fallback to bytes."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary += ["\u2581", "i", "s", "\u2581i", "is", "\u2581is"]
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    merges = [("\u2581", "i"), ("i", "s"), ("\u2581", "is")]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            *(decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_pieces_are_the_text_cut_into_tokens(text: str, decoder: bool) -> None:
    tokenizer = byte_level(decoder=decoder)
    pieces = Pieces(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    # What is no character by itself is written as its bytes.
    written = "".join(pieces[token] for token in ids).encode()
    for byte in range(0x80, 0x100):
        written = written.replace(f"<0x{byte:02X}>".encode(), bytes([byte]))
    assert written.decode() == text
    assert pieces[tokenizer.token_to_id("<|endoftext|>")] == "<|endoftext|>"


def test_what_decodes_to_nothing_is_shown() -> None:
    tokenizer = llama_2()
    pieces = Pieces(tokenizer)
    shown = {"\u2581": " ", "\u2581is": " is", "is": "is", "<s>": "<s>", "<unk>": "<unk>"}
    shown |= {"<0x0A>": "\n", "<0xE2>": "<0xE2>"}
    for piece, text in shown.items():
        assert pieces[tokenizer.token_to_id(piece)] == text
    # By itself the tokenizer decodes these to nothing, and to no space.
    decoded = [tokenizer.decode([tokenizer.token_to_id(piece)]) for piece in ("\u2581", "\u2581is")]
    assert decoded == ["", "is"]


def test_an_id_without_a_token_and_the_ends_of_words_are_read() -> None:
    vocabulary = {"is</w>": 0, "th": 1, "[UNK]": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    assert [Pieces(tokenizer)[token] for token in range(4)] == ["is ", "th", "[UNK]", ""]
