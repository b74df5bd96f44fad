"""The GPU's search: in the simulator against the reference, on a GPU against the CPU's, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from turbocode.evaluation.environment import cuda_problem
from turbocode.kernels.trellis import Trellis, cpu

ROOT = Path(__file__).parents[2]
SIMULATED = """
import numpy as np
from turbocode.kernels.trellis import Trellis, cuda, reference

rng = np.random.default_rng(0)
cases = ((1, 4, False, False), (2, 5, True, False), (3, 6, True, True), (4, 7, False, True))
for k, length, is_ring, is_weighted in cases:
    trellis = Trellis(k, length, is_ring)
    table = rng.standard_normal(1 << length).astype(np.float32)
    u = rng.standard_normal((3, 16)).astype(np.float32)
    weights = rng.uniform(0.5, 2, u.shape).astype(np.float32) if is_weighted else None
    states, costs = cuda.viterbi(u, table, trellis, weights=weights, threads=8)
    distance = np.square(u - table[states]) * (1 if weights is None else weights)
    assert np.abs(distance.sum(axis=1) - costs).max() < 1e-5
    if is_weighted and is_ring:
        approach = trellis.approach(16)
        around = np.arange(16 - approach, 16 + approach) % 16
        seam = reference.viterbi(u[:, around], table, trellis, weights=weights[:, around])[0][:, approach - 1] >> k
        expected = reference.viterbi(u, table, trellis, seam, weights)[0]
    elif is_weighted:
        expected = reference.viterbi(u, table, trellis, weights=weights)[0]
    else:
        expected = (reference.tail_biting if is_ring else reference.viterbi)(u, table, trellis)[0]
    assert (states == expected).all(), (k, length, is_ring)
print("same paths")
"""


def test_simulated_kernel_finds_the_paths_of_the_reference() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SIMULATED],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stdout.strip() == "same paths", run.stderr


@pytest.mark.gpu
@pytest.mark.skipif(cuda_problem() is not None, reason=f"no GPU: {cuda_problem()}")
@pytest.mark.parametrize(("k", "length"), [(1, 8), (2, 8), (3, 9), (4, 10), (1, 12), (4, 12)])
@pytest.mark.parametrize("is_ring", [False, True])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_gpu_and_cpu_find_the_same_paths(
    k: int, length: int, is_ring: bool, is_weighted: bool, rng: np.random.Generator
) -> None:
    from turbocode.kernels.trellis import cuda

    trellis = Trellis(k, length, is_ring)
    table = rng.standard_normal(1 << length).astype(np.float32)
    u = rng.standard_normal((1000, 128)).astype(np.float32)
    weights = rng.uniform(0.5, 2, u.shape).astype(np.float32) if is_weighted else None
    states, costs = cuda.viterbi(u, table, trellis, weights=weights)
    expected, expected_costs = cpu.viterbi(u, table, trellis, weights=weights)
    np.testing.assert_array_equal(states, expected)
    np.testing.assert_array_equal(costs, expected_costs)
