"""Metrics equal their definitions in float64, and hidden positions never count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tokinfo.probe.metrics import distance
from tokinfo.study.solvers import MetricWeights

SHAPE = (2, 4, 3)
NUMBERS = arrays(np.float64, SHAPE, elements=st.floats(-100, 100))
VISIBLE = arrays(np.bool_, SHAPE[:2]).filter(lambda v: bool(v.any(1).all()))
METRICS = ["l1", "l2", "cosine", "l1+cosine"]


def by_definition(a: np.ndarray, b: np.ndarray, metric: str) -> float:
    if metric == "l1":
        return float(np.abs(a - b).sum())
    if metric == "l2":
        return float(np.sqrt(((a - b) ** 2).sum()))
    cosine = 1.0
    if a.any() and b.any():
        a_unit, b_unit = a / np.abs(a).max(), b / np.abs(b).max()
        norms = np.linalg.norm(a_unit) * np.linalg.norm(b_unit)
        cosine = 1 - abs(float((a_unit * b_unit).sum())) / norms
    return cosine if metric == "cosine" else 2.0 * cosine + 0.5 * by_definition(a, b, "l1")


@pytest.mark.parametrize("metric", METRICS)
@given(a=NUMBERS, b=NUMBERS, visible=VISIBLE)
def test_distance_is_its_definition_over_visible_positions(
    metric: str, a: np.ndarray, b: np.ndarray, visible: np.ndarray
) -> None:
    found = distance(
        torch.tensor(a),
        torch.tensor(b),
        torch.tensor(visible),
        metric,
        MetricWeights(cosine=2.0, l1=0.5),
    )
    for row in range(SHAPE[0]):
        mask = visible[row]
        expected = by_definition(a[row, mask], b[row, mask], metric)
        assert float(found[row]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_cosine_keeps_its_digits_near_nothing() -> None:
    """A change of one small component beside a massive one, against float64."""
    a = torch.tensor([24_000.0, *torch.randn(575, generator=torch.Generator().manual_seed(0))])
    b = a.clone()
    b[-1] += 3.0
    x, y = a.double(), b.double()
    exact = float(((x / x.norm() - y / y.norm()) ** 2).sum() / 2)
    visible = torch.tensor([[True]])
    found = float(distance(a[None, None], b[None, None], visible, "cosine"))
    assert found == pytest.approx(exact, rel=1e-3)
    assert float(distance(a[None, None], a[None, None], visible, "cosine")) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_a_hidden_position_changes_neither_value_nor_gradient(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 3, 4, generator=generator)
    visible = torch.tensor([[False, True, True]])
    found = torch.randn(1, 3, 4, generator=generator)
    wild = found.clone()
    wild[0, 0] = float("inf")
    gradients = []
    for candidate in (found, wild):
        candidate.requires_grad_(True)
        value = distance(candidate, target, visible, metric)
        gradients.append(torch.autograd.grad(value.sum(), candidate)[0])
    assert torch.equal(gradients[0], gradients[1])
    assert not gradients[0][0, 0].any()
    assert torch.equal(distance(found, target, visible, metric), value)


def test_l2_of_a_perfect_match_has_a_finite_gradient() -> None:
    x = torch.ones(1, 2, 3, requires_grad=True)
    value = distance(x, torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), "l2")
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.isfinite(gradient).all()


def test_half_precision_is_summed_in_float32() -> None:
    a = torch.full((1, 1, 4096), 1.0, dtype=torch.bfloat16)
    value = distance(a, torch.zeros_like(a), torch.ones(1, 1, dtype=torch.bool), "l1")
    assert value.dtype == torch.float32
    assert float(value) == 4096


def test_an_unknown_metric_is_named() -> None:
    x = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="'l3'"):
        distance(x, x, torch.ones(1, 1, dtype=torch.bool), "l3")  # type: ignore[arg-type]
