"""Normalise, shift, normalise (NSNQuant, arXiv 2505.18231, techniques 7.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from turbocode.transforms.fitted import Arrays, FittedTransform, half, stored
from turbocode.transforms.head_map import Floats, HeadMap
from turbocode.transforms.per_token import TokenMap, as_bytes, as_numbers
from turbocode.transforms.statistics import SideStatistics


@dataclass(frozen=True)
class NSN:
    """y = x / |x| - m, m the mean of x / |x|; |x| is kept in float16, and the codec's norm is the second one.

    NSNQuant's m is that of each run of 64 tokens, here it is the calibration's, as `mean` is. Assumes that directions
    have a common part, whatever the lengths. Costs 16 / D bits a value; the kernels of packed attention do not read
    such blocks, which are decoded first. Stores 2 bytes a channel. Hurts where lengths hardly differ: then it is
    `mean` at a higher price.
    """

    name: ClassVar[str] = "nsn"

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        x = statistics.sample.astype(np.float64)
        norms = np.linalg.norm(x, axis=2, keepdims=True)
        directions = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
        mean = directions.mean(axis=1)
        spread = float((norms.std(axis=1) / np.maximum(norms.mean(axis=1), 1e-30)).mean())
        return FittedTransform(self.name, {"spread_of_norms": spread}, {"mean": half(mean)})

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return HeadMap()

    @staticmethod
    def token_map(arrays: Arrays, n_heads: int, head_dim: int) -> TokenMap:
        return _Normalised(stored(arrays, "mean", (n_heads, head_dim)))


class _Normalised:
    n_bytes = 2

    def __init__(self, mean: Floats) -> None:
        self._mean = mean

    def split(self, vectors: Floats, head: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        kept = as_bytes(np.linalg.norm(vectors, axis=1, keepdims=True))
        norms = as_numbers(kept).astype(np.float64)
        coded = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0) - self._mean[head]
        return np.where(norms > 0, coded, 0.0).astype(np.float32), kept

    def join(self, coded: NDArray[np.float32], kept: NDArray[np.uint8], head: int) -> NDArray[np.float32]:
        return as_numbers(kept) * (coded + self._mean[head].astype(np.float32))
