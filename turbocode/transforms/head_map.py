"""An affine map of the vectors of each KV head, with its way back, and what both mean for attention.

J KV heads, D head_dim. A vector x is coded as y = F x + c and read back as x' = G y + n. So

    <q, x'> = <G^T q, y> + <q, n>      a key's map goes into the query, n adds the same to all logits of a query
    sum p x' = G sum p y + n           a value's map goes into the output, once

and nothing is done per token when attention reads the blocks. G need not undo F: a gain scales what is decoded only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Matrix = Floats | None  # None is the identity, (J, D) a diagonal, (J, D, D) rows of outputs
Shift = Floats | None  # None is zero


def _times(left: Matrix, right: Matrix) -> Matrix:
    """The matrix product, diagonal where both are."""
    if left is None or right is None:
        return right if left is None else left
    if left.ndim == 2:
        return left * right if right.ndim == 2 else left[:, :, None] * right
    return left * right[:, None, :] if right.ndim == 2 else left @ right


def _of(matrix: Matrix, shift: Shift) -> Shift:
    """matrix times shift, (J, D)."""
    if matrix is None or shift is None:
        return shift
    return matrix * shift if matrix.ndim == 2 else (matrix @ shift[:, :, None])[:, :, 0]


def _sum(left: Shift, right: Shift) -> Shift:
    if left is None or right is None:
        return right if left is None else left
    return left + right


@dataclass(frozen=True, eq=False)
class HeadMap:
    """forward, forward_shift : F and c; backward, backward_shift : G and n (see the module)."""

    forward: Matrix = None
    forward_shift: Shift = None
    backward: Matrix = None
    backward_shift: Shift = None

    @classmethod
    def shifting(cls, shift: Floats) -> HeadMap:
        """y = x - shift (J, D)."""
        return cls(forward_shift=-shift, backward_shift=shift)

    @classmethod
    def linear(cls, forward: Floats, backward: Floats) -> HeadMap:
        """y = F x with the way back given: both (J, D) diagonals or (J, D, D)."""
        return cls(forward=forward, backward=backward)

    def then(self, following: HeadMap) -> HeadMap:
        """This map, and the following one on its result."""
        return HeadMap(
            _times(following.forward, self.forward),
            _sum(_of(following.forward, self.forward_shift), following.forward_shift),
            _times(self.backward, following.backward),
            _sum(_of(self.backward, following.backward_shift), self.backward_shift),
        )

    def code(self, vectors: NDArray[Any], head: int) -> NDArray[np.float32]:
        """y float32 (..., D) of the vectors x of one KV head, computed in float64."""
        return _apply(self.forward, self.forward_shift, np.asarray(vectors, np.float64), head).astype(np.float32)

    def restore(self, coded: NDArray[Any], head: int) -> NDArray[np.float32]:
        """x' float32 (..., D) of decoded y, or the output of attention over x' of that over y."""
        return _apply(self._backward32, self._backward_shift32, np.asarray(coded, np.float32), head)

    def queries(self, queries: NDArray[Any], head: int) -> NDArray[np.float32]:
        """Queries float32 (..., D) for logits over y: G^T q."""
        q = np.asarray(queries, np.float32)
        if self._backward32 is None:
            return q
        matrix = self._backward32[head]
        return q * matrix if matrix.ndim == 1 else q @ matrix

    def logit_offset(self, queries: NDArray[Any], head: int) -> NDArray[np.float32] | None:
        """<q, n>, float32 (...), which logits over y lack; None where it is zero."""
        if self.backward_shift is None:
            return None
        return (np.asarray(queries, np.float64) @ self.backward_shift[head]).astype(np.float32)

    @cached_property
    def _backward32(self) -> NDArray[np.float32] | None:
        return None if self.backward is None else self.backward.astype(np.float32)

    @cached_property
    def _backward_shift32(self) -> NDArray[np.float32] | None:
        return None if self.backward_shift is None else self.backward_shift.astype(np.float32)


def _apply(matrix: Any, shift: Any, x: NDArray[Any], head: int) -> NDArray[Any]:
    if matrix is not None:
        x = x * matrix[head] if matrix.ndim == 2 else x @ matrix[head].T
    return x if shift is None else x + shift[head]
