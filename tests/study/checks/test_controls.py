"""A control is a target that no prompt of its model could explain."""

from __future__ import annotations

from typing import Any

import pytest

from tests.example_study import example, keys, mistakes, put, says, spoilt
from tokinfo.study.mistakes import Mistake


def controlled(target: str, grid: dict[str, Any] | None = None, **sources: Any) -> list[Mistake]:
    """What is wrong with a control of the untrained `llama`; ``sources`` change other sources."""
    raw = example()
    raw["sources"]["twin"] = {**raw["sources"]["llama"], **sources}
    raw["models"]["twin"] = {"source": "twin", "state": "untrained", "seed": 1}
    raw["models"]["other"] = {"source": "llama", "state": "untrained", "seed": 2}
    raw["models"]["bf16"] = {**raw["models"]["llama"], "quantization": "bfloat16"}
    raw["tokenizers"]["small"] = {"corpus": "bible", "vocabulary": 300}
    raw["solvers"]["sweep"] = {"kind": "sweep"}
    raw["grids"][1] |= {"targets": ["own", target], "residual": [True], **(grid or {})}
    return mistakes(raw)


def test_another_seed_and_an_equal_source_make_a_control() -> None:
    assert controlled("of:other") == controlled("of:twin") == controlled("shuffled") == []


@pytest.mark.parametrize(
    ("target", "changes", "reason"),
    [
        ("of:bf16", {}, "has the same weights, so the true prompt may explain it"),
        ("of:twin", {"d_model": 64}, "is 64 wide, not 32 (for model `llama`)"),
        ("of:twin", {"tokenizer": "small"}, "has another tokenizer, `small` for `bpe`"),
        ("of:twin", {"n_ctx": 15}, "holds 15 positions, not 16"),
        ("of:twin", {"grid": {"sites": ["block.last"]}, "blocks": 3}, "has 3 blocks, and"),
        (
            "of:twin",
            {"grid": {"sites": ["norm"]}, "blocks": 5},
            "in front of its final norm (for model `llama`)",
        ),
        ("of:flat", {"grid": {"causal": [False]}}, "its model is a mixer, which is causal"),
        ("shuffled", {"grid": {"sites": ["block.1", "embedding"]}}, "at the site embedding"),
        ("shuffled", {"grid": {"masks": ["1:", "-1"]}}, "needs two visible positions"),
    ],
)
def test_what_some_prompt_could_explain_is_no_control(
    target: str, changes: dict[str, Any], reason: str
) -> None:
    (found,) = controlled(target, **changes)
    assert (found.key, found.value) == ("grids[1].targets[1]", target)
    assert says(found, reason), found


def test_a_grid_that_only_identifies_has_no_control() -> None:
    (found,) = controlled("of:other", {"solvers": [], "identify": ["sweep"]})
    assert (found.key, found.value) == ("grids[1].targets", ["own", "of:other"])
    assert says(found, "only `solvers` are given other targets")


@pytest.mark.parametrize(
    ("target", "reason"),
    [("of:llama", "has the same weights"), ("of:smol", "has another tokenizer")],
)
def test_a_model_of_the_same_weights_or_other_tokens_is_no_control(
    target: str, reason: str
) -> None:
    (found,) = spoilt((("grids", 1, "targets"), [target]))
    assert found.key == "grids[1].targets[0]"
    assert says(found, reason), found


def test_a_model_earlier_in_its_training_has_other_weights_to_explain() -> None:
    raw = put(example(), ("sources", "flat", "training", "snapshots"), [0.5])
    raw["models"]["early"] = {"source": "flat", "at": 0.5}
    raw["models"]["early-int8"] = {"source": "flat", "at": 0.5, "quantization": "int8"}
    raw["grids"][0] |= {"models": ["early"], "targets": ["of:flat"]}
    assert mistakes(raw) == []
    raw["grids"][0]["targets"] = ["of:early-int8"]
    (found, *_) = mistakes(raw)
    assert keys([found]) == ["grids[0].targets[0]"]
    assert says(found, "has the same weights")
