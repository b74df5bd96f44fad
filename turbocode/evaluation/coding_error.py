"""Statistics of what coding changes in vectors (techniques M1, M2, M9), summed up head by head."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LAGS = (1, 2, 4, 8)  # tokens apart, at which errors are compared


class CodingError:
    """Sums over runs of tokens of one KV head each."""

    def __init__(self, head_dim: int) -> None:
        self._n = self._runs = 0
        self._energy = self._error = self._centred = self._bias = 0.0
        self._projections: list[Array] = []
        self._cosines: list[Array] = []
        self._covariance = np.zeros((head_dim, head_dim))
        self._lagged, self._lag_power = np.zeros(len(LAGS)), np.zeros(len(LAGS))
        self._fourth = self._second = 0.0

    def add(self, exact: Array, decoded: Array) -> None:
        """Count consecutive tokens of one head: exact and decoded (n, head_dim), float64."""
        error, n = decoded - exact, len(exact)
        mean = error.mean(axis=0)
        squares, dots = (exact * exact).sum(axis=1), (exact * decoded).sum(axis=1)
        lengths = np.sqrt(squares * (decoded * decoded).sum(axis=1))
        self._n, self._runs = self._n + n, self._runs + 1
        self._energy += float(squares.sum())
        self._error += float((error * error).sum())
        self._bias += n * float(mean @ mean)
        self._centred += float(((error - mean) ** 2).sum())
        self._projections.append(np.divide(dots, squares, out=np.ones(n), where=squares > 0))
        self._cosines.append(np.divide(dots, lengths, out=np.where(squares > 0, 0.0, 1.0), where=lengths > 0))
        self._covariance += (error - mean).T @ (error - mean)
        for place, lag in enumerate(LAGS):
            if lag < n:
                self._lagged[place] += float((error[lag:] * error[:-lag]).sum())
                self._lag_power[place] += float((error[lag:] ** 2).sum() + (error[:-lag] ** 2).sum()) / 2
        deviation = (error - mean) ** 2
        scale = deviation.mean(axis=0)
        relative = np.divide(deviation, scale, out=np.zeros_like(deviation), where=scale > 0)
        self._second += float(relative.sum())
        self._fourth += float((relative * relative).sum())

    def merge(self, other: CodingError) -> None:
        """Add the sums of other vectors to these."""
        self._projections += other._projections
        self._cosines += other._cosines
        for name, value in vars(other).items():
            if name not in ("_projections", "_cosines"):
                setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> dict[str, Any]:
        """The figures as a JSON object; None where there is no error to speak of.

        nmse, nmse_centred : sum |e|^2 / sum |x|^2, and with each head's mean error taken away, which softmax cannot see
        in keys; bias_share : of the mean error in |e|^2
        projection, cosine : mean of <x, x'> / |x|^2 and of the cosine
        autocorrelation : of errors of tokens LAGS apart; spectrum_top : share of the largest eigenvalue of the error's
            covariance, 1 / head_dim for white errors; spectrum_rank : exp of the eigenvalues' entropy; kurtosis : of
            each channel's error, 3 for a Gaussian
        """
        has_error, energy = self._error > 0, self._energy or 1.0
        found: dict[str, Any] = {
            "nmse": self._error / energy,
            "nmse_centred": self._centred / energy,
            "bias_share": self._bias / self._error if has_error else None,
            "projection": float(np.concatenate(self._projections).mean()),
            "cosine": float(np.concatenate(self._cosines).mean()),
        }
        eigenvalues = np.maximum(np.linalg.eigvalsh(self._covariance), 0.0)
        share = eigenvalues / eigenvalues.sum() if eigenvalues.sum() > 0 else None
        entropy = None if share is None else -float((share[share > 0] * np.log(share[share > 0])).sum())
        lagged = np.divide(self._lagged, self._lag_power, out=np.zeros(len(LAGS)), where=self._lag_power > 0)
        return {
            **found,
            "autocorrelation": [float(value) for value in lagged] if has_error else None,
            "spectrum_top": None if share is None else float(share.max()),
            "spectrum_rank": None if entropy is None else float(np.exp(entropy)),
            "kurtosis": self._fourth / self._second if self._second > 0 else None,
        }
