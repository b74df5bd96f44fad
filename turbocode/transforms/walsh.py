"""A Walsh rotation in order of sequency, whole or in groups (GSR, arXiv 2505.03810; techniques 2.3 and 2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from turbocode.errors import DataError, OptionError
from turbocode.transforms.fitted import Arrays, FittedTransform, stored
from turbocode.transforms.head_map import Floats, HeadMap
from turbocode.transforms.statistics import SideStatistics


def walsh_matrix(size: int) -> Floats:
    """Orthonormal Walsh matrix (size, size), size a power of two: row s changes its sign s times."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    changes = (np.diff(matrix, axis=1) != 0).sum(axis=1)
    return matrix[np.argsort(changes)] / np.sqrt(size)


def power_of_two_in(head_dim: int) -> int:
    """The largest power of two that divides head_dim."""
    return head_dim & -head_dim


@dataclass(frozen=True)
class Walsh:
    """y = diag(W, ..., W) x with W the Walsh matrix of `group` channels, rows in order of sign changes.

    group : a power of two; 0 takes the largest that divides head_dim
    For codecs with scales of fewer values than a rotation mixes (`q4_0`, `q8_0`, rotation=none): rows of like sequency
    then share a scale. Where one norm covers the group, as in `turbo3`, an order of outputs changes nothing, and a
    second rotation in front of the codec's own only makes it another one. Assumes nothing of the data and stores 4
    bytes. Attention: as an FWHT, D log2(group) additions a query head or output. Hurts where outliers that a small
    group would keep to itself are spread over all.
    """

    name: ClassVar[str] = "walsh"
    group: int = 0

    def __post_init__(self) -> None:
        if self.group < 0 or self.group & (self.group - 1):
            raise OptionError(f"walsh has group {self.group}; allowed are powers of two, or 0 for the largest")

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        group = self.group or power_of_two_in(statistics.head_dim)
        if statistics.head_dim % group:
            raise OptionError(f"walsh has group {group}, which does not divide head_dim {statistics.head_dim}")
        return FittedTransform(self.name, {"group": group}, {"group": np.array([[group]], np.int32)})

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        group = int(stored(arrays, "group", (1, 1))[0, 0])
        if group < 1 or group & (group - 1) or head_dim % group:
            raise DataError(f"a transform has groups of {group} channels, which do not divide head_dim {head_dim}")
        matrix = np.kron(np.eye(head_dim // group), walsh_matrix(group))
        forward = np.tile(matrix, (n_heads, 1, 1))
        return HeadMap.linear(forward, forward.transpose(0, 2, 1))
