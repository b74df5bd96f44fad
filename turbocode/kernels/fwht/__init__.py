"""Rotation of groups by signs and a fast Walsh-Hadamard transform. Importing this package does not import Numba."""

from turbocode.kernels.fwht.hadamard import ROTATION_KINDS, Rotation, rotation_for, signs

__all__ = ["ROTATION_KINDS", "Rotation", "rotation_for", "signs"]
