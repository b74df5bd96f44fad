"""Keys are stretched in the few directions that queries span most (SQuat, arXiv 2503.24358, techniques 7.7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from turbocode.errors import OptionError
from turbocode.transforms.fitted import Arrays, FittedTransform, dense, stored_dense, symmetric_power
from turbocode.transforms.head_map import HeadMap
from turbocode.transforms.statistics import SideStatistics


@dataclass(frozen=True)
class SQuat:
    """y = A^(1/2) x with A = I + strength * V diag(l) V^T, V and l the first `rank` axes of the queries' moment.

    rank, strength : as published but for the unit of strength, in which the mean of all l is 1
    SQuat lets |e|^2 + strength * |Q e|^2 be small by feeding each channel's error into the next ones; here the same
    measure becomes a map in front of any codec, after which white errors are small where the queries look. Assumes
    that queries of other text span the same directions. Attention: D * D multiplications a query head. Stores 2 * D * D
    bytes a head. Keys only. Hurts where the keys themselves are large in these directions, which takes bits from the
    rest; `balance` weighs that too.
    """

    name: ClassVar[str] = "squat"
    rank: int = 5
    strength: float = 0.5

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.strength <= 1e6:
            raise OptionError(f"squat has rank {self.rank} and strength {self.strength}; both must be above 0")

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        if not statistics.has_queries:
            raise OptionError(
                f"squat needs queries, which {statistics.side} of this dump have not",
                hint="it is for keys, of a dump with queries (turbocode capture --rows)",
            )
        values, vectors = np.linalg.eigh(statistics.query_moment)
        values = values / values.mean(axis=1, keepdims=True)
        rank = min(self.rank, statistics.head_dim)
        top, axes = values[:, -rank:], vectors[:, :, -rank:]
        metric = np.eye(statistics.head_dim) + self.strength * (axes * top[:, None, :]) @ axes.transpose(0, 2, 1)
        share = float(top.sum() / values.sum())
        return FittedTransform(self.name, {"query_energy_in_rank": share}, dense(symmetric_power(metric, 0.5)))

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return stored_dense(arrays, n_heads, head_dim)
