"""Attention of new tokens over the packed cache, which is never decoded as a whole.

Importing this package does not import Numba; `reference` and `cpu` are its two implementations.
"""

from turbocode.kernels.attention.packed import PackedSide

__all__ = ["PackedSide"]
