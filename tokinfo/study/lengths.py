"""How long prompts are in tokens, and what masks leave of them.

Before a tokenizer exists a prompt's length is certain only within bounds, which is enough to
refuse what is certainly wrong; with a tokenizer the bounds meet. Both go the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tokinfo.study.masks import Mask

# A tokenizer that comes with a model may begin with a special token, end with another and put
# a space before the text.
EXTRA_TOKENS = 3

Bounds = tuple[int, int]
Fault = Literal["empty", "long", "blind", "open"]


def bounds(prompt: str, *, pretrained: bool) -> Bounds:
    """Return the fewest and the most tokens a prompt can have, without a tokenizer.

    Fewest: one for each run of characters between white space. Byte-level BPE cuts the text
    into pieces before it merges; in every pattern in use white space only ever begins a
    piece, so no token reaches from one word into the next. Most: one for each UTF-8 byte,
    the smallest piece there is; merges only make fewer. A ``pretrained`` tokenizer may add
    `EXTRA_TOKENS`.

    >>> bounds("The sky is blue.", pretrained=False)
    (4, 16)
    """
    words = len([word for word in re.split(r"[ \t\n\r]+", prompt) if word])
    most = len(prompt.encode()) + (EXTRA_TOKENS if pretrained else 0)
    return max(words, 1), max(most, 1)


UNREAD: Bounds = (1, 1 << 30)
"""Of a text that is not drawn yet: at least one token."""


@dataclass(frozen=True)
class Finding:
    """A prompt that certainly does not suit a model or a mask.

    Attributes:
        fault: `empty`: it has no token; `long`: it has more than n_ctx; `blind`: the mask
            leaves no position visible; `open`: the mask hides none although it should.
        prompts: name of the prompt's set.
        index: its place in the set.
        mask: the mask, for `blind` and `open`; otherwise empty.
        tokens: bounds on its number of tokens.
    """

    fault: Fault
    prompts: str
    index: int
    mask: str
    tokens: Bounds

    @property
    def length(self) -> str:
        """The prompt's length in words."""
        low, high = self.tokens
        return f"{low} token{'s' * (low != 1)}" if low == high else f"{low} to {high} tokens"


def findings(
    tokens: Mapping[str, Sequence[Bounds]],
    uses: Iterable[tuple[str, str, str]],
    n_ctx: int,
) -> Iterator[Finding]:
    """Yield what is certainly wrong, whatever the lengths are within their bounds.

    Args:
        tokens: bounds of every prompt, by the name of its set.
        uses: (prompt set, mask, padding) of every combination that is probed.
        n_ctx: most positions of the model. A prompt padded to n_ctx is a sequence of that
            length, and its mask applies to all of it.
    """
    combinations = list(dict.fromkeys(uses))
    for name in dict.fromkeys(name for name, _, _ in combinations):
        for index, (low, high) in enumerate(tokens.get(name, ())):
            if high == 0:
                yield Finding("empty", name, index, "", (low, high))
            elif low > n_ctx:
                yield Finding("long", name, index, "", (low, high))
    for name, text, padding in combinations:
        mask = Mask(text)
        for index, (low, high) in enumerate(tokens.get(name, ())):
            if high == 0 or low > n_ctx:
                continue
            lengths = range(max(low, 1), min(high, n_ctx) + 1)
            if padding == "n_ctx":
                lengths = range(n_ctx, n_ctx + 1)
            if all(mask.count(length) == 0 for length in lengths):
                yield Finding("blind", name, index, mask.text, (low, high))
            elif mask.hides and all(mask.count(n) == n for n in lengths):
                yield Finding("open", name, index, mask.text, (low, high))


def sentence(finding: Finding, n_ctx: int) -> str:
    """Return a finding in words, to follow the prompt or the mask it is about.

    >>> sentence(Finding("long", "p", 0, "", (70, 300)), 64)
    'has 70 to 300 tokens, more than n_ctx = 64'
    """
    if finding.fault == "empty":
        return "has no token"
    if finding.fault == "long":
        return f"has {finding.length}, more than n_ctx = {n_ctx}"
    verb = "leaves no visible" if finding.fault == "blind" else "hides no"
    return f"{verb} position"
