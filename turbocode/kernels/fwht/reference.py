"""The definition of the rotation in NumPy float64. G groups, g values a group."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels.fwht.hadamard import Rotation


def fwht(x: NDArray[Any]) -> NDArray[np.float64]:
    """Unnormalised Walsh-Hadamard transform (natural order) of the last axis, whose length is a power of two."""
    out = np.array(x, dtype=np.float64)
    length = out.shape[-1]
    h = 1
    while h < length:
        pairs = out.reshape(*out.shape[:-1], length // (2 * h), 2, h)
        pairs[...] = np.stack((pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]), axis=-2)
        h *= 2
    return out


def rotate(x: NDArray[Any], rotation: Rotation) -> NDArray[np.float64]:
    """D2 H D1 x for every group: float64 (..., g) from (..., g)."""
    return _transform(x, rotation, rotation.signs_before, rotation.base, rotation.signs_after)


def unrotate(y: NDArray[Any], rotation: Rotation) -> NDArray[np.float64]:
    """D1 H^T D2 y, the inverse of `rotate`: float64 (..., g) from (..., g)."""
    return _transform(y, rotation, rotation.signs_after, rotation.base.T, rotation.signs_before)


def _transform(
    x: NDArray[Any], rotation: Rotation, first: NDArray[Any], base: NDArray[Any], last: NDArray[Any]
) -> NDArray[np.float64]:
    out = np.array(x, dtype=np.float64)
    if rotation.is_identity:
        return out
    rows = fwht((out * first).reshape(*out.shape[:-1], len(base), rotation.width))
    mixed = np.einsum("ab,...bi->...ai", base.astype(np.float64), rows)
    return mixed.reshape(out.shape) * last / np.sqrt(rotation.group_size)
