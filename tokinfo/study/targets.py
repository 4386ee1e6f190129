"""What a search has to explain: its prompt's activations, or a control's.

No prompt explains a control, so that whatever is certified under one is a fault. This module
imports no torch: the study and its checks read targets here.
"""

from __future__ import annotations

import random
from typing import Literal

from tokinfo.io.errors import InvalidError

OWN = "own"
SHUFFLED = "shuffled"
ALLOWED = "own, shuffled or of:MODEL (another model of the study)"
_OF = "of:"

Kind = Literal["own", "shuffled", "of"]


def kind(target: str) -> Kind:
    """Return which kind of target a text stands for.

    >>> [kind(text) for text in ("own", "shuffled", "of:flat-other")]
    ['own', 'shuffled', 'of']

    Raises:
        ValueError: it stands for none.
    """
    if target in (OWN, SHUFFLED):
        return "own" if target == OWN else "shuffled"
    if target.startswith(_OF) and len(target) > len(_OF):
        return "of"
    raise InvalidError(f"{target!r} is not a target; allowed: {ALLOWED}")


def other_model(target: str) -> str | None:
    """Return the model whose activations are to be explained; None: the cell's model.

    >>> other_model("of:flat-other"), other_model("shuffled")
    ('flat-other', None)
    """
    return target.removeprefix(_OF) if target.startswith(_OF) else None


def slug(target: str) -> str:
    """Return a target as part of a file name; empty for a prompt's activations.

    >>> slug("own"), slug("shuffled"), slug("of:flat-other")
    ('', 'shuffled', 'of-flat-other')
    """
    return "" if target == OWN else target.replace(":", "-")


def derangement(length: int) -> list[int]:
    """Return where each of ``length`` positions takes its activations from: never from itself.

    A random cycle through all positions by Sattolo's algorithm (S. Sattolo, Information
    Processing Letters 22, 1986), drawn with Python's generator seeded with the length. So it is
    the same for every prompt of that length, in every cell and on every machine.

    Raises:
        ValueError: fewer than two positions.
    """
    if length < 2:
        raise InvalidError(f"{length} position cannot be shuffled")
    # `random()` is the one method whose numbers Python promises to keep.
    draw = random.Random(length).random
    order = list(range(length))
    for last in range(length - 1, 0, -1):
        other = int(draw() * last)
        order[last], order[other] = order[other], order[last]
    return order
