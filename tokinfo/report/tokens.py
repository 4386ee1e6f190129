"""Tokens as a reader sees them: in terminals, figures and pages."""

from __future__ import annotations

import unicodedata

_LONGEST = 24
"""Characters of a token that are shown."""

_SHOWN_AS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\ufffd": "�"}
# Control, format (writing direction among them), surrogate, private, unassigned, separators.
_SPELLED_OUT = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}


def show(token: str) -> str:
    r"""Return a token as visible text: whitespace as signs, what cannot be seen as its code.

    >>> show(" blue"), show("\n"), show("\u202e"), show("")
    ('·blue', '↵', '⟨U+202E⟩', '∅')
    """
    if not token:
        return "∅"
    parts = [
        _SHOWN_AS[letter]
        if letter in _SHOWN_AS
        else f"⟨U+{ord(letter):04X}⟩"
        if unicodedata.category(letter) in _SPELLED_OUT
        else letter
        for letter in token[:_LONGEST]
    ]
    if unicodedata.category(token[0]) in ("Mn", "Mc", "Me"):
        parts.insert(0, "◌")  # a combining mark needs something to stand on
    if len(token) > _LONGEST:
        parts.append("…")
    return "".join(parts)
