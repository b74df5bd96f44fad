"""Normalise, shift, normalise (NSNQuant, arXiv 2505.18231, techniques 7.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from turbocode.transforms.fitted import Arrays, FittedTransform, half, stored
from turbocode.transforms.head_map import Floats, HeadMap
from turbocode.transforms.per_token import (
    TokenMap,
    as_bytes,
    as_numbers,
    bytes_per_token,
    check_run,
    dealt,
    gathered,
    stored_run,
)
from turbocode.transforms.statistics import SideStatistics


def _directions(x: Floats, norms: Floats) -> Floats:
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


@dataclass(frozen=True)
class NSN:
    """y = x / |x| - m, m the mean of x / |x|; |x| is kept in float16, and the codec's norm is the second one.

    run : tokens of which m is the mean, as published with 64; 0 takes the calibration's mean for all
    Assumes that directions have a common part, whatever the lengths, and with a run that it drifts along the text.
    Costs 16 / D bits a value, and with a run 16 / run more (0.25 for 64), for m in float16; the kernels of packed
    attention do not read such blocks, which are decoded first. Stores 2 bytes a channel. m is stored rather than taken
    from the run before, which would cost nothing: each run would then need all earlier ones to be decoded. Hurts where
    lengths hardly differ, for it is then `mean` at a higher price, and with a run where tokens have little in common
    beyond what the calibration knows.
    """

    name: ClassVar[str] = "nsn"
    run: int = 0

    def __post_init__(self) -> None:
        if self.run:
            check_run(self.name, self.run)

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        x = statistics.sample.astype(np.float64)
        norms = np.linalg.norm(x, axis=2, keepdims=True)
        mean = _directions(x, norms).mean(axis=1)
        spread = float((norms.std(axis=1) / np.maximum(norms.mean(axis=1), 1e-30)).mean())
        arrays: dict[str, NDArray[np.generic]] = {"mean": half(mean)}
        if self.run:
            arrays["run"] = np.array([[self.run]], np.int32)
        return FittedTransform(self.name, {"spread_of_norms": spread}, arrays)

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return HeadMap()

    @staticmethod
    def token_map(arrays: Arrays, n_heads: int, head_dim: int) -> TokenMap:
        return _Normalised(stored(arrays, "mean", (n_heads, head_dim)), stored_run(arrays) if "run" in arrays else 1)


class _Normalised:
    """The length of every token, then its piece of the mean of its run; run 1 has no such mean."""

    def __init__(self, mean: Floats, run: int) -> None:
        self._mean, self.run = mean, run
        self.n_bytes = 2 + (bytes_per_token(mean.shape[1], run) if run > 1 else 0)

    def split(self, vectors: Floats, head: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        kept = np.zeros((len(vectors), self.n_bytes), np.uint8)
        kept[:, :2] = as_bytes(np.linalg.norm(vectors, axis=1, keepdims=True))
        norms = as_numbers(kept[:, :2]).astype(np.float64)
        directions = _directions(vectors, norms)
        if self.run > 1:
            whole = len(vectors) // self.run * self.run
            means = directions[:whole].reshape(-1, self.run, vectors.shape[1]).mean(axis=1)
            kept[:whole, 2:] = dealt(means, self.run)
        return np.where(norms > 0, directions - self._means(kept, head), 0.0).astype(np.float32), kept

    def join(self, coded: NDArray[np.float32], kept: NDArray[np.uint8], head: int) -> NDArray[np.float32]:
        return as_numbers(kept[:, :2]) * (coded + self._means(kept, head))

    def _means(self, kept: NDArray[np.uint8], head: int) -> NDArray[np.float32]:
        """What was taken from each token's direction, float32 (N, D)."""
        head_dim = self._mean.shape[1]
        means = np.tile(self._mean[head].astype(np.float32), (len(kept), 1))
        if self.run > 1:
            whole = len(kept) // self.run * self.run
            found = gathered(np.ascontiguousarray(kept[:whole, 2:]), head_dim, self.run)
            means[:whole] = np.repeat(found, self.run, axis=0)
        return means
