"""Scalar quantization: rotate, normalise, find the nearest centroid, correct the norm, pack; and back.

Importing this package does not import Numba; `reference` and `cpu` are its two implementations.
"""

from turbocode.kernels.scalar.norm_mode import NORM_MODES, NormMode

__all__ = ["NORM_MODES", "NormMode"]
