"""Time requested of a cluster: above all measurements, within reason, more at each attempt."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workflow.run import smoke
from tokinfo.study.cell import Cell
from tokinfo.study.lengths import EXTRA_TOKENS
from tokinfo.study.study import Study
from tokinfo.workflow.memory import mixed_by
from tokinfo.workflow.runtime import (
    FLOOR,
    cell_minutes,
    fetch_minutes,
    prepare_minutes,
    training_minutes,
)

LLAMA = {
    **{"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152},
    **{"intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
}
"""The sizes of SmolLM2-135M."""


def text(tokens: int) -> str:
    """Return a text that is taken to have so many tokens: each sign may be one."""
    return "1" * (tokens - EXTRA_TOKENS)


def study(solver: dict[str, Any], **changes: Any) -> Study:
    """Return a study of SmolLM2, of one cell."""
    source = {"kind": "hub", "repository": "a/b", "blocks": 30, "config": LLAMA}
    made = smoke() | {
        "device": "cpu",
        "sources": {"smol": source},
        "models": {
            "smol": {"source": "smol"},
            "packed": {"source": "smol", "quantization": "int8"},
        },
        "prompts": {"sea": [text(20)]},
        "solvers": {"timed": solver},
        "grids": [
            {
                **{"models": ["smol"], "sites": ["block.15"], "masks": ["1:"]},
                **{"solvers": ["timed"], "prompts": ["sea"]},
            }
        ],
    }
    return Study.model_validate(made | changes)


def cell(made: Study, **changes: Any) -> Cell:
    return Cell.model_validate(made.cells()[0].model_dump() | changes)


def minutes(solver: dict[str, Any], prompts: int = 1, tokens: int = 20, **changes: Any) -> int:
    made = study(solver, prompts={"sea": [text(tokens)] * prompts})
    return cell_minutes(made, cell(made, **changes)) - FLOOR


# What docs/evidence/ says of one thread, in minutes (`exact.csv`; of `joint`, README.md).
@pytest.mark.parametrize(
    ("solver", "prompts", "tokens", "site", "measured"),
    [
        ({"kind": "sequential"}, 100, 20, "block.15", 1105 / 60),
        ({"kind": "sequential"}, 100, 20, "block.1", 38.4 / 60),
        ({"kind": "joint"}, 3, 8, "block.1", 3 * 120 / 60),
        ({"kind": "mixture"}, 6, 16, "block.1", 6 * 20 / 60),
    ],
)
def test_what_was_measured_fits_with_room_to_spare(
    solver: dict[str, Any], prompts: int, tokens: int, site: str, measured: float
) -> None:
    mask = ":" if solver["kind"] == "sequential" else "1:"
    requested = minutes(solver, prompts, tokens, site=site, mask=mask)
    assert 2 * measured < requested + FLOOR
    assert requested < 100 * max(measured, 1)


@pytest.mark.parametrize(
    ("model", "site", "path"),
    [
        ("smol", "block.1", "convex"),
        ("smol", "block.2", "annealing"),
        ("packed", "block.1", "annealing"),
        ("mixer", "block.1", "descent"),
        ("mixer", "block.4", "descent"),
    ],
)
def test_a_cell_is_taken_for_the_search_that_its_model_needs(
    model: str, site: str, path: str
) -> None:
    made = study({"kind": "mixture"}).model_copy(deep=True)
    small = Study.model_validate(smoke())
    made.sources["mixer"] = small.sources["mixer-flat"]
    made.models["mixer"] = made.models["smol"].model_copy(update={"source": "mixer"})
    assert mixed_by(made, cell(made, model=model, site=site)) == path


def test_what_annealing_took_fits_with_room_to_spare() -> None:
    """One prompt of three hidden tokens and five known ones, by itself: less than 220 s."""
    measured = 220 / 60
    requested = minutes({"kind": "mixture"}, 1, 8, site="block.8", mask="3:")
    assert 2 * measured < requested + FLOOR < 50 * measured


@pytest.mark.parametrize(
    "solver",
    [
        {"kind": "chapter"},
        {"kind": "adam", "window": 8},
        {"kind": "sequential"},
        {"kind": "sweep"},
        {"kind": "joint"},
        {"kind": "mixture"},
    ],
    ids=lambda solver: solver["kind"],
)
def test_time_grows_with_prompts_depth_and_attempts(solver: dict[str, Any]) -> None:
    one, many = minutes(solver, 10), minutes(solver, 100)
    assert 5 * one < many < 11 * one + 11
    assert minutes(solver, 10, site="block.30") > 1.5 * one
    made = study(solver)
    assert cell_minutes(made, cell(made), 3) == 3 * cell_minutes(made, cell(made))
    assert cell_minutes(made, cell(made)) >= FLOOR


def test_time_falls_with_threads_and_gpus_and_rises_with_packed_weights() -> None:
    solver = {"kind": "sweep"}
    slow = study(solver)
    quick, gpu = study(solver, threads=4), study(solver, device="cuda")
    packed = cell(slow, model="packed")
    assert cell_minutes(quick, cell(quick)) < cell_minutes(slow, cell(slow))
    assert cell_minutes(gpu, cell(gpu)) < cell_minutes(quick, cell(quick))
    assert cell_minutes(slow, packed) > cell_minutes(slow, cell(slow))


def test_a_sweep_asks_for_the_positions_that_it_sweeps() -> None:
    every = minutes({"kind": "sweep", "positions": "all"}, 10)
    hidden = minutes({"kind": "sweep"}, 10)
    first = minutes({"kind": "sweep", "positions": "all", "first": 1}, 10)
    assert first <= hidden < every


def test_projection_and_vocabulary_pay_for_the_whole_embedding() -> None:
    plain = minutes({"kind": "adam"}, 100, site="block.1")
    projected = minutes({"kind": "adam", "project": "nearest"}, 100, site="block.1")
    direct = minutes({"kind": "adam"}, 100, site="block.1", parametrisation="vocabulary")
    assert projected > 2 * plain
    assert direct > 2 * plain


@pytest.mark.parametrize("kind", ["chapter", "adam"])
def test_mixtures_pay_for_every_candidate_that_is_sought(kind: str) -> None:
    def asked(text: str, **changes: str) -> int:
        solver = {"kind": kind, "decode": {"restricted_to": text}}
        return minutes(solver, 20, parametrisation="mixture", mask="3:", **changes)

    few, many = asked("x" * 20), asked("x" * 200)
    assert minutes({"kind": kind}, 20, mask="3:") < few < many
    assert asked("x" * 200, known="visible") < many / 3
    assert asked("x" * 20_000) == asked("x" * 40_000)  # a cell with as many entries is refused


def test_training_grows_with_its_steps_and_fetching_with_its_bytes() -> None:
    made = Study.model_validate(smoke() | {"device": "cpu"})
    data = smoke() | {"device": "cpu"}
    data["sources"]["mixer-flat"]["training"]["steps"] = 10**6
    longer = Study.model_validate(data)
    assert FLOOR <= training_minutes(made, "mixer-flat") < FLOOR + 5
    assert training_minutes(longer, "mixer-flat") > 100
    assert training_minutes(made, "mixer-expanded", 2) == 2 * FLOOR  # never trained
    smol = study({"kind": "adam"})
    assert fetch_minutes(smol, "smol", "config") < fetch_minutes(smol, "smol", "30")
    assert prepare_minutes(smol, "smol", 1) <= prepare_minutes(smol, "packed", 30)
