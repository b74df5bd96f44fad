"""Keys are stretched where queries look, queries as much the other way (query-aware scaling, techniques 7.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from turbocode.errors import OptionError
from turbocode.transforms.fitted import (
    Arrays,
    FittedTransform,
    dense,
    diagonal,
    shrunk,
    stored_dense,
    stored_diagonal,
    symmetric_power,
)
from turbocode.transforms.head_map import Floats, HeadMap
from turbocode.transforms.statistics import SideStatistics


def _moments(statistics: SideStatistics, name: str, shrink: float) -> tuple[Floats, Floats]:
    """(covariance of the keys, second moment of their queries), shrunk. Raises OptionError without queries."""
    if not statistics.has_queries:
        raise OptionError(
            f"{name} needs queries, which {statistics.side} of this dump have not",
            hint="it is for keys, of a dump with queries (turbocode capture --rows)",
        )
    return shrunk(statistics.covariance, shrink), shrunk(statistics.query_moment, shrink)


def _check_shrink(name: str, shrink: float) -> None:
    if not 0 < shrink <= 1:
        raise OptionError(f"{name} has shrink {shrink}; allowed is above 0 to 1")


@dataclass(frozen=True)
class Balance:
    """y = T x with T^T T the geometric mean of the inverse covariance of the keys and the moment of the queries.

    shrink : share of each moment that is replaced by a multiple of the identity, which guards against few tokens
    With white coding errors (any codec with a rotation) this T gives the least mean squared error of the logits that a
    linear map can. Assumes that later queries lie as those of the calibration. Attention: D * D multiplications a
    query head. Stores 2 * D * D bytes a head: 0.06 bits a value for 128. Keys only. Hurts on other text where the
    moments of few queries were taken for all.
    """

    name: ClassVar[str] = "balance"
    shrink: float = 0.05

    def __post_init__(self) -> None:
        _check_shrink(self.name, self.shrink)

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        keys, queries = _moments(statistics, self.name, self.shrink)
        root, inverse = symmetric_power(keys, 0.5), symmetric_power(keys, -0.5)
        middle = symmetric_power(root @ queries @ root, 0.5)
        metric = inverse @ middle @ inverse
        trace = [np.trace(m, axis1=1, axis2=2) for m in (keys, queries, middle)]
        about = {"predicted_gain": float(np.mean(trace[0] * trace[1] / trace[2] ** 2))}
        return FittedTransform(self.name, about, dense(symmetric_power(metric, 0.5)))

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return stored_dense(arrays, n_heads, head_dim)


def _fit_scales(statistics: SideStatistics, name: str, shrink: float, *, are_pairs: bool) -> FittedTransform:
    keys, queries = (np.diagonal(m, axis1=1, axis2=2) for m in _moments(statistics, name, shrink))
    if are_pairs:
        keys, queries = (_summed_by_pair(x) for x in (keys, queries))
    scale = (queries / keys) ** 0.25
    scale = np.clip(scale / np.exp(np.log(scale).mean(axis=1, keepdims=True)), 0.25, 4.0)
    gain = queries.sum(1) * keys.sum(1) / ((queries / scale**2).sum(1) * (keys * scale**2).sum(1))
    return FittedTransform(name, {"predicted_gain": float(gain.mean())}, diagonal(scale))


def _summed_by_pair(x: Floats) -> Floats:
    """Channels i and i + D / 2, which RoPE turns into each other, both get the sum."""
    half = x.shape[1] // 2
    both = x[:, :half] + x[:, half : 2 * half]
    return np.concatenate([both, both, x[:, 2 * half :]], axis=1)


@dataclass(frozen=True)
class BalanceDiagonal:
    """y_c = s_c x_c with s_c = (E q_c^2 / var k_c) ** 1/4: the best diagonal map for white coding errors.

    Cut to 1/4..4 around its geometric mean. Attention: D multiplications a query head. Stores 2 bytes a channel. Keys
    only; otherwise as `balance`.
    """

    name: ClassVar[str] = "balance_diagonal"
    shrink: float = 0.05

    def __post_init__(self) -> None:
        _check_shrink(self.name, self.shrink)

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        return _fit_scales(statistics, self.name, self.shrink, are_pairs=False)

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return stored_diagonal(arrays, n_heads, head_dim)


@dataclass(frozen=True)
class BalancePairs:
    """As `balance_diagonal`, but one scale for both channels of a RoPE pair (c and c + D / 2).

    It then commutes with RoPE, so that a runtime can fold it into the weights of keys and queries and pay nothing at
    all. Assumes the layout of pairs that transformers' Llama has; of other models it is still exact, only not foldable.
    """

    name: ClassVar[str] = "balance_pairs"
    shrink: float = 0.05

    def __post_init__(self) -> None:
        _check_shrink(self.name, self.shrink)

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        return _fit_scales(statistics, self.name, self.shrink, are_pairs=True)

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return stored_diagonal(arrays, n_heads, head_dim)
