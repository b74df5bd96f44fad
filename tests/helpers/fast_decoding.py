"""How far values of the fast decoder may be from the CPU's."""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.kernels.scalar.half_scale import half_scale


def decoding_bound(codec: Any) -> float:
    """The relative error, L2 over a group, that rounding the scaled centroids and float32 sums can cause."""
    centroids, _ = codec.tables(0)
    scaled = centroids * half_scale(centroids)
    return float(np.abs(scaled.astype(np.float16).astype(np.float32) / scaled - 1).max()) + 2e-6


def assert_decoded(codec: Any, found: Any, expected: Any) -> None:
    """Every group of float32 values is as near to the CPU's as `decoding_bound` says; a rotation keeps L2 norms."""
    g = codec.block_format.group_size
    found, expected = (np.asarray(x, np.float64).reshape(-1, g) for x in (found, expected))
    errors, sizes = np.linalg.norm(found - expected, axis=1), np.linalg.norm(expected, axis=1)
    assert (errors <= decoding_bound(codec) * sizes).all(), f"{np.nanmax(errors / np.maximum(sizes, 1e-30))}"
