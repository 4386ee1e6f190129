"""Sites: where in a model activations are read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from tokinfo.io.errors import InvalidError
from tokinfo.study.written import Written

Place = Literal["embedding", "attention", "mlp", "block", "norm", "kv"]
_NUMBER = r"([1-9][0-9]{0,5}|last)"
_PATTERN = re.compile(
    rf"^(?:(embedding|norm)|(attention|mlp|block)\.{_NUMBER}|(kv)\.{_NUMBER}(?:-{_NUMBER})?)\Z"
)
ALLOWED = (
    "embedding, or attention.K, mlp.K, block.K or kv.K with K = 1, 2, ... or last, kv.A-B, or norm"
)


@dataclass(frozen=True)
class Site(Written):
    """A place in one block (1-based), the embedding itself, or the final norm.

    ``kv.K`` are the keys and values of block K, as a key-value cache keeps them; ``kv.A-B`` those
    of all blocks from A to B, one behind the other, which may be written ``kv.A+...+kv.B``.
    ``norm`` is the output of the whole decoder, behind its final norm.

    ``block`` is the last block that has to run: 0 for the embedding, and -1 for the last block of a
    model whose depth is not yet known (`resolve` replaces it). ``first`` is the first block whose
    keys and values are read, and 0 elsewhere.

    >>> Site.parse("block.last").resolve(8)
    Site(place='block', block=8, first=0)
    >>> str(Site.parse("kv.1+kv.2")), str(Site.parse("kv.1-last").resolve(4))
    ('kv.1-2', 'kv.1-4')
    """

    place: Place
    block: int
    first: int = 0

    def __post_init__(self) -> None:
        if self.place == "kv" and self.first == 0:
            object.__setattr__(self, "first", self.block)

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site from its name; raises ValueError naming what is allowed."""
        parts = text.split("+")
        if len(parts) > 1:
            return cls._joined([cls.parse(part.strip()) for part in parts], text)
        match = _PATTERN.match(text)
        if match is None:
            raise InvalidError(f"site {text!r}{hint(text)}: allowed: {ALLOWED}")
        alone, place, number, kv, first, last = match.groups()
        if alone:
            return cls(cast(Place, alone), -1 if alone == "norm" else 0)
        if not kv:
            return cls(cast(Place, place), _block(number))
        start, end = _block(first), _block(last or first)
        if last and (start == -1 or (end != -1 and end <= start)):
            raise InvalidError(f"site {text!r}: allowed: kv.A-B with A before B")
        return cls("kv", end, start)

    @classmethod
    def _joined(cls, parts: Sequence[Site], text: str) -> Site:
        blocks = [(part.first, part.block) for part in parts if part.place == "kv"]
        follows = all(a[1] + 1 == b[0] for a, b in itertools.pairwise(blocks) if a[1] > 0)
        if len(blocks) != len(parts) or not follows or -1 in (block for _, block in blocks[:-1]):
            raise InvalidError(
                f"site {text!r}: several sites at once are keys and values of blocks that follow "
                "each other; allowed: kv.A+...+kv.B, or kv.A-B"
            )
        return cls("kv", blocks[-1][1], blocks[0][0])

    def resolve(self, blocks: int) -> Site:
        """Return the same site with `last` replaced by the model's number of blocks."""
        first = blocks if self.first == -1 else self.first
        return Site(self.place, blocks if self.block == -1 else self.block, first)

    def __str__(self) -> str:
        if self.place in ("embedding", "norm"):
            return self.place
        if self.first not in (0, self.block):
            return f"{self.place}.{_number(self.first)}-{_number(self.block)}"
        return f"{self.place}.{_number(self.block)}"


_ALIKE = (
    (r"(?:layers?|blocks?|h|resid(?:_post)?|hidden_states?|residual)", "block"),
    (r"(?:attn|attentions?|self_attn|attn_out)", "attention"),
    (r"(?:mlps?|ffn|feed_forward|mlp_out)", "mlp"),
    (r"(?:kvs?|cache|kv_cache|past_key_values)", "kv"),
)
"""What other tools call the places."""


def hint(text: str) -> str:
    """Return a hint at the site that was probably meant, or nothing.

    >>> hint("layer.1"), hint("model.layers[12]"), hint("nowhere")
    (' (did you mean `block.1`?)', ' (did you mean `block.12`?)', '')
    """
    for words, place in _ALIKE:
        pattern = rf"(?:.*[._])?{words}[._ \[(-]*(\d{{1,6}}|last)[\])]?\Z"
        if found := re.match(pattern, text.strip(), re.IGNORECASE):
            return f" (did you mean `{place}.{found[1].lower().lstrip('0') or 1}`?)"
    if text.strip().lower() in ("ln_f", "final_norm", "last_hidden_state", "norm_f"):
        return " (did you mean `norm`?)"
    return ""


def _block(text: str) -> int:
    return -1 if text == "last" else int(text)


def _number(block: int) -> str:
    return "last" if block == -1 else str(block)
