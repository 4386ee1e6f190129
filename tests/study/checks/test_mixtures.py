"""What has no meaning where mixtures descend is refused before any job starts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.example_study import example as plain
from tests.example_study import keys, mistakes, put, says, spoilt
from tokinfo.study.mistakes import Keys

MIXED = (("grids", 1, "parametrisations"), ["embedding", "mixture"])
FEW = {"decode": {"restricted_to": "The sky is blue."}}


@pytest.mark.parametrize(
    ("path", "value", "reason", "key"),
    [
        (("grids", 1, "padding"), ["none", "n_ctx"], "pads are sought", "grids[1].padding"),
        (("grids", 1, "causal"), [False], "later positions alone", "grids[1].causal"),
        (("solvers", "adam", "clamp"), True, "sets clamp", "grids[1].solvers[0]"),
        (("solvers", "adam", "nearest_penalty"), 0.1, "nearest_penalty", "grids[1].solvers[0]"),
        (("solvers", "adam", "project"), "nearest", "sets project", "grids[1].solvers[0]"),
        *(
            (("solvers", "adam"), {"kind": kind}, f"is of kind {kind}", "grids[1].solvers[0]")
            for kind in ("joint", "mixture", "sequential", "sweep")
        ),
    ],
)
def test_a_setting_without_a_meaning_for_mixtures_is_one_line(
    path: Keys, value: object, reason: str, key: str
) -> None:
    (mistake,) = [one for one in spoilt(MIXED, (path, value)) if "mixture`" in one.message]
    assert mistake.key == key
    assert says(mistake, reason)
    assert not [one for one in spoilt((path, value)) if "mixture`" in one.message]


def test_other_solvers_and_settings_may_stand_in_a_grid_of_their_own() -> None:
    assert spoilt(MIXED) == []
    window = {"kind": "adam", "window": 8, "restarts": 2, "second_moment": "row", "minutes": 1}
    assert spoilt(MIXED, (("solvers", "adam"), window)) == []
    raw = put(plain(), ("solvers", "joint"), {"kind": "joint"})
    raw["grids"][1] |= {"parametrisations": ["mixture"], "identify": ["joint"]}
    assert mistakes(raw) == []
    (mistake,) = mistakes(put(raw, ("grids", 1, "solvers", 0), "joint"))
    assert mistake.allowed == "solvers of kind chapter, adam: chapter, adam"


def test_a_vocabulary_as_large_as_the_most_entries_is_refused_unless_candidates_are_named() -> None:
    large = (("tokenizers", "bpe", "vocabulary"), 4096)
    found = spoilt(MIXED, large)
    assert keys(found) == ["grids[1].solvers[0]", "grids[1].solvers[1]"]
    assert all(says(one, "4,096 tokens of `llama`") for one in found)
    assert says(found[0], "solvers.adam.decode.restricted_to")
    named = [(("solvers", kind), {"kind": kind, **FEW}) for kind in ("adam", "chapter")]
    assert spoilt(MIXED, large, *named) == []
    assert spoilt(MIXED, (("tokenizers", "bpe", "vocabulary"), 4095)) == []


def test_of_a_mixer_more_entries_are_allowed() -> None:
    flat = (("grids", 1, "models"), ["flat"])
    assert spoilt(MIXED, flat, (("tokenizers", "bpe", "vocabulary"), 4096)) == []
    assert len(spoilt(MIXED, flat, (("tokenizers", "bpe", "vocabulary"), 40_000))) == 2


def test_the_vocabulary_of_a_pretrained_model_counts_where_the_study_says_it() -> None:
    smol = (("grids", 1, "models"), ["smol"])
    config: dict[str, Any] = {
        **{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 30},
        **{"vocab_size": 49152, "num_attention_heads": 2, "intermediate_size": 16},
    }
    assert spoilt(MIXED, smol) == []
    found = spoilt(MIXED, smol, (("sources", "smol", "config"), config))
    assert all(says(one, "49,152 tokens of `smol`") for one in found)
    assert len(found) == 2
    broken = spoilt(MIXED, smol, (("sources", "smol", "config"), {"hidden_size": 8}))
    assert keys(broken) == ["sources.smol.config"]
