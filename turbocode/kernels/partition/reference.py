"""The definition of the optimal partition, by dynamic programming over all boundaries; for small inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cell_cost(weights: NDArray[Any], points: NDArray[Any]) -> float:
    """Weighted squared error of the points around their weighted mean; 0 where there is no weight."""
    total = float(weights.sum())
    if total == 0:
        return 0.0
    mean = float((weights * points).sum()) / total
    return float((weights * (points - mean) ** 2).sum())


def optimal_partition(points: NDArray[Any], weights: NDArray[Any], n_cells: int) -> tuple[NDArray[np.int64], float]:
    """(starts, cost): first point of each of n_cells non-empty runs of sorted points with the least total cost.

    points, weights : (n,), weights >= 0, n >= n_cells. Among equal costs the lowest starts win.
    """
    n = len(points)
    best = np.full((n_cells + 1, n + 1), np.inf)
    choice = np.zeros((n_cells + 1, n + 1), dtype=np.int64)
    best[0, 0] = 0.0
    for cells in range(1, n_cells + 1):
        for stop in range(cells, n + 1):
            for start in range(cells - 1, stop):
                cost = best[cells - 1, start] + cell_cost(weights[start:stop], points[start:stop])
                if cost < best[cells, stop]:
                    best[cells, stop], choice[cells, stop] = cost, start
    starts, stop = np.zeros(n_cells, dtype=np.int64), n
    for cells in range(n_cells, 0, -1):
        stop = int(choice[cells, stop])
        starts[cells - 1] = stop
    return starts, float(best[n_cells, n])
