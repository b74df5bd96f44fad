"""The rotation on the CPU, float32, one group at a time in cache.

The order of additions is part of the definition of the stored bytes: butterflies of distance 1, 2, 4, ... inside each
row of `width` values, then the base matrix over the rows, summed from first to last, then one multiplication.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels._cpu import GROUPS_PER_TASK, prange, strict, strict_parallel
from turbocode.kernels.fwht.hadamard import Rotation

RADIX = 8


@strict
def _radix8(v: Any, i: int, stride: int) -> None:
    """Three butterfly stages, of distance stride, 2 * stride and 4 * stride, on eight values held in registers."""
    x0, x1, x2, x3 = v[i], v[i + stride], v[i + 2 * stride], v[i + 3 * stride]
    x4, x5, x6, x7 = v[i + 4 * stride], v[i + 5 * stride], v[i + 6 * stride], v[i + 7 * stride]
    a0, a1, a2, a3 = x0 + x1, x0 - x1, x2 + x3, x2 - x3
    a4, a5, a6, a7 = x4 + x5, x4 - x5, x6 + x7, x6 - x7
    b0, b1, b2, b3 = a0 + a2, a1 + a3, a0 - a2, a1 - a3
    b4, b5, b6, b7 = a4 + a6, a5 + a7, a4 - a6, a5 - a7
    v[i], v[i + stride], v[i + 2 * stride], v[i + 3 * stride] = b0 + b4, b1 + b5, b2 + b6, b3 + b7
    v[i + 4 * stride], v[i + 5 * stride] = b0 - b4, b1 - b5
    v[i + 6 * stride], v[i + 7 * stride] = b2 - b6, b3 - b7


@strict
def butterflies(v: Any, width: int) -> None:
    """Transform every run of `width` values of v in place, unnormalised, distances 1, 2, 4, ... in this order."""
    n = v.shape[0]
    h = 1
    if width >= RADIX:
        for i in range(0, n, RADIX):
            _radix8(v, i, 1)
        h = RADIX
    if width >= RADIX * RADIX:
        for start in range(0, n, RADIX * RADIX):
            for lane in range(RADIX):
                _radix8(v, start + lane, RADIX)
        h = RADIX * RADIX
    while h < width:
        for start in range(0, n, 2 * h):
            for j in range(start, start + h):
                a, b = v[j], v[j + h]
                v[j] = a + b
                v[j + h] = a - b
        h *= 2


@strict
def transform(v: Any, mixed: Any, width: int, base: Any, last: Any) -> None:
    """Apply base (x) butterflies to v in place, then multiply by `last` (signs times scale). mixed is scratch."""
    n = v.shape[0]
    butterflies(v, width)
    order = base.shape[0]
    if order > 1:
        for a in range(order):
            for i in range(width):
                mixed[a * width + i] = base[a, 0] * v[i]
            for b in range(1, order):
                for i in range(width):
                    mixed[a * width + i] += base[a, b] * v[b * width + i]
        for j in range(n):
            v[j] = mixed[j]
    for j in range(n):
        v[j] *= last[j]


@strict_parallel
def _transform_all(x: Any, out: Any, width: int, base: Any, first: Any, last: Any) -> None:
    n_groups, n = x.shape
    for task in prange((n_groups + GROUPS_PER_TASK - 1) // GROUPS_PER_TASK):
        mixed = np.empty(n, np.float32)
        for g in range(task * GROUPS_PER_TASK, min(n_groups, (task + 1) * GROUPS_PER_TASK)):
            row = out[g]
            for j in range(n):
                row[j] = x[g, j] * first[j]
            transform(row, mixed, width, base, last)


def rotate(x: NDArray[np.float32], rotation: Rotation) -> NDArray[np.float32]:
    """D2 H D1 x for every group: float32 (n_groups, group_size) from the same, finite or not."""
    return _apply(x, rotation, rotation.base, rotation.signs_before, rotation.signs_after)


def unrotate(y: NDArray[np.float32], rotation: Rotation) -> NDArray[np.float32]:
    """D1 H^T D2 y, the inverse of `rotate`: float32 (n_groups, group_size) from the same."""
    base = np.ascontiguousarray(rotation.base.T)
    return _apply(y, rotation, base, rotation.signs_after, rotation.signs_before)


def _apply(x: Any, rotation: Rotation, base: Any, first: Any, last: Any) -> NDArray[np.float32]:
    x = np.ascontiguousarray(x, dtype=np.float32)
    out = np.empty_like(x)
    _transform_all(x, out, rotation.width, base, first, last * rotation.scale)
    return out
