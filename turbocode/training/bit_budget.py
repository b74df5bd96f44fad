"""Spends a number of bytes where each lowers the cost of coding most: over layers, keys and values, channels."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError

Key = TypeVar("Key", bound=Hashable)


def spend_rates(
    costs: Mapping[Key, NDArray[np.float64]], nmse: Sequence[float], n_bytes: int, *, at_least: int = 2
) -> dict[Key, NDArray[np.int64]]:
    """Rates int64 (runs,) of every side that together take n_bytes: the greatest gain first.

    costs : what each run of a side costs if it is left out, (runs,); a byte a vector gives a run one bit a channel
    nmse : what remains of it at each rate, 1 for rate 0, falling ever slower; at_least : bytes of every side
    Raises OptionError where n_bytes is too few for `at_least`, or more than the rates can take.
    """
    top = len(nmse) - 1
    gains = -np.diff(np.asarray(nmse, dtype=np.float64))
    if (np.diff(gains) >= 0).any() or (gains <= 0).any():
        raise OptionError(f"nmse {list(nmse)} does not fall ever slower")
    least, most = at_least * len(costs), sum(top * len(cost) for cost in costs.values())
    if not least <= n_bytes <= most:
        raise OptionError(f"{n_bytes} bytes for all sides; {least} to {most} are possible")
    rates = {key: np.zeros(len(cost), dtype=np.int64) for key, cost in costs.items()}
    queues = {key: [(-cost[run] * gains[0], run) for run in range(len(cost))] for key, cost in costs.items()}
    for queue in queues.values():
        heapq.heapify(queue)

    def spend(key: Key) -> None:
        _, run = heapq.heappop(queues[key])
        rates[key][run] += 1
        if rates[key][run] < top:
            heapq.heappush(queues[key], (-costs[key][run] * gains[rates[key][run]], run))

    for key in costs:
        for _ in range(at_least):
            spend(key)
    names = list(costs)
    heads = [(queues[key][0][0], place) for place, key in enumerate(names) if queues[key]]
    heapq.heapify(heads)
    for _ in range(n_bytes - least):
        place = heapq.heappop(heads)[1]
        spend(names[place])
        if queues[names[place]]:
            heapq.heappush(heads, (queues[names[place]][0][0], place))
    return rates


def remaining_cost(cost: NDArray[np.float64], rates: NDArray[np.int64], nmse: Sequence[float]) -> float:
    """What the runs of a side cost at these rates."""
    return float((cost * np.asarray(nmse)[rates]).sum())


def choose_options(options: Mapping[Key, Sequence[tuple[float, float]]], budget: float) -> dict[Key, int]:
    """Which (size, cost) of every key to take so that the sizes sum to at most `budget` and the costs to little.

    Goes up the lower convex hull of each key, steepest step first (Shoham, Gersho, IEEE Trans. ASSP 36, 1988), and
    passes over steps that no longer fit. Raises OptionError where even the smallest sizes exceed the budget.
    """
    hulls = {key: _hull(rows) for key, rows in options.items()}
    chosen = dict.fromkeys(options, 0)
    size = sum(options[key][hull[0]][0] for key, hull in hulls.items())
    if size > budget * (1 + 1e-12):
        raise OptionError(f"the smallest choices take {size:g}; the budget is {budget:g}")
    steps = []
    for place, (key, hull) in enumerate(hulls.items()):
        for level in range(1, len(hull)):
            (small, dear), (large, cheap) = (options[key][hull[level - 1]], options[key][hull[level]])
            steps.append((-(dear - cheap) / (large - small), place, level, large - small, key))
    # Slopes of a hull fall, so that a key's steps come in order.
    for _, _, level, more, key in sorted(steps, key=lambda step: step[:3]):
        if chosen[key] == level - 1 and size + more <= budget * (1 + 1e-12):
            chosen[key], size = level, size + more
    return {key: hulls[key][level] for key, level in chosen.items()}


def _hull(rows: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the lower convex hull of (size, cost), from the smallest size to the least cost."""
    order = sorted(range(len(rows)), key=lambda index: rows[index])
    hull: list[int] = []
    for index in order:
        size, cost = rows[index]
        if hull and (cost >= rows[hull[-1]][1] or size == rows[hull[-1]][0]):
            continue
        while len(hull) > 1:
            (s0, c0), (s1, c1) = rows[hull[-2]], rows[hull[-1]]
            if (c0 - c1) * (size - s1) > (c1 - cost) * (s1 - s0):
                break
            hull.pop()
        hull.append(index)
    return hull
