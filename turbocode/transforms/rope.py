"""Rotary embedding: channels (i, i + D / 2) turned by the position times theta^(-2 i / D), as in most models."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def rotations(head_dim: int, theta: float, positions: NDArray[Any]) -> tuple[Floats, Floats]:
    """(cosines, sines), each (positions, D / 2), of the angles by which pairs are turned."""
    half = head_dim // 2
    angles = positions[:, None] * theta ** (-np.arange(half) / half)
    return np.cos(angles), np.sin(angles)


def turned(x: NDArray[Any], cosine: NDArray[Any], sine: NDArray[Any]) -> NDArray[Any]:
    """Vectors (..., D), turned by angles (D / 2,), or (T, D / 2) for vectors (..., T, D); D even."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    return np.concatenate([low * cosine - high * sine, low * sine + high * cosine], axis=-1)
