"""The optimal partition on the CPU: the best start of a cell moves monotonically with its end, so halving finds all.

Cost O(cells * n log n) with prefix sums (Wu 1991; Gronlund et al., arXiv 1701.07204).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels._cpu import strict

_STACK = 64  # of halved ranges; their depth is log2 of the number of points


@strict
def _fill_row(previous: Any, mass: Any, moment: Any, cells: int, row: Any, choice: Any) -> None:
    """Set row[stop] = min over start of previous[start] + cost(start, stop), with its start, for stop >= cells."""
    n = row.shape[0] - 1
    stack = np.empty((_STACK, 4), np.int64)
    stack[0] = (cells, n, cells - 1, n - 1)
    depth = 1
    while depth > 0:
        depth -= 1
        low, high, first, last = stack[depth]
        middle = (low + high) // 2
        least, at = np.inf, first
        for start in range(first, min(last, middle - 1) + 1):
            weight = mass[middle] - mass[start]
            drawn = moment[middle] - moment[start]
            # The sum of squares is the same for every partition, so minus its part that cells explain is the cost.
            cost = previous[start] - (drawn * drawn / weight if weight > 0.0 else 0.0)
            if cost < least:
                least, at = cost, start
        row[middle], choice[middle] = least, at
        if middle < high:
            stack[depth] = (middle + 1, high, at, last)
            depth += 1
        if low < middle:
            stack[depth] = (low, middle - 1, first, at)
            depth += 1


@strict
def _partition(mass: Any, moment: Any, n_cells: int) -> Any:
    n = mass.shape[0] - 1
    choice = np.zeros((n_cells + 1, n + 1), np.int32)
    previous, row = np.full(n + 1, np.inf), np.full(n + 1, np.inf)
    previous[0] = 0.0
    for cells in range(1, n_cells + 1):
        row[:] = np.inf
        _fill_row(previous, mass, moment, cells, row, choice[cells])
        previous, row = row, previous
    starts = np.zeros(n_cells, np.int64)
    stop = n
    for cells in range(n_cells, 0, -1):
        stop = choice[cells, stop]
        starts[cells - 1] = stop
    return starts


def optimal_partition(points: NDArray[Any], weights: NDArray[Any], n_cells: int) -> NDArray[np.int64]:
    """First point of each of n_cells non-empty runs of sorted points (n,) with the least weighted squared error.

    weights : (n,), above 0. Sums are float64 around the weighted mean; where costs tie, rounding may pick either.
    """
    weights = np.asarray(weights, dtype=np.float64)
    centred = np.asarray(points, dtype=np.float64) - np.average(points, weights=weights)
    mass = np.concatenate(([0.0], np.cumsum(weights)))
    moment = np.concatenate(([0.0], np.cumsum(weights * centred)))
    return _partition(mass, moment, n_cells)
