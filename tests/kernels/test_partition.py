"""The optimal partition: cpu against the reference against all partitions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from turbocode.kernels.partition import cpu, reference


def cost(points: Any, weights: Any, starts: Any) -> float:
    bounds = [*starts, len(points)]
    return sum(reference.cell_cost(weights[a:b], points[a:b]) for a, b in itertools.pairwise(bounds))


def brute_force(points: Any, weights: Any, n_cells: int) -> float:
    inner = itertools.combinations(range(1, len(points)), n_cells - 1)
    return min(cost(points, weights, (0, *starts)) for starts in inner)


@pytest.mark.parametrize("n_cells", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [4, 5, 9, 12])
def test_both_find_the_least_cost(n: int, n_cells: int, rng: np.random.Generator) -> None:
    for _ in range(10):
        points = np.sort(rng.choice(1000, n, replace=False)).astype(float)
        weights = rng.integers(1, 50, n).astype(float)
        least = brute_force(points, weights, n_cells)
        starts, found = reference.optimal_partition(points, weights, n_cells)
        assert found == pytest.approx(least, rel=1e-12, abs=1e-9)
        assert cost(points, weights, starts) == pytest.approx(least, rel=1e-12, abs=1e-9)
        by_cpu = cpu.optimal_partition(points, weights, n_cells)
        assert cost(points, weights, by_cpu) == pytest.approx(least, rel=1e-9, abs=1e-9)


def test_equal_costs_take_the_lowest_starts() -> None:
    points, weights = np.arange(5.0), np.ones(5)
    starts, _ = reference.optimal_partition(points, weights, 2)
    assert starts.tolist() == [0, 2]


def test_as_many_cells_as_points_cost_nothing(rng: np.random.Generator) -> None:
    points = np.sort(rng.standard_normal(16))
    assert cpu.optimal_partition(points, np.ones(16), 16).tolist() == list(range(16))


def test_many_points_give_cells_in_order(rng: np.random.Generator) -> None:
    points, weights = np.linspace(-11, 11, 65536), rng.integers(1, 1000, 65536)
    starts = cpu.optimal_partition(points, weights, 64)
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
