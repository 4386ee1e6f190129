"""Least squares over simplices finds the minimum that projected gradients creep to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokinfo.solvers.simplex import least_squares

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**31)


def projected(point: Tensor) -> Tensor:
    """Return the nearest point of the simplex, by the sorted algorithm (Held et al., 1974)."""
    ordered = point.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(point) + 1)
    return (point - excess[int((ordered > excess).sum()) - 1]).clamp_min(0)


def descended(columns: Tensor, target: Tensor, sizes: list[int], steps: int = 4000) -> Tensor:
    gram, slope = columns.T @ columns, columns.T @ target
    rate = 1 / torch.linalg.eigvalsh(gram)[-1]
    x = torch.cat([torch.full((size,), 1 / size, dtype=torch.float64) for size in sizes])
    for _ in range(steps):
        moved = x - rate * (gram @ x - slope)
        after = torch.cat([projected(part) for part in torch.split(moved, sizes)])
        if torch.equal(after, x):
            break
        x = after
    return x


def well_conditioned(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Columns with singular values from 1 to 3, and a target that they do not reach."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count + 4, count, generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    columns = left @ torch.diag(torch.linspace(1, 3, count, dtype=torch.float64)) @ right
    return columns, torch.randn(count + 4, generator=generator, dtype=torch.float64)


def assert_minimal(columns: Tensor, target: Tensor, sizes: list[int], tolerance: float) -> None:
    """The conditions of Karush, Kuhn and Tucker, which are sufficient: the problem is convex."""
    columns, target = columns.double(), target.double()
    x = least_squares(columns, target, sizes)
    assert x.dtype == torch.float64
    assert bool((x >= 0).all())
    gradient = columns.T @ (columns @ x - target)
    unit = columns.square().sum(0).mean()
    for weights, slopes in zip(torch.split(x, sizes), torch.split(gradient, sizes), strict=True):
        torch.testing.assert_close(weights.sum(), weights.new_ones(()), rtol=0, atol=1e-8)
        # No column promises more than the group's mean, so weight lies on the best ones alone.
        assert float(weights @ slopes - slopes.min()) <= tolerance * float(unit)


@settings(max_examples=12)
@given(SIZES, SEEDS)
def test_the_minimum_is_that_of_projected_gradients_run_long(sizes: list[int], seed: int) -> None:
    columns, target = well_conditioned(seed, sum(sizes))
    found = least_squares(columns, target, sizes)
    torch.testing.assert_close(found, descended(columns, target, sizes), rtol=0, atol=1e-6)


@settings(max_examples=50)
@given(SIZES, SEEDS, st.integers(1, 30), st.floats(-3, 3))
def test_no_column_promises_more_than_those_that_have_weight(
    sizes: list[int], seed: int, rows: int, exponent: float
) -> None:
    """Whatever the units, and with fewer equations than columns too."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(rows, sum(sizes), generator=generator) * 10**exponent
    target = torch.randn(rows, generator=generator) * 10**exponent
    assert_minimal(columns, target, sizes, 1e-6)


@settings(max_examples=50)
@given(SEEDS, st.integers(1, 3))
def test_dependent_columns_are_no_obstacle(seed: int, rank: int) -> None:
    """Also columns that occur twice, and columns of zeros."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(12, rank, generator=generator, dtype=torch.float64)
    columns = basis @ torch.randn(rank, 6, generator=generator, dtype=torch.float64)
    columns = torch.cat([columns, columns, torch.zeros_like(columns[:, :2])], dim=1)
    target = torch.randn(12, generator=generator, dtype=torch.float64)
    assert_minimal(columns, target, [6, 5, 3], 1e-6)


@settings(max_examples=25)
@given(SEEDS)
def test_one_column_of_each_group_is_found_again(seed: int) -> None:
    """The case that the solver is there for: float32 columns of very unlike lengths."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [7, 5, 9]
    lengths = 10 ** (2 * torch.rand(sum(sizes), generator=generator) - 1)
    columns = torch.randn(40, sum(sizes), generator=generator) * lengths
    truth = torch.zeros(sum(sizes))
    starts = torch.tensor([0, 7, 12])
    for start, size in zip(starts.tolist(), sizes, strict=True):
        truth[start + int(torch.randint(size, (), generator=generator))] = 1
    found = least_squares(columns, columns @ truth, sizes)
    torch.testing.assert_close(found.float(), truth, rtol=0, atol=2e-2)
    chosen = [int(part.argmax()) for part in torch.split(found, sizes)]
    assert chosen == [int(part.argmax()) for part in torch.split(truth, sizes)]


def test_a_group_of_one_column_has_all_of_its_weight() -> None:
    columns, target = well_conditioned(0, 4)
    for sizes in ([1], [1, 3], [3, 1], [1, 1, 1, 1], [1, 2, 1]):
        count = sum(sizes)
        found = least_squares(columns[:, :count], target, sizes)
        for part in torch.split(found, sizes):
            assert float(part.sum()) == pytest.approx(1, abs=1e-8)
            assert len(part) > 1 or float(part) == pytest.approx(1, abs=1e-8)
