"""A number by which the centroids of a codebook become nearly float16 numbers, so that tensor cores can multiply them.

With k magnitudes the best of 2**20 scales rounds all of them about 2**(20 / k) times better than float16's 2**-11: to
2e-5 with 4 magnitudes, 8e-5 with 8. Rounding decoded values to float16 costs 2e-4 of them (root mean square).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

N_SCALES = 1 << 20
_TOP = 16.0  # the scaled magnitudes are below it: their squares and sums are far from float16's limits


def half_scale(centroids: NDArray[np.float32]) -> np.float32:
    """The scale whose products with the centroids, float32 (k,), are relatively nearest to float16 numbers."""
    return _half_scale(np.ascontiguousarray(centroids, np.float32).tobytes())


@functools.lru_cache(maxsize=256)
def _half_scale(key: bytes) -> np.float32:
    magnitudes = np.unique(np.abs(np.frombuffer(key, np.float32)))
    magnitudes = magnitudes[magnitudes > 0]
    octave = np.exp2(np.floor(np.log2(_TOP / 2 / magnitudes.max())))
    scales = (octave * (1 + np.arange(N_SCALES) / N_SCALES)).astype(np.float32)
    worst = np.zeros(N_SCALES, np.float32)
    for magnitude in magnitudes:
        product = scales * magnitude
        np.maximum(worst, np.abs(product.astype(np.float16).astype(np.float32) - product) / product, out=worst)
    return np.float32(scales[worst.argmin()])
