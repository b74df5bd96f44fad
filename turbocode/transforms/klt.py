"""The principal axes of the vectors become coordinates (Karhunen-Loeve transform, PCA; techniques 7.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from turbocode.transforms.fitted import Arrays, FittedTransform, dense, stored_dense
from turbocode.transforms.head_map import HeadMap
from turbocode.transforms.statistics import SideStatistics


@dataclass(frozen=True)
class KLT:
    """y = V^T x with V the eigenvectors of the covariance, largest variance first: orthonormal up to 16-bit rounding.

    Assumes a covariance that other text shares. By itself it changes nothing for a codec that rotates, and hurts one
    that does not (`rotation=none`), whose codebook wants coordinates of equal variance: its use is in front of a code
    that gives large coordinates more bits (`multirate` has a basis of its own of this kind). Attention: D * D
    multiplications a query head or output. Stores 2 * D * D bytes a head.
    """

    name: ClassVar[str] = "klt"

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        values, vectors = np.linalg.eigh(statistics.covariance)
        values = np.maximum(values, 1e-12 * values.max())
        # How many dB a code with as many bits for each axis as it deserves would gain, at high rate.
        gain = 10 * np.log10(values.mean(axis=1)) - 10 * np.log10(values).mean(axis=1)
        return FittedTransform(
            self.name, {"coding_gain_db": float(gain.mean())}, dense(vectors[:, :, ::-1].transpose(0, 2, 1))
        )

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return stored_dense(arrays, n_heads, head_dim)
