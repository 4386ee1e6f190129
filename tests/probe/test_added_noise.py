"""Noise that is added to activations: how far it goes, and what a search may then claim."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokinfo as ti
from tests.tiny import problem_of
from tokinfo.examples import tiny_model
from tokinfo.io.errors import InvalidError
from tokinfo.probe.metrics import distance, position_distance
from tokinfo.probe.noise import gaussian, noise_floor
from tokinfo.study.fields import MetricName

PROMPT = "Mario the man versus Mario the idea."
QUIET: dict[str, Any] = {"show_progress": False}
METRICS: list[MetricName] = ["l1", "l2", "cosine", "l1+cosine"]


def activations(rows: int = 1, width: int = 64) -> torch.Tensor:
    """Positions of very different size, as in trained models."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.tensor([100.0, 1.0, 0.1, 3.0])[None, :, None]
    return sizes * torch.randn(rows, 4, width, generator=generator)


def test_its_size_is_a_share_of_each_positions_own() -> None:
    target = activations(width=20_000)
    noise = gaussian(target, 0.3, 7)
    ratio = noise.square().mean(-1).sqrt() / target.square().mean(-1).sqrt()
    assert ratio.tolist()[0] == pytest.approx([0.3] * 4, rel=0.03)
    assert torch.equal(gaussian(target, 0.6, 7), 2 * noise)
    assert not torch.equal(gaussian(target, 0.3, 8), noise)


def test_large_activations_of_half_precision_are_not_squared_in_it() -> None:
    target = torch.full((1, 2, 64), 400.0, dtype=torch.float16)
    noise = gaussian(target, 0.1, 0)
    assert noise.dtype == torch.float16
    assert torch.equal(noise, (0.1 * gaussian(target.float(), 1, 0).half()).half())
    assert float(noise.float().std()) == pytest.approx(40, rel=0.2)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_start_of_a_search_holds_the_noise(seed: int) -> None:
    """Both are normal numbers of the cell's seed: one that held the other would say the target."""
    problem = problem_of("llama", seed=seed)
    noise = gaussian(torch.ones_like(problem.target), 1, seed).flatten(1)
    for restart in range(4):
        for start in problem.start(restart).flatten(1):
            alike = torch.nn.functional.cosine_similarity(noise, start[None])
            assert (alike.abs() < 0.25).all()


def test_a_row_draws_the_same_in_any_batch() -> None:
    target = activations(rows=3)
    assert torch.equal(gaussian(target, 0.1, 1)[:1], gaussian(target[:1], 0.1, 1))


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), ratio=st.floats(1e-3, 10), width=st.sampled_from([8, 64, 300]))
def test_hardly_any_draw_goes_beyond_the_floor(
    metric: MetricName, seed: int, ratio: float, width: int
) -> None:
    target = activations(width=width)
    visible = torch.tensor([[True, False, True, True]])
    floor = noise_floor(target, visible, ratio, metric)
    noisy = target + gaussian(target, ratio, seed)
    away = distance(noisy, target, visible, metric)
    assert (away <= floor.distance).all()
    assert (position_distance(noisy, target) <= floor.positions).all()
    if width >= 64:  # and it is no wide bound
        assert (floor.positions <= 2.5 * position_distance(noisy, target)).all()


def test_the_norms_bound_is_that_of_a_chi_distribution() -> None:
    """sigma times the root of n, and five standard deviations of sigma over the root of two."""
    target = torch.ones(1, 1, 400)
    floor = noise_floor(target, torch.ones(1, 1, dtype=torch.bool), 0.5, "l2")
    assert float(floor.positions) == pytest.approx(0.5 * (400**0.5 + 5 / 2**0.5), rel=0.02)


@pytest.mark.parametrize("metric", ["l1", "cosine"])
def test_the_true_prompt_lies_within_the_floor_and_recovery_falls(metric: MetricName) -> None:
    opened = ti.load(*tiny_model())
    states = {}
    for noise in (0.0, 0.001, 30.0):
        found = opened.invert(
            PROMPT,
            site="block.1",
            known="1:",
            metric=metric,
            solver="joint",
            judge=True,
            noise=noise,
            **QUIET,
        )
        row = found.rows[0]
        assert row["noise"] == noise
        assert row["true_loss"] <= row["noise_floor"]
        states[noise] = row["identified"]
        if noise == 0.001:
            assert found.certified
            assert found.recovered == 1
    assert states[0.0] == states[0.001] == "identifiable"
    assert states[30.0] == "ambiguous"


def test_without_noise_nothing_changes() -> None:
    opened = ti.load(*tiny_model())
    same = [
        opened.invert(PROMPT, site="block.1", **more, **QUIET).rows for more in ({}, {"noise": 0})
    ]
    assert same[0] == same[1]


@pytest.mark.parametrize("noise", [-0.1, float("inf"), float("nan")])
def test_noise_that_is_none_is_refused(noise: float) -> None:
    with pytest.raises(InvalidError, match="noise"):
        ti.load(*tiny_model()).invert(PROMPT, site="block.1", noise=noise)
