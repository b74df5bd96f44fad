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
# Unsigned indices need no test for being negative, which would keep a loop from being vectorised.
RADIX_U = np.uint64(RADIX)
_1, _2, _3, _4, _5, _6, _7 = (np.uint64(n) for n in range(1, 8))


@strict
def _radix8(v: Any, i: Any, stride: Any) -> None:
    """Stages of distance stride, 2 stride and 4 stride on the eight values from i on, held in registers."""
    i1, i2, i3, i4 = i + stride, i + _2 * stride, i + _3 * stride, i + _4 * stride
    i5, i6, i7 = i + _5 * stride, i + _6 * stride, i + _7 * stride
    x0, x1, x2, x3, x4, x5, x6, x7 = v[i], v[i1], v[i2], v[i3], v[i4], v[i5], v[i6], v[i7]
    a0, a1, a2, a3 = x0 + x1, x0 - x1, x2 + x3, x2 - x3
    a4, a5, a6, a7 = x4 + x5, x4 - x5, x6 + x7, x6 - x7
    b0, b1, b2, b3 = a0 + a2, a1 + a3, a0 - a2, a1 - a3
    b4, b5, b6, b7 = a4 + a6, a5 + a7, a4 - a6, a5 - a7
    v[i], v[i1], v[i2], v[i3] = b0 + b4, b1 + b5, b2 + b6, b3 + b7
    v[i4], v[i5], v[i6], v[i7] = b0 - b4, b1 - b5, b2 - b6, b3 - b7


@strict
def _stride_one(v: Any) -> None:
    """Stages of distance 1, 2 and 4 on every run of eight values."""
    for i in range(np.uint64(0), np.uint64(v.shape[0]), RADIX_U):
        _radix8(v, i, _1)


@strict
def _stride_eight(v: Any, start: Any, lanes: Any) -> None:
    """Stages of distance 8, 16 and 32 on v[start:start + 64]. lanes is 8: as a variable, it keeps the loop a loop."""
    for lane in range(lanes):
        _radix8(v, start + lane, RADIX_U)


@strict
def _stage(v: Any, start: Any, h: Any) -> None:
    """One stage of distance h on v[start:start + 2 h]."""
    for j in range(h):
        a, b = v[start + j], v[start + h + j]
        v[start + j] = a + b
        v[start + h + j] = a - b


@strict
def butterflies(v: Any, width: int, lanes: int) -> None:
    """Transform every run of `width` values of v in place, unnormalised; distances 1, 2, 4, ... in this order."""
    h = 1
    if width >= RADIX:
        _stride_one(v)
        h = RADIX
    if width >= RADIX * RADIX:
        for start in range(0, v.shape[0], RADIX * RADIX):
            _stride_eight(v, np.uint64(start), np.uint64(lanes))
        h = RADIX * RADIX
    while h < width:
        for start in range(0, v.shape[0], 2 * h):
            _stage(v, np.uint64(start), np.uint64(h))
        h *= 2


@strict
def transform(v: Any, mixed: Any, width: int, base: Any, last: Any, lanes: int) -> None:
    """Apply base (x) butterflies to v in place, then multiply by `last` (signs times scale).

    mixed is float32 scratch of the length of v; lanes is RADIX (see _stride_eight).
    """
    n = v.shape[0]
    butterflies(v, width, lanes)
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
def _transform_all(x: Any, out: Any, width: int, base: Any, first: Any, last: Any, lanes: int) -> None:
    n_groups, n = x.shape
    for task in prange((n_groups + GROUPS_PER_TASK - 1) // GROUPS_PER_TASK):
        mixed = np.empty(n, np.float32)
        for g in range(task * GROUPS_PER_TASK, min(n_groups, (task + 1) * GROUPS_PER_TASK)):
            row = out[g]
            for j in range(n):
                row[j] = x[g, j] * first[j]
            transform(row, mixed, width, base, last, lanes)


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
    _transform_all(x, out, rotation.width, base, first, last * rotation.scale, RADIX)
    return out
