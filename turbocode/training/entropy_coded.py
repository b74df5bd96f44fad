"""Entropy-coded scalar quantization of a Gaussian: what a variable-length code would reach, as a yardstick.

Uniform thresholds, centroids as values, rate = entropy of the index (Gish and Pierce, IEEE Trans. Information Theory
14, 1968; Farvardin and Modestino, 30, 1984).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special

_REACH = 12.0  # beyond it a Gaussian holds nothing that float64 would notice


def entropy_coded_nmse(rate: float) -> float:
    """Least NMSE of N(0, 1) at an index entropy of `rate` bits, 0.1 to 8, by a quantizer with a value at zero."""
    step = float(optimize.brentq(lambda s: _entropy_and_nmse(s)[0] - rate, 1e-3, 8.0, xtol=1e-12))
    return _entropy_and_nmse(step)[1]


def _entropy_and_nmse(step: float) -> tuple[float, float]:
    """(bits of entropy, NMSE) with thresholds at (n + 1/2) * step."""
    n = math.ceil(_REACH / step) + 1
    edges = (np.arange(-n, n) + 0.5) * step
    cumulative = np.concatenate(([0.0], special.ndtr(edges), [1.0]))
    density = np.concatenate(([0.0], np.exp(-0.5 * edges * edges) / math.sqrt(2.0 * math.pi), [0.0]))
    mass, moment = np.diff(cumulative), density[:-1] - density[1:]
    filled = mass > 1e-300
    entropy = float(-(mass[filled] * np.log2(mass[filled])).sum())
    return entropy, 1.0 - float((moment[filled] ** 2 / mass[filled]).sum())
