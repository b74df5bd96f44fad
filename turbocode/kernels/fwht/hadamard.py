"""Rotations: randomised Hadamard transforms of one group, as data that every implementation reads.

A rotation is y = D2 H D1 x with H an orthonormal Hadamard matrix of order g and D1, D2 diagonals of signs; its inverse
is x = D1 H^T D2 y. H is the Kronecker product of a base of order 1, 12 or 20 (Paley 1933, q = 11 and 19) and the
Sylvester matrix of order 2^m, so that groups of 80 and 96 need no padding.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError

SIGNS_SEED = 42  # the published seed of the sign arrays
N_SIGNS = 128  # drawn at once; a smaller group uses the first of them
ROTATION_KINDS = ("signed", "hadamard", "none")
_BASE_ORDERS = (20, 12, 1)


@functools.cache
def signs() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(D1, D2): the two arrays of 128 signs, each -1 or 1, float64, drawn from seed 42 in this order."""
    rng = np.random.default_rng(SIGNS_SEED)
    before, after = (rng.choice([-1.0, 1.0], N_SIGNS) for _ in range(2))
    before.setflags(write=False)
    after.setflags(write=False)
    return before, after


def paley_hadamard(order: int) -> NDArray[np.float64]:
    """The Hadamard matrix of Paley's first construction, entries -1 and 1, for order - 1 a prime that is 3 modulo 4."""
    q = order - 1
    squares = {i * i % q for i in range(1, q)}
    character = np.array([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    matrix = np.ones((order, order))
    matrix[1:, 0] = -1.0
    i, j = np.indices((q, q))
    matrix[1:, 1:] = character[(i - j) % q] + np.eye(q)
    return matrix


@dataclass(frozen=True, eq=False)
class Rotation:
    """The rotation of one group.

    kind : `signed` (D2 H D1), `hadamard` (H alone) or `none` (identity)
    group_size : order of the matrix
    width : order of its Sylvester factor, a power of two; 1 with a 1 x 1 base is the identity
    base : float32 (b, b), entries -1 and 1, b * width = group_size
    signs_before, signs_after : float32 (group_size,), the diagonals D1 and D2
    """

    kind: str
    group_size: int
    width: int
    base: NDArray[np.float32]
    signs_before: NDArray[np.float32]
    signs_after: NDArray[np.float32]

    @property
    def is_identity(self) -> bool:
        return self.kind == "none"

    @property
    def scale(self) -> np.float32:
        """The factor that makes the transform orthonormal, 1 / sqrt(group_size), rounded to float32."""
        return np.float32(1.0 if self.is_identity else 1.0 / np.sqrt(self.group_size))

    def matrix(self) -> NDArray[np.float64]:
        """The rotation as a dense float64 matrix R: rotated = x @ R.T, restored = y @ R."""
        if self.is_identity:
            return np.eye(self.group_size)
        sylvester = np.ones((1, 1))
        while len(sylvester) < self.width:
            sylvester = np.block([[sylvester, sylvester], [sylvester, -sylvester]])
        hadamard = np.kron(self.base.astype(np.float64), sylvester) / np.sqrt(self.group_size)
        return self.signs_after.astype(np.float64)[:, None] * hadamard * self.signs_before.astype(np.float64)


@functools.cache
def rotation_for(group_size: int, kind: str = "signed") -> Rotation:
    """The rotation of groups of `group_size` values. Raises OptionError where no such Hadamard matrix is known here."""
    if kind not in ROTATION_KINDS:
        raise OptionError(f"unknown rotation {kind!r}; rotations are {', '.join(ROTATION_KINDS)}")
    ones = np.ones(group_size, dtype=np.float32)
    if kind == "none":
        return Rotation(kind, group_size, 1, np.ones((1, 1), dtype=np.float32), ones, ones)
    for order in _BASE_ORDERS:
        width, rest = divmod(group_size, order)
        if rest == 0 and width > 0 and width & (width - 1) == 0 and group_size <= N_SIGNS:
            break
    else:
        raise OptionError(
            f"no rotation of order {group_size}: it must be a power of two, or 12 or 20 times one, up to 128"
        )
    base = np.ones((1, 1)) if order == 1 else paley_hadamard(order)
    before, after = signs() if kind == "signed" else (ones, ones)
    return Rotation(
        kind,
        group_size,
        width,
        base.astype(np.float32),
        before[:group_size].astype(np.float32),
        after[:group_size].astype(np.float32),
    )
