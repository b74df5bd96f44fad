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


def stored(arrays: Arrays, name: str, shape: tuple[int, ...]) -> Floats:
    """An array as float64. Raises DataError where it is missing or has another shape."""
    if name not in arrays or arrays[name].shape != shape:
        found = f"has shape {arrays[name].shape}" if name in arrays else "is missing"
        raise DataError(f"array {name} of a transform {found}; {shape} is needed")
    return np.asarray(arrays[name], np.float64)


def half(array: NDArray[Any]) -> NDArray[np.float16]:
    """The array as float16, cut to its range."""
    return np.clip(array, -65504.0, 65504.0).astype(np.float16)
