"""The largest axes of a vector are kept in 16 bits, and the rest is coded (low rank plus residual, techniques 8.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError, OptionError
from turbocode.transforms.fitted import Arrays, FittedTransform, half
from turbocode.transforms.head_map import Floats, HeadMap
from turbocode.transforms.per_token import TokenMap, as_bytes, as_numbers
from turbocode.transforms.statistics import SideStatistics

MAX_RANK = 64


@dataclass(frozen=True)
class LowRank:
    """x = B^T c + r, with the `rank` first axes of the covariance as rows of B: c in float16, r by the codec.

    Assumes that a few axes carry much of the energy, and the same ones in other text. Costs 16 * rank / D bits a value
    (0.5 for rank 4 of 128), so that it has to be set beside a codec of more bits; the kernels of packed attention do
    not read such blocks, which are decoded first. Stores 2 * rank * D bytes a head. Hurts where energy is spread: a bit
    schedule over axes (`multirate`) gives them what they deserve, not 16 bits.
    """

    name: ClassVar[str] = "lowrank"
    rank: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise OptionError(f"lowrank has rank {self.rank}; allowed is 1 to {MAX_RANK}")

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        values, vectors = np.linalg.eigh(statistics.covariance)
        rank = min(self.rank, statistics.head_dim)
        share = float(values[:, -rank:].sum() / values.sum())
        basis = vectors[:, :, -rank:].transpose(0, 2, 1)[:, ::-1]
        return FittedTransform(self.name, {"energy_in_rank": share}, {"basis": half(basis)})

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return HeadMap()

    @staticmethod
    def token_map(arrays: Arrays, n_heads: int, head_dim: int) -> TokenMap:
        basis = arrays.get("basis")
        if basis is None or basis.ndim != 3 or basis.shape[::2] != (n_heads, head_dim) or basis.shape[1] > MAX_RANK:
            raise DataError(f"array basis of a transform is missing or not ({n_heads}, 1 to {MAX_RANK}, {head_dim})")
        return _Axes(np.asarray(basis, np.float64))


class _Axes:
    run = 1

    def __init__(self, basis: Floats) -> None:
        self._basis = basis
        self.n_bytes = 2 * basis.shape[1]

    def split(self, vectors: Floats, head: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        kept = as_bytes(vectors @ self._basis[head].T)
        return (vectors - as_numbers(kept).astype(np.float64) @ self._basis[head]).astype(np.float32), kept

    def join(self, coded: NDArray[np.float32], kept: NDArray[np.uint8], head: int) -> NDArray[np.float32]:
        return coded + as_numbers(kept) @ self._basis[head].astype(np.float32)
