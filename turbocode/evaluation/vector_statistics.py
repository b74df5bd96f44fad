"""Statistics of key or value vectors that tell how hard they are to code, gathered head by head."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError
from turbocode.formats import group_size_for
from turbocode.kernels.fwht import rotation_for

OUTLIER_RATIO = 3.0  # a channel's RMS over the median RMS of its head's channels, from which it is called an outlier
GROUPED_BY = "turbo3"  # the block format whose groups are rotated; all formats with a codebook agree
_SAFE_SQUARES = (1e-12, 1e15)  # magnitudes whose squares and sums of squares float32 holds


class VectorStatistics:
    """Totals over the heads of one layer's keys or values."""

    def __init__(self) -> None:
        self._norms: list[NDArray[np.float64]] = []
        self._constant_shares: list[float] = []
        self._n_outliers = 0
        self._largest = (0.0, 0, 0)  # ratio, head, channel
        self._plain = PowerSums()
        self._rotated = PowerSums()

    def add_head(self, vectors: NDArray[Any]) -> None:
        """Count the vectors (n, head_dim), n >= 1, of the next head; any finite float16 or float32."""
        magnitude = float(np.abs(vectors).max())
        low, high = _SAFE_SQUARES
        is_safe = low < magnitude < high or magnitude == 0
        x: NDArray[Any] = np.asarray(vectors, dtype=np.float32 if is_safe else np.float64)
        energies = np.einsum("ij,ij->i", x, x).astype(np.float64)
        self._norms.append(np.sqrt(energies))
        self._add_channels(x, float(energies.mean()))
        group_size = _group_size(x.shape[1])
        groups: NDArray[Any] = x.reshape(-1, group_size or x.shape[1])
        rms = np.sqrt(np.einsum("ij,ij->i", groups, groups) / groups.shape[1])
        groups = groups[rms > 0] / rms[rms > 0, None]
        self._plain.add(groups)
        if group_size is not None:
            self._rotated.add(groups @ rotation_for(group_size).matrix().T.astype(x.dtype))

    def _add_channels(self, x: NDArray[Any], energy: float) -> None:
        mean = x.mean(axis=0, dtype=np.float64)
        self._constant_shares.append(float(mean @ mean) / energy if energy > 0 else 0.0)
        rms = np.sqrt(np.einsum("ij,ij->j", x, x).astype(np.float64) / len(x))
        if rms.max() > 0:
            ratio = rms / np.median(rms[rms > 0])
            self._n_outliers += int((ratio > OUTLIER_RATIO).sum())
            channel = int(ratio.argmax())
            self._largest = max(self._largest, (float(ratio[channel]), len(self._constant_shares) - 1, channel))

    def to_json(self) -> dict[str, Any]:
        """The figures, finite numbers or None where there is nothing to measure.

        norm : L2 norm of the vectors
        constant_share : |mean over tokens|^2 / mean |x|^2, averaged over the heads
        outliers : channels of OUTLIER_RATIO times the median RMS of their head and more, of all heads together
        kurtosis : fourth standardised moment of the values, each group divided by its RMS; 3 for a Gaussian. `rotated`
            is the same after the rotation, None where this head_dim has none.
        """
        norms = np.concatenate(self._norms)
        ratio, head, channel = self._largest
        return {
            "n_vectors": len(norms),
            "norm": {"min": float(norms.min()), "median": float(np.median(norms)), "max": float(norms.max())},
            "constant_share": float(np.mean(self._constant_shares)),
            "outliers": {"channels": self._n_outliers, "largest_ratio": ratio, "head": head, "channel": channel},
            "kurtosis": {"plain": self._plain.kurtosis(), "rotated": self._rotated.kurtosis()},
        }


class PowerSums:
    """Sums of the first four powers of values."""

    def __init__(self) -> None:
        self._sums = np.zeros(4)
        self._count = 0

    def add(self, values: NDArray[Any]) -> None:
        """Count `values` of any shape, of magnitudes whose fourth powers their dtype holds."""
        flat = values.ravel()
        squares = flat * flat
        self._sums += [flat.sum(dtype=np.float64), squares.sum(dtype=np.float64), flat @ squares, squares @ squares]
        self._count += flat.size

    def kurtosis(self) -> float | None:
        """Fourth central moment over the squared variance; None without values that differ."""
        if self._count == 0:
            return None
        mean, second, third, fourth = self._sums / self._count
        variance = second - mean**2
        if variance <= 0:
            return None
        return float((fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2)


def _group_size(head_dim: int) -> int | None:
    """Values that are rotated together, None where there is no rotation for this head_dim."""
    try:
        return group_size_for(GROUPED_BY, head_dim)
    except OptionError:
        return None
