"""Moments of keys at positions that no calibration text reached: those seen, turned by the rotary embedding.

After RoPE a key at position p is R_p k with k from before it, so that R_d turns a key of position p into that of p + d.
The pairs of channels that turn slowly have moments that depend on the position; averaged over shifts d they are those
of a longer context. Pairs are taken to be (i, i + D / 2) with angles d theta^(-2 i / D), as in most models; where a
model turns others, or fewer, the average is of something else, which costs some of the gain and nothing of exactness.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from turbocode.transforms.rope import rotations, turned

Floats = NDArray[np.float64]
SHIFTS = 192  # of which averages are taken
_SEED = 0


def shifts(reach: int) -> Floats:
    """Positions float64 (SHIFTS,), spread evenly and at random within each part over 0 to reach."""
    return (np.arange(SHIFTS) + np.random.default_rng(_SEED).random(SHIFTS)) * (reach / SHIFTS)


def average_vector(x: Floats, theta: float, reach: int) -> Floats:
    """The mean over the shifts of R x, for vectors (..., D)."""
    pairs = zip(*rotations(x.shape[-1], theta, shifts(reach)), strict=True)
    return np.asarray(np.mean([turned(x, cosine, sine) for cosine, sine in pairs], axis=0))


def average_matrix(matrix: Floats, theta: float, reach: int) -> Floats:
    """The mean over the shifts of R M R^T, for matrices (..., D, D)."""
    total = np.zeros_like(matrix)
    for cosine, sine in zip(*rotations(matrix.shape[-1], theta, shifts(reach)), strict=True):
        rows = turned(matrix, cosine, sine)
        total += turned(np.swapaxes(rows, -1, -2), cosine, sine)
    return total / SHIFTS
