"""Streaming histograms of rotated, normalised coordinates: integers, so that any chunking gives the same result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codebooks import Codebook
from turbocode.errors import DataError, OptionError
from turbocode.kernels.partition import cpu as partition

N_BINS = 1 << 16
WEIGHT_UNIT = 2.0**-10  # weights are counted in whole multiples of this
MAX_WEIGHT = 2.0**30
_EXACT = 2.0**53  # float64 sums of whole numbers are exact below


@dataclass(eq=False)
class CoordinateHistogram:
    """Weighted counts of coordinates of unit vectors of `group_size` values, times sqrt(group_size).

    Such a coordinate lies in [-sqrt(g), sqrt(g)]; the bins divide that range evenly.
    counts : int64 (N_BINS,); weights : int64 (N_BINS,) in multiples of WEIGHT_UNIT
    """

    group_size: int
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, dtype=np.int64))
    weights: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, dtype=np.int64))
    zero_groups: int = 0

    @property
    def centres(self) -> NDArray[np.float64]:
        """The value that stands for each bin."""
        reach = math.sqrt(self.group_size)
        return np.linspace(-reach, reach, 2 * N_BINS + 1)[1::2]

    def add(self, rotated: NDArray[np.float32], weights: NDArray[Any] | None = None) -> None:
        """Count the coordinates of rotated groups (n, group_size), each divided by its norm; zero groups are left out.

        weights : (n, 1), (1, group_size) or (n, group_size), at least 0; None counts every value once
        Raises OptionError for a weight above MAX_WEIGHT, DataError for groups that are not finite.
        """
        values = rotated.astype(np.float64)
        norms = np.sqrt((values * values).sum(axis=1))
        if not np.isfinite(norms).all():
            raise DataError("a rotated group is not finite: its values are too large for float32")
        kept = norms > 0
        self.zero_groups += int((~kept).sum())
        scaled = values[kept] / norms[kept, None]  # in [-1, 1]
        bins = np.clip(((scaled + 1.0) * (N_BINS / 2)).astype(np.int64), 0, N_BINS - 1).ravel()
        self.counts += np.bincount(bins, minlength=N_BINS)
        if weights is None:
            return
        full = np.broadcast_to(weights, values.shape)[kept].ravel()
        if full.size and not (full.min() >= 0 and full.max() <= MAX_WEIGHT):
            raise OptionError(f"weights run from {full.min():g} to {full.max():g}; allowed is 0 to {MAX_WEIGHT:g}")
        units = np.rint(full / WEIGHT_UNIT)
        rows = max(1, int(_EXACT // (MAX_WEIGHT / WEIGHT_UNIT)))
        for start in range(0, len(units), rows):
            part = slice(start, start + rows)
            self.weights += np.bincount(bins[part], units[part], minlength=N_BINS).astype(np.int64)

    def merge(self, other: CoordinateHistogram) -> None:
        """Add the counts of another histogram of the same group size."""
        self.counts += other.counts
        self.weights += other.weights
        self.zero_groups += other.zero_groups

    def masses(self, is_weighted: bool) -> NDArray[np.int64]:
        """The counts, or the weights, that codebooks are trained and judged with."""
        return self.weights if is_weighted else self.counts

    def nmse(self, codebook: Codebook, *, is_weighted: bool = False) -> float:
        """Weighted squared error of `codebook` over the weighted energy; 0 for an empty histogram."""
        mass, x = self.masses(is_weighted).astype(np.float64), self.centres
        error = x - codebook.centroids[np.searchsorted(codebook.boundaries, x, side="right")]
        energy = float((mass * x * x).sum())
        return float((mass * error * error).sum()) / energy if energy > 0 else 0.0

    def optimal_centroids(self, bits: int, *, is_weighted: bool = False) -> NDArray[np.float64]:
        """The 2**bits centroids with the least weighted squared error, exactly (dynamic programming).

        Raises DataError where fewer bins than centroids hold anything.
        """
        mass = self.masses(is_weighted)
        filled = np.flatnonzero(mass)
        if filled.size < 2**bits:
            raise DataError(f"{filled.size} distinct values do not make {2**bits} centroids")
        x, w = self.centres[filled], mass[filled].astype(np.float64)
        starts = partition.optimal_partition(x, w, 2**bits)
        return np.add.reduceat(w * x, starts) / np.add.reduceat(w, starts)
