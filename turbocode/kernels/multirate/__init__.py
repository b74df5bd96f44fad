"""Trellis coding in which every run of eight channels has its own number of bits; one byte of gain a vector.

Importing this package does not import Numba; `reference` and `cpu` are its two implementations.
"""

from turbocode.kernels.multirate.side import LAWS, GainScale, Law, MultirateSide

__all__ = ["LAWS", "GainScale", "Law", "MultirateSide"]
