"""The search alone: in the simulator against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from turbocode.kernels.trellis import Trellis, cuda, reference


@pytest.mark.parametrize(
    ("k", "length", "is_ring", "is_weighted"),
    [
        (1, 4, False, False),
        (2, 5, True, False),
        (3, 6, True, True),
        (4, 7, False, True),
        (2, 8, True, True),
        (1, 11, True, False),
    ],
)
def test_paths_of_the_reference(
    k: int, length: int, is_ring: bool, is_weighted: bool, rng: np.random.Generator
) -> None:
    trellis = Trellis(k, length, is_ring)
    table = rng.standard_normal(1 << length).astype(np.float32)
    u = rng.standard_normal((3, 16)).astype(np.float32)
    weights = rng.uniform(0.5, 2, u.shape).astype(np.float32) if is_weighted else None
    states, costs = cuda.viterbi(u, table, trellis, weights=weights)
    distance = np.square(u - table[states]) * (1 if weights is None else weights)
    np.testing.assert_allclose(distance.sum(axis=1), costs, rtol=1e-5)
    if is_weighted and is_ring:
        approach = trellis.approach(16)
        around = np.arange(16 - approach, 16 + approach) % 16
        seam = reference.viterbi(u[:, around], table, trellis, weights=weights[:, around])[0][:, approach - 1] >> k
        expected = reference.viterbi(u, table, trellis, seam, weights)[0]
    elif is_weighted:
        expected = reference.viterbi(u, table, trellis, weights=weights)[0]
    else:
        expected = (reference.tail_biting if is_ring else reference.viterbi)(u, table, trellis)[0]
    np.testing.assert_array_equal(states, expected)
