"""The basis of a head: a matrix of 8-bit numbers with a scale for each row and column, and its exact inverse.

Everything stored follows from elementwise operations in a fixed order, so that every machine has the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError

QUANT_MAX = 127
_LEAST_PIVOT = 1e-9  # of the largest entry: below it the matrix says nothing about a direction


def quantize_basis(
    basis: NDArray[np.float64],
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """(quants int8 (..., D, D), row scales float32 (..., D), column scales float32 (..., D)) of basis (..., D, D).

    A column's scale is the root mean square of its entries over their rows' norms, so that channels of any size keep
    the same relative accuracy.
    """
    basis = np.asarray(basis, np.float64)
    norms = np.sqrt(np.square(basis).sum(axis=-1, keepdims=True))
    relative = np.divide(basis, norms, where=norms > 0, out=np.zeros_like(basis))
    columns = np.sqrt(np.square(relative).mean(axis=-2))
    columns = np.where(columns > 0, columns, 1.0).astype(np.float32)
    scaled = basis / columns[..., None, :].astype(np.float64)
    largest = np.abs(scaled).max(axis=-1)
    rows = np.where(largest > 0, largest / QUANT_MAX, 1.0).astype(np.float32)
    quants = np.rint(scaled / rows[..., :, None].astype(np.float64)).clip(-QUANT_MAX, QUANT_MAX)
    return quants.astype(np.int8), rows, columns


def basis_matrix(quants: NDArray[np.int8], rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[Any]:
    """float32 (D, D): (quant * row scale) * column scale."""
    with np.errstate(over="ignore"):  # inverse_matrix refuses what becomes infinite
        return quants.astype(np.float32) * rows[:, None] * columns[None, :]


def inverse_matrix(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (D, D), by Gauss-Jordan elimination in float64 with the largest pivot of a column.

    Raises DataError for a matrix that has none in float32.
    """
    if not np.isfinite(matrix).all():
        raise DataError("a multirate basis leaves the range of float32: its calibration is damaged")
    size = len(matrix)
    work = np.concatenate((matrix.astype(np.float64), np.eye(size)), axis=1)
    least = _LEAST_PIVOT * float(np.abs(work[:, :size]).max())
    for column in range(size):
        pivot = column + int(np.argmax(np.abs(work[column:, column])))
        if not abs(work[pivot, column]) > least:
            raise DataError("a multirate basis has no inverse: its calibration is damaged or saw too few tokens")
        if pivot != column:
            work[[column, pivot]] = work[[pivot, column]]
        work[column] /= work[column, column]
        factors = work[:, column].copy()
        factors[column] = 0.0
        work -= factors[:, None] * work[column]
    with np.errstate(over="ignore"):
        inverse = work[:, size:].astype(np.float32)
    if not np.isfinite(inverse).all():
        raise DataError("the inverse of a multirate basis leaves the range of float32: its calibration is damaged")
    return inverse
