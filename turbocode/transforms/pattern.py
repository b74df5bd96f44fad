"""The nearest of a few patterns is taken from every vector (PatternKV, arXiv 2510.05176, techniques 8.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError, OptionError
from turbocode.transforms.fitted import Arrays, FittedTransform, half
from turbocode.transforms.head_map import Floats, HeadMap
from turbocode.transforms.per_token import TokenMap
from turbocode.transforms.statistics import SideStatistics

MAX_PATTERNS = 256
ROUNDS = 12


def nearest(vectors: Floats, patterns: Floats) -> NDArray[np.int64]:
    """Number of the pattern (P, D) nearest to each vector (N, D)."""
    return (np.square(patterns).sum(axis=1) - 2 * (vectors @ patterns.T)).argmin(axis=1)


@dataclass(frozen=True)
class Pattern:
    """r = x - pattern_i, i the nearest of `count` patterns of the head (k-means on the calibration); one byte a token.

    PatternKV finds patterns in each prompt and updates them; here they are the calibration's, and every value is
    matched, not only the similar ones. Assumes that vectors come in clusters that other text shares. Costs 8 / D bits
    a value; the kernels of packed attention do not read such blocks, which are decoded first (a query would need its
    product with every pattern, once). Stores 2 * count * D bytes a head. Hurts where there are no clusters: then it
    is `mean` at a higher price.
    """

    name: ClassVar[str] = "pattern"
    count: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_PATTERNS or self.seed < 0:
            raise OptionError(f"pattern has count {self.count} and seed {self.seed}; count is 1 to {MAX_PATTERNS}")

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        found, left, energy = [], 0.0, 0.0
        for head, sample in enumerate(statistics.sample):
            x = sample.astype(np.float64)
            rng = np.random.default_rng([self.seed, head])
            patterns = x[rng.permutation(len(x))[: self.count]]
            patterns = np.concatenate([patterns, np.repeat(patterns[:1], self.count - len(patterns), axis=0)])
            for _ in range(ROUNDS):
                chosen = nearest(x, patterns)
                for number in np.unique(chosen):
                    patterns[number] = x[chosen == number].mean(axis=0)
            found.append(patterns)
            left += float(np.square(x - patterns[nearest(x, patterns)]).sum())
            energy += float(np.square(x - x.mean(axis=0)).sum())
        about = {"residual_share": left / energy if energy > 0 else 0.0}
        return FittedTransform(self.name, about, {"patterns": half(np.stack(found))})

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return HeadMap()

    @staticmethod
    def token_map(arrays: Arrays, n_heads: int, head_dim: int) -> TokenMap:
        found = arrays.get("patterns")
        if found is None or found.ndim != 3 or found.shape[::2] != (n_heads, head_dim) or found.shape[1] > MAX_PATTERNS:
            raise DataError(f"array patterns of a transform is missing or not ({n_heads}, 1 to 256, {head_dim})")
        return _Patterns(np.asarray(found, np.float64))


class _Patterns:
    n_bytes = run = 1

    def __init__(self, patterns: Floats) -> None:
        self._patterns = patterns

    def split(self, vectors: Floats, head: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        chosen = nearest(vectors, self._patterns[head])
        return (vectors - self._patterns[head][chosen]).astype(np.float32), chosen.astype(np.uint8)[:, None]

    def join(self, coded: NDArray[np.float32], kept: NDArray[np.uint8], head: int) -> NDArray[np.float32]:
        patterns = self._patterns[head].astype(np.float32)
        if kept.size and int(kept.max()) >= len(patterns):
            raise DataError(f"a block names pattern {kept.max()}; there are {len(patterns)}")
        return coded + patterns[kept[:, 0]]
