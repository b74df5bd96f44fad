"""Paths found with whole numbers: the definition of the fast GPU encoder, against the exact search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from turbocode.codecs import make_codec
from turbocode.kernels.trellis import Trellis, cpu, whole_numbers
from turbocode.kernels.trellis.tensor_layout import CYCLES

NAMES = ("trellis1", "trellis2", "trellis3", "trellis4", "turbo1_tcq", "turbo2_tcq", "turbo3_tcq")
N_GROUPS = 20480
COST_RANGE = 1 << 23  # in which search_tensor.py is exact, of costs times 2^(bits of a cycle's branches)
COARSE = 1 << 9  # its unit of u^2 / 4: costs begin half a unit a step into the range, and may gain as much by rounding


def units(x: Any) -> Any:
    """Float32 unit vectors."""
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def trellis_of(name: str) -> tuple[Trellis, Any]:
    codec = make_codec(name, 128)
    return Trellis.of_format(codec.block_format), codec.tables(0)[0]


def nmse(u: Any, values: Any) -> float:
    """Of the groups with the best norm each, in float64."""
    values = values.astype(np.float64)
    return float((1 - (u * values).sum(axis=1) ** 2 / np.square(values).sum(axis=1)).mean())


def share_of_range(costs: Any, trellis: Trellis) -> float:
    """How much of the range the dearest path may use."""
    most = costs.max() / 4 + 128 * COARSE
    return float(most * 2 ** (trellis.bits * CYCLES[trellis.bits]) / COST_RANGE)


@pytest.mark.parametrize("name", [*NAMES, "trellis2_l9"])
def test_cpu_gives_the_paths_of_the_reference(name: str, rng: np.random.Generator) -> None:
    trellis, table = trellis_of(name)
    u = units(rng.standard_normal((40, 128)))
    states, costs = whole_numbers.search(u, table, trellis)
    found, found_costs = whole_numbers.search(u, table, trellis, cpu.viterbi)
    np.testing.assert_array_equal(found, states)
    np.testing.assert_array_equal(found_costs, costs)


@pytest.mark.parametrize("name", NAMES)
def test_whole_numbers_cost_at_most_a_thousandth(name: str, rng: np.random.Generator) -> None:
    trellis, table = trellis_of(name)
    u = units(rng.standard_normal((N_GROUPS, 128)))
    states, costs = whole_numbers.search(u, table, trellis, cpu.viterbi)
    assert nmse(u, table[states]) <= 1.001 * nmse(u, table[cpu.viterbi(u, table, trellis)[0]])
    assert share_of_range(costs, trellis) < 0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["outlier", "outliers in a row", "all equal", "one value"])
def test_unlike_groups(name: str, kind: str, rng: np.random.Generator) -> None:
    trellis, table = trellis_of(name)
    n = 2048
    x = rng.standard_normal((n, 128))
    place, sign = rng.integers(0, 128, n), rng.choice([-1, 1], n)
    if kind == "all equal":
        x[:] = sign[:, None]
    elif kind == "one value":
        x *= 0.05
        x[np.arange(n), place] = sign
    else:
        for i in range(1 if kind == "outlier" else 4):
            x[np.arange(n), (place + i) % 128] = sign * rng.uniform(6, 8, n)
    u = units(x)
    states, costs = whole_numbers.search(u, table, trellis, cpu.viterbi)
    exact = cpu.viterbi(u, table, trellis)[0]
    cost, least = (np.square(u - table[found].astype(np.float64)).sum(axis=1).mean() for found in (states, exact))
    assert cost <= 1.002 * least
    assert share_of_range(costs, trellis) < 1
