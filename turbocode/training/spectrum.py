"""The basis in which channels of keys or values are uncorrelated and an error costs the same in every direction.

With M the metric (error_metric) and C the covariance of a KV head, G = M^(1/2) and G C G = V diag(lambda) V^T, vectors
are coded as y = V^T G (x - mean): the Karhunen-Loeve basis in the metric. Squared errors of y, halved, are what errors
of x cost, lambda is what a channel costs if it is left out, and reverse water-filling over lambda is the best schedule
(Cover, Thomas, Elements of Information Theory, 10.3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError
from turbocode.training.error_metric import SideMoments

Floats = NDArray[np.float64]
SHRINKAGE = 0.001  # share of the mean variance in every channel's: no channel is free in texts that were not seen


@dataclass(frozen=True, eq=False)
class Spectrum:
    """y = basis (x - mean), channels by falling variance. J KV heads, D head_dim.

    mean float64 (J, D); basis (J, D, D); variance (J, D), of the channels of y, shrunk by SHRINKAGE
    """

    mean: Floats
    basis: Floats
    variance: Floats

    def run_costs(self, run: int) -> Floats:
        """What leaving out each run of `run` channels costs, (D / run,), summed over the heads."""
        return np.asarray(self.variance.sum(axis=0).reshape(-1, run).sum(axis=1) / 2)


def spectrum_of(moments: SideMoments) -> Spectrum:
    """The spectrum of one layer's side. Raises OptionError where every vector is the same."""
    bases, variances = [], []
    for covariance, metric in zip(moments.covariance, moments.metric, strict=True):
        eigenvalues, vectors = np.linalg.eigh(metric)
        root = (vectors * np.sqrt(np.maximum(eigenvalues, 0.0))) @ vectors.T
        variance, turn = np.linalg.eigh(root @ covariance @ root)
        falling = np.argsort(variance)[::-1]
        variance = np.maximum(variance[falling], 0.0)
        if not variance[0] > 0:
            raise OptionError(f"the {moments.side} of layer {moments.layer} are all the same; there is nothing to code")
        bases.append(turn[:, falling].T @ root)
        variances.append((1 - SHRINKAGE) * variance + SHRINKAGE * variance.mean())
    return Spectrum(moments.mean, np.stack(bases), np.stack(variances))
