"""Samples and values as whole numbers, so that costs of paths are whole too and their sums exact on the tensor cores.

With u_i = round(2 S u) and w_i = round(S v) the squared distance is (u_i - 2 w_i)^2 = u_i^2 + 4 (w_i^2 - u_i w_i), of
which u_i^2 is common to all states; what search_tensor.py adds up are w_i^2 - u_i w_i, times 2^k, plus the number of
the branch. The path that it finds is the one `search` gives. S is as large as the costs of good paths allow: these must
stay below 2^23 / 2^k / S^2 variances, also where outliers follow on one another; while the errors of rounding add
(1 + 1/4) / (12 S^2) variances to a squared distance. Outliers beyond any state's value are cut, which changes no choice
of states but makes them cheaper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels.trellis import reference
from turbocode.kernels.trellis.trellis import Trellis

SCALES = {1: 48, 2: 64, 3: 144, 4: 176}  # S by k: whole numbers a standard deviation of a coordinate
LIMITS = {1: 2047, 2: 2047, 3: 2047, 4: 1700}  # of |u_i|, float16 being exact up to 2048; of |w_i| half of it
STEPS_AT_ONCE = 4


def approach(trellis: Trellis, group_size: int) -> int:
    """`Trellis.approach`, rounded up to what the search takes at once; 0 for free ends."""
    if not trellis.is_tail_biting:
        return 0
    return min(group_size, -(-trellis.approach(group_size) // STEPS_AT_ONCE) * STEPS_AT_ONCE)


def sample_scale(bits: int, group_size: int) -> np.float32:
    """2 S for coordinates of a unit vector of group_size values."""
    return np.float32(2 * SCALES[bits] * np.sqrt(group_size))


def whole_samples(u: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """u_i (n, g), cut to the limit, of unit vectors float32 (n, g)."""
    scaled = np.asarray(u, np.float32) * sample_scale(bits, np.shape(u)[1])
    return np.clip(np.rint(scaled), -LIMITS[bits], LIMITS[bits])


def whole_values(table: NDArray[np.float32], bits: int, group_size: int) -> NDArray[np.float32]:
    """w_i, cut to half of the limit, of the values of states, float32 (2**L,) in units of the norm of a group."""
    scaled = np.asarray(table, np.float32) * (sample_scale(bits, group_size) * np.float32(0.5))
    return np.clip(np.rint(scaled), -(LIMITS[bits] // 2), LIMITS[bits] // 2)


def search(u: NDArray[np.float32], table: NDArray[np.float32], trellis: Trellis, viterbi: Any = None) -> Any:
    """(states (n, g), costs) of unit vectors u float32 (n, g).

    viterbi : `cpu.viterbi` for the same paths sooner; its float32 sums are exact below 2^24, as those of paths are
    """
    x, values = whole_samples(u, trellis.bits), 2 * whole_values(table, trellis.bits, np.shape(u)[1])
    around = approach(trellis, np.shape(u)[1])
    if viterbi is not None:
        return viterbi(x, values, trellis, approach=around or None)
    if trellis.is_tail_biting:
        return reference.tail_biting(x, values, trellis, around)
    return reference.viterbi(x, values, trellis)
