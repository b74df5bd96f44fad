"""Which number is stored as the norm of a group. u is the unit vector of the group, c its quantized self."""

from __future__ import annotations

import enum


class NormMode(enum.IntEnum):
    """How the stored norm follows from |x|, u and c. Kernels branch on the number."""

    RAW = 0  # |x|: decoded vectors drift away each time they are encoded again
    L2 = 1  # |x| / |c|: the decoded vector has the norm of x
    MSE = 2  # |x| <u,c> / |c|^2: the least squared error
    UNBIASED = 3  # |x| / <u,c>: <x, decoded x> = |x|^2 (DRIVE, arXiv 2105.08339; EDEN)


NORM_MODES = {"l2": NormMode.L2, "mse": NormMode.MSE, "unbiased": NormMode.UNBIASED, "raw": NormMode.RAW}
