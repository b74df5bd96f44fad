"""Transforms as fitted: named arrays that say what is done to the vectors of one layer's keys or values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError
from turbocode.transforms.head_map import Floats, HeadMap
from turbocode.transforms.statistics import SideStatistics

MAX_CONDITION = 1e5
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class FittedTransform:
    """name : of the transform; about : a JSON object, for people; arrays : what is stored, first axis J or 1."""

    name: str
    about: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def n_bytes(self) -> int:
        """Bytes that the arrays take."""
        return sum(array.nbytes for array in self.arrays.values())


class Transform(Protocol):
    """A way to change vectors before they are coded, that attention need not undo token by token.

    name : in recipes and files; `fit` : for one layer and side; `head_map` : what the stored arrays stand for
    """

    name: ClassVar[str]

    def fit(self, statistics: SideStatistics) -> FittedTransform: ...

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        """The map that the arrays stand for. Raises DataError for arrays that are missing or of another shape."""
        ...


def stored(arrays: Arrays, name: str, shape: tuple[int, ...], *, is_positive: bool = False) -> Floats:
    """An array as float64. Raises DataError where it is missing, has another shape, or holds what must be positive."""
    if name not in arrays or arrays[name].shape != shape:
        found = f"has shape {arrays[name].shape}" if name in arrays else "is missing"
        raise DataError(f"array {name} of a transform {found}; {shape} is needed")
    if is_positive and not (arrays[name] > 0).all():
        raise DataError(f"array {name} of a transform holds numbers that are not positive")
    return np.asarray(arrays[name], np.float64)


def half(array: NDArray[Any]) -> NDArray[np.float16]:
    """The array as float16, cut to its range."""
    return np.clip(array, -65504.0, 65504.0).astype(np.float16)


def diagonal(scale: Floats) -> dict[str, NDArray[Any]]:
    """What is stored of y_c = scale_c x_c, scale (J, D)."""
    return {"scale": half(scale)}


def stored_diagonal(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
    """The map of `diagonal`. Raises DataError."""
    scale = stored(arrays, "scale", (n_heads, head_dim), is_positive=True)
    return HeadMap.linear(scale, 1 / scale)


def dense(matrix: Floats) -> dict[str, NDArray[Any]]:
    """What is stored of y = matrix x, (J, D, D): 16-bit entries relative to the largest of the head."""
    return {"matrix": half(matrix / np.abs(matrix).max(axis=(1, 2), keepdims=True))}


def stored_dense(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
    """The map of `dense`: the rounded entries are the definition, and the way back their inverse. Raises DataError."""
    matrix = stored(arrays, "matrix", (n_heads, head_dim, head_dim))
    condition = np.linalg.cond(matrix)
    if not (condition < MAX_CONDITION).all():
        raise DataError(f"a transform's matrix has no good inverse: its condition is {condition.max():.3g}")
    # Scaled so that vectors keep their size about: the codecs' norms have a range.
    matrix = matrix * np.exp(-np.linalg.slogdet(matrix).logabsdet / head_dim)[:, None, None]
    return HeadMap.linear(matrix, np.linalg.inv(matrix))


def symmetric_power(matrix: Floats, power: float) -> Floats:
    """Power of positive matrices (J, D, D) by their eigenvalues, none below a millionth of the largest."""
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, 1e-6 * values[:, -1:])
    return (vectors * values[:, None, :] ** power) @ vectors.transpose(0, 2, 1)


def shrunk(moment: Floats, share: float) -> Floats:
    """Moments (J, D, D) with `share` of them replaced by the multiple of the identity of the same trace."""
    mean = np.trace(moment, axis1=1, axis2=2)[:, None, None] / moment.shape[1]
    return (1 - share) * moment + share * mean * np.eye(moment.shape[1])
