"""What encoding a set of vectors cost: a sum that can be accumulated over slabs of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class EncodeReport:
    """Totals over encoded vectors.

    n_vectors : vectors encoded; zero_vectors : of these, all zero
    energy, error, product, decoded_energy : sums of |x|^2, |x - x'|^2, <x, x'> and |x'|^2
    cosine_sum, cosine_min : over the vectors that are not zero; a vector decoded to zero counts as cosine 0
    saturated_vectors : vectors in which a stored norm or scale was cut to 65504
    """

    n_vectors: int = 0
    zero_vectors: int = 0
    energy: float = 0.0
    error: float = 0.0
    product: float = 0.0
    decoded_energy: float = 0.0
    cosine_sum: float = 0.0
    cosine_min: float = 1.0
    saturated_vectors: int = 0

    @classmethod
    def from_moments(
        cls, moments: NDArray[np.float64], flags: NDArray[np.uint8], groups_per_vector: int = 1
    ) -> tuple[EncodeReport, int]:
        """(report, first vector that is not finite or -1) of runs of groups with these moments and flags.

        moments float64 (n, 4), flags uint8 (n,) : see kernels.group.EncodedGroups
        """
        from turbocode.kernels.group import summarise

        *totals, first_nonfinite = summarise(moments, flags, groups_per_vector)
        return cls(len(moments) // groups_per_vector, *totals), first_nonfinite

    @classmethod
    def of_vectors(cls, exact: NDArray[Any], decoded: NDArray[Any]) -> tuple[EncodeReport, int]:
        """(report, first vector that is not finite or -1) of vectors (..., head_dim) and what they are decoded to."""
        x, y = (np.asarray(a, np.float64).reshape(-1, np.shape(a)[-1]) for a in (exact, decoded))
        moments = np.stack([(x * x).sum(1), ((x - y) ** 2).sum(1), (x * y).sum(1), (y * y).sum(1)], axis=1)
        return cls.from_moments(moments, np.zeros(len(x), dtype=np.uint8))

    def add(self, other: EncodeReport) -> None:
        """Add the totals of other vectors to these."""
        self.n_vectors += other.n_vectors
        self.zero_vectors += other.zero_vectors
        self.energy += other.energy
        self.error += other.error
        self.product += other.product
        self.decoded_energy += other.decoded_energy
        self.cosine_sum += other.cosine_sum
        self.cosine_min = min(self.cosine_min, other.cosine_min)
        self.saturated_vectors += other.saturated_vectors

    @property
    def nmse(self) -> float:
        """Squared error over energy; 0 where there is no energy."""
        return self.error / self.energy if self.energy > 0 else 0.0

    @property
    def mean_cosine(self) -> float:
        """Mean cosine between a vector and its decoded self over the vectors that are not zero; 1 if there are none."""
        count = self.n_vectors - self.zero_vectors
        return self.cosine_sum / count if count else 1.0

    def to_json(self) -> dict[str, Any]:
        """The figures that are stored and shown."""
        return {
            "n_vectors": self.n_vectors,
            "zero_vectors": self.zero_vectors,
            "saturated_vectors": self.saturated_vectors,
            "nmse": self.nmse,
            "mean_cosine": self.mean_cosine,
            "min_cosine": self.cosine_min,
        }
