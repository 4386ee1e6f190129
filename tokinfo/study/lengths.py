"""How long prompts are in tokens, and what masks and known tokens leave of them.

Before a tokenizer exists a prompt's length is certain only within bounds, which is enough to
refuse what is certainly wrong; with a tokenizer the bounds meet. Both go the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tokinfo.study.known import NONE, Known
from tokinfo.study.masks import Mask, Spans
from tokinfo.study.prompts import Prompt, contents

# A tokenizer that comes with a model may begin with a special token, end with another and put
# a space before the text.
EXTRA_TOKENS = 3

Bounds = tuple[int, int]
Fault = Literal["empty", "long", "blind", "open", "idle", "solved", "special"]
Use = tuple[str, str, str, str]
"""A combination that is probed: prompt set, mask, padding and known positions."""


def bounds(prompt: Prompt, *, pretrained: bool) -> Bounds:
    """Return the fewest and the most tokens a prompt can have, without a tokenizer.

    Fewest: one for each run of characters between white space. Byte-level BPE cuts the text
    into pieces before it merges; in every pattern in use white space only ever begins a
    piece, so no token reaches from one word into the next. Most: one for each UTF-8 byte,
    the smallest piece there is; merges only make fewer. A ``pretrained`` tokenizer may add
    `EXTRA_TOKENS`. A chat has whatever its template writes beside the contents, which may join
    the last word of one to the first of the next.

    >>> bounds("The sky is blue.", pretrained=False)
    (4, 16)
    """
    said = contents(prompt)
    words = sum(1 for text in said for word in re.split(r"[ \t\n\r]+", text) if word)
    if not isinstance(prompt, str):
        return max(words + 1 - len(said), 1), UNREAD[1]
    most = len(prompt.encode()) + (EXTRA_TOKENS if pretrained else 0)
    return max(words, 1), max(most, 1)


UNREAD: Bounds = (1, 1 << 30)
"""Of a text that is not drawn yet: at least one token."""


@dataclass(frozen=True)
class Finding:
    """A prompt that certainly does not suit a model, a mask or a choice of known tokens.

    Attributes:
        fault: `empty`: it has no token; `long`: it has more than n_ctx; `blind`: the mask
            leaves no position visible; `open`: the mask hides none although it should; `idle`:
            no token is known although some should be; `solved`: all that is to be found is known;
            `special`: nothing is left of it but special tokens, which are always known.
        prompts: name of the prompt's set.
        index: its place in the set.
        mask: the mask; empty for `empty` and `long`.
        tokens: bounds on its number of tokens.
        known: the known positions, for `idle`, `solved` and `special`; otherwise, or where they are
            none, empty.
    """

    fault: Fault
    prompts: str
    index: int
    mask: str
    tokens: Bounds
    known: str = ""

    @property
    def length(self) -> str:
        """The prompt's length in words."""
        low, high = self.tokens
        return f"{low} token{'s' * (low != 1)}" if low == high else f"{low} to {high} tokens"


def findings(
    tokens: Mapping[str, Sequence[Bounds]],
    uses: Iterable[Use],
    n_ctx: int,
    spans: Mapping[str, Sequence[Spans]] | None = None,
) -> Iterator[Finding]:
    """Yield what is certainly wrong, whatever the lengths are within their bounds.

    Args:
        tokens: bounds of every prompt, by the name of its set.
        uses: every combination that is probed.
        n_ctx: most positions of the model. A prompt padded to n_ctx is a sequence of that
            length, and its mask applies to all of it.
        spans: of every prompt, the positions of each role's contents, by the name of its set; what
            a mask that names something leaves is certain only with them.
    """

    def held(mask: Mask, name: str, index: int) -> Spans | None:
        if not mask.named:
            return {}
        return spans[name][index] if spans is not None else None

    combinations = list(dict.fromkeys(uses))
    for name in dict.fromkeys(name for name, *_ in combinations):
        for index, (low, high) in enumerate(tokens.get(name, ())):
            if high == 0:
                yield Finding("empty", name, index, "", (low, high))
            elif low > n_ctx:
                yield Finding("long", name, index, "", (low, high))
    unsuited = set()
    for name, text, padding in dict.fromkeys((name, *use) for name, *use, _ in combinations):
        mask = Mask(text)
        for index, (low, high), lengths in _possible(tokens.get(name, ()), n_ctx):
            if (of := held(mask, name, index)) is None:
                continue
            if padding == "n_ctx":
                lengths = range(n_ctx, n_ctx + 1)
            fault: Fault | None = None
            if all(mask.count(length, of) == 0 for length in lengths):
                fault = "blind"
            elif mask.hides and all(mask.count(n, of) == n for n in lengths):
                fault = "open"
            if fault is not None:
                unsuited.add((name, text, padding, index))
                yield Finding(fault, name, index, mask.text, (low, high))
    for name, text, padding, given in combinations:
        mask, known = Mask(text), Known(given)
        for index, (low, high), lengths in _possible(tokens.get(name, ()), n_ctx):
            if known.text == NONE or (name, text, padding, index) in unsuited:
                continue
            if (of := held(mask, name, index)) is None:
                continue
            seen = n_ctx if padding == "n_ctx" else None
            fault = None
            if all(known.count(mask, length, seen, of) == 0 for length in lengths):
                fault = "idle"
            elif all(known.left(mask, length, seen, of) == 0 for length in lengths):
                fault = "solved"
            if fault is not None:
                yield Finding(fault, name, index, mask.text, (low, high), known.text)


def _possible(bounds: Sequence[Bounds], n_ctx: int) -> Iterator[tuple[int, Bounds, range]]:
    """Yield each prompt that the model may take: its place, its bounds and its lengths."""
    for index, (low, high) in enumerate(bounds):
        if high > 0 and low <= n_ctx:
            yield index, (low, high), range(max(low, 1), min(high, n_ctx) + 1)


def sentence(finding: Finding, n_ctx: int) -> str:
    """Return a finding in words, to follow the prompt, mask or known positions it is about.

    >>> sentence(Finding("long", "p", 0, "", (70, 300)), 64)
    'has 70 to 300 tokens, more than n_ctx = 64'
    """
    if finding.fault == "empty":
        return "has no token"
    if finding.fault == "long":
        return f"has {finding.length}, more than n_ctx = {n_ctx}"
    return {
        "blind": "leaves no visible position",
        "open": "hides no position",
        "idle": "gives no token",
        "solved": "leaves nothing to find",
        "special": "leaves special tokens alone to find"
        if finding.known
        else "hides special tokens alone, which are known,",
    }[finding.fault]
