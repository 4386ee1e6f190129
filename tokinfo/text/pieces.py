"""Tokens as text to be read: a tokenizer's own pieces, without its signs for spaces and bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Pieces:
    r"""The tokens of a tokenizer, by their ids.

    A token's text is not what the tokenizer decodes it to by itself: that may leave out a leading
    space, or all of a token that is one. A byte that is no character by itself is written as
    ``<0xE2>``. Special tokens and others that were added have their names.

    >>> from tokenizers import Tokenizer, decoders, models
    >>> vocabulary = {"\u2581is": 0, "\u2581": 1, "<0x0A>": 2, "<s>": 3}
    >>> tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    >>> tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
    >>> [Pieces(tokenizer)[token] for token in range(5)]
    [' is', ' ', '\n', '<s>', '']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._names: dict[int, str] = {token: one.content for token, one in added.items()}
        parts = [*_parts(tokenizer.decoder), *_parts(tokenizer.pre_tokenizer)]
        kinds = {part["type"] for part in parts}
        self._bytes = _byte_alphabet() if "ByteLevel" in kinds else None
        self._fallback = "ByteFallback" in kinds
        self._spaces = {part["replacement"] for part in parts if part["type"] == "Metaspace"}
        for part in parts:
            if part["type"] == "Replace" and part["content"] == " ":
                self._spaces.add(part["pattern"].get("String") or " ")
            if part["type"] == "BPEDecoder":  # the end of a word
                self._spaces.add(part["suffix"])

    def __getitem__(self, token: int) -> str:
        """Return the text of a token; of an id without one, the empty text."""
        if token in self._names:
            return self._names[token]
        piece = self._tokenizer.id_to_token(token) or ""
        if self._bytes is not None and self._bytes.keys() >= set(piece):
            return _decoded(bytes(self._bytes[letter] for letter in piece))
        if self._fallback and (byte := re.fullmatch("<0x([0-9A-F]{2})>", piece)):
            return _decoded(bytes.fromhex(byte[1]))
        for sign in self._spaces:
            piece = piece.replace(sign, " ")
        return piece


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings of a decoder or pre-tokenizer, those of a sequence one by one."""
    if component is None:
        return
    state = json.loads(component.__getstate__())
    yield from state.get("decoders") or state.get("pretokenizers") or [state]


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each letter of a byte-level tokenizer's pieces stands for (GPT-2's)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in shown]
    moved = {chr(0x100 + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in shown} | moved


def _decoded(data: bytes) -> str:
    """Return bytes as text; those that are no character are written as ``<0xE2>``."""
    text = data.decode("utf-8", errors="surrogateescape")
    return "".join(
        f"<0x{ord(letter) - 0xDC00:02X}>" if "\udc80" <= letter <= "\udcff" else letter
        for letter in text
    )
