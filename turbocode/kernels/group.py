"""What encoding does with every group, whatever its format: load, bring into range, rotate; and what the coding cost.

y is float32 (g,), terms float32 scratch of g / 2 values or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels._cpu import load_float32, strict
from turbocode.kernels.fwht.cpu import transform
from turbocode.kernels.scalar import steps
from turbocode.kernels.scalar.steps import dot, squared_error

_SAFE_SQUARE = np.float32(2.0**120)  # above it a sum of squares may have lost values to overflow
_DOWN, _UP = np.float32(2.0**-80), np.float32(2.0**80)  # exact factors that bring any float32 group back into range
_FINITE_MAX = np.float32(np.finfo(np.float32).max)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
ENERGY, ERROR, DOT, DECODED_ENERGY = range(4)  # columns of the statistics of a group


@dataclass(frozen=True)
class EncodedGroups:
    """blocks : uint8 (n, bytes_per_group)

    moments : float64 (n, 4): |x|^2, |x - decoded x|^2, <x, decoded x>, |decoded x|^2
    flags : uint8 (n,): 1 a stored number was cut to 65504, 2 the group was not finite and is stored as zero
    """

    blocks: NDArray[np.uint8]
    moments: NDArray[np.float64]
    flags: NDArray[np.uint8]


@strict
def prepare(
    values: Any,
    first: Any,
    is_rotated: bool,
    width: int,
    base: Any,
    last: Any,
    lanes: int,
    y: Any,
    mixed: Any,
    terms: Any,
) -> Any:
    """Set y to the rotated values / factor and return (factor, |y|^2, flag); zeros and NONFINITE if not finite."""
    for j in range(y.shape[0]):
        y[j] = load_float32(values[j]) * first[j]
    factor = _ONE
    square = dot(y, y, terms)
    flag = np.uint8(0)
    if not (square < _SAFE_SQUARE):
        factor = _UP
        for j in range(y.shape[0]):
            y[j] *= _DOWN
        square = dot(y, y, terms)
        if not (square <= _FINITE_MAX):
            flag = steps.NONFINITE
            square = _ZERO
            for j in range(y.shape[0]):
                y[j] = _ZERO
    if is_rotated:
        transform(y, mixed, width, base, last, lanes)
    return factor, square, flag


@strict
def measure(y: Any, decoded: Any, factor: Any, terms: Any, out: Any) -> None:
    """Set out (4,) for y * factor and its decoded self; sums are float32 at the scale of y, where nothing overflows."""
    square = np.float64(factor) * np.float64(factor)
    out[ENERGY] = np.float64(dot(y, y, terms)) * square
    out[ERROR] = np.float64(squared_error(y, decoded, _ONE / factor, terms)) * square
    out[DOT] = np.float64(dot(y, decoded, terms)) * np.float64(factor)
    out[DECODED_ENERGY] = np.float64(dot(decoded, decoded, terms))


@strict
def codebook_moments(
    y: Any, c: Any, norm: Any, stored: Any, uc: Any, cc: Any, factor: Any, terms: Any, out: Any
) -> None:
    """Set out (4,) as `measure` does where c * stored is the decoded group, from the sums that encoding needed."""
    square = np.float64(factor) * np.float64(factor)
    out[ENERGY] = np.float64(norm) * np.float64(norm) * square
    out[ERROR] = np.float64(squared_error(y, c, stored / factor, terms)) * square
    out[DOT] = np.float64(norm) * np.float64(factor) * np.float64(stored) * np.float64(uc)
    out[DECODED_ENERGY] = np.float64(stored) * np.float64(stored) * np.float64(cc)


@strict
def moments_of_facts(facts: Any, has_codebook: bool) -> Any:
    """float64 (n, 4), the moments of EncodedGroups, from the facts float32 (n, 6) that a GPU's kernel measured.

    With a codebook the facts are |y|, factor, stored norm, <u, c>, |c|^2, |y - c stored / factor|^2, where y is the
    rotated group / factor and u = y / |y|; else |y|^2, factor, 0, <y, y'>, |y'|^2, |y - y' / factor|^2.
    """
    out = np.empty((facts.shape[0], 4), np.float64)
    for i in range(facts.shape[0]):
        first, factor, stored = np.float64(facts[i, 0]), np.float64(facts[i, 1]), np.float64(facts[i, 2])
        product, square, error = np.float64(facts[i, 3]), np.float64(facts[i, 4]), np.float64(facts[i, 5])
        scale = factor * factor
        if has_codebook:
            out[i, ENERGY] = first * first * scale
            out[i, DOT] = first * factor * stored * product
            out[i, DECODED_ENERGY] = stored * stored * square
        else:
            out[i, ENERGY] = first * scale
            out[i, DOT] = product * factor
            out[i, DECODED_ENERGY] = square
        out[i, ERROR] = error * scale
    return out


@strict
def summarise(moments: Any, flags: Any, groups_per_vector: int) -> Any:
    """Totals over the vectors that runs of groups are, in one pass without temporaries.

    moments (n, 4) and flags (n,) as in EncodedGroups, n a multiple of groups_per_vector
    Returns (zero_vectors, energy, error, product, decoded_energy, cosine_sum, cosine_min, saturated_vectors,
    first_nonfinite), the last being the first vector with a group that was not finite, or -1.
    """
    zero_vectors, saturated_vectors, first_nonfinite = 0, 0, -1
    energy, error, product, decoded_energy, cosine_sum, cosine_min = 0.0, 0.0, 0.0, 0.0, 0.0, 1.0
    for vector in range(moments.shape[0] // groups_per_vector):
        e, r, p, d, flag = 0.0, 0.0, 0.0, 0.0, np.uint8(0)
        for group in range(vector * groups_per_vector, (vector + 1) * groups_per_vector):
            e += moments[group, ENERGY]
            r += moments[group, ERROR]
            p += moments[group, DOT]
            d += moments[group, DECODED_ENERGY]
            flag |= flags[group]
        energy, error, product, decoded_energy = energy + e, error + r, product + p, decoded_energy + d
        if flag & steps.SATURATED:
            saturated_vectors += 1
        if flag & steps.NONFINITE and first_nonfinite < 0:
            first_nonfinite = vector
        if e == 0.0:
            zero_vectors += 1
        else:
            cosine = p / (np.sqrt(e) * np.sqrt(d)) if d > 0.0 else 0.0
            cosine_sum += cosine
            cosine_min = min(cosine_min, cosine)
    return (
        zero_vectors,
        energy,
        error,
        product,
        decoded_energy,
        cosine_sum,
        cosine_min,
        saturated_vectors,
        first_nonfinite,
    )
