"""Prompts become batches, and masks choose positions of the prompt or of the padded sequence."""

from __future__ import annotations

import pytest

from tokinfo.probe.batch import make_batch
from tokinfo.study.masks import Mask

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]


def test_the_mask_applies_to_each_prompts_own_positions() -> None:
    batch = make_batch(PROMPTS, Mask("-1"), pad_id=0)
    assert batch.layout.visible.tolist() == [
        [False, False, True, False, False],
        [False, False, False, False, True],
    ]
    assert batch.layout.seen.tolist() == batch.layout.lengths.tolist() == [3, 5]


def test_padding_to_n_ctx_makes_trailing_pads_visible_but_never_scored() -> None:
    batch = make_batch(PROMPTS, Mask("1:"), pad_id=0, pad_to=6)
    assert batch.layout.visible.tolist() == [[False] + [True] * 5] * 2
    assert batch.layout.scored.sum(1).tolist() == [3, 5]
    assert batch.layout.seen.tolist() == [6, 6]
    assert batch.ids[0].tolist() == [5, 6, 7, 0, 0, 0]


@pytest.mark.parametrize(
    ("prompts", "mask", "pad_to", "message"),
    [
        ([[]], ":", None, "0 tokens"),
        ([[1, 2, 3]], ":", 2, "3 tokens, allowed: 1 to 2"),
        ([[1, 2]], "5:", None, "leaves none of 2"),
    ],
)
def test_what_cannot_be_posed_is_refused(
    prompts: list[list[int]], mask: str, pad_to: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_batch(prompts, Mask(mask), pad_id=0, pad_to=pad_to)
