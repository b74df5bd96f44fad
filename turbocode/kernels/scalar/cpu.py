"""Scalar encoding and decoding on the CPU: one pass over the values, groups in parallel, scratch in cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels._cpu import GROUPS_PER_TASK, load_float32, prange, strict, strict_parallel
from turbocode.kernels.fwht import Rotation
from turbocode.kernels.fwht.cpu import RADIX, transform
from turbocode.kernels.scalar import steps
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.scalar.steps import dot, squared_error

_FLOAT16, _Q8_0, _Q4_0 = np.int64(Layout.FLOAT16), np.int64(Layout.Q8_0), np.int64(Layout.Q4_0)
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
def _moments(y: Any, decoded: Any, factor: Any, terms: Any, out: Any) -> None:
    """Set out (4,) for y * factor and its decoded self; sums are float32 at the scale of y, where nothing overflows."""
    square = np.float64(factor) * np.float64(factor)
    out[ENERGY] = np.float64(dot(y, y, terms)) * square
    out[ERROR] = np.float64(squared_error(y, decoded, _ONE / factor, terms)) * square
    out[DOT] = np.float64(dot(y, decoded, terms)) * np.float64(factor)
    out[DECODED_ENERGY] = np.float64(dot(decoded, decoded, terms))


@strict
def _codebook_moments(
    y: Any, c: Any, norm: Any, stored: Any, uc: Any, cc: Any, factor: Any, terms: Any, out: Any
) -> None:
    """Set out (4,) as `_moments` does where c * stored is the decoded group, from the sums that encoding needed."""
    square = np.float64(factor) * np.float64(factor)
    out[ENERGY] = np.float64(norm) * np.float64(norm) * square
    out[ERROR] = np.float64(squared_error(y, c, stored / factor, terms)) * square
    out[DOT] = np.float64(norm) * np.float64(factor) * np.float64(stored) * np.float64(uc)
    out[DECODED_ENERGY] = np.float64(stored) * np.float64(stored) * np.float64(cc)


@strict_parallel
def _encode_all(
    values: Any,
    out: Any,
    moments: Any,
    flags: Any,
    layout: int,
    bits: int,
    values_per_block: int,
    mode: int,
    boundaries: Any,
    centroids: Any,
    is_rotated: bool,
    width: int,
    base: Any,
    first: Any,
    last: Any,
    lanes: int,
) -> None:
    n_groups, g = values.shape
    for task in prange((n_groups + GROUPS_PER_TASK - 1) // GROUPS_PER_TASK):
        y, mixed = np.empty(g, np.float32), np.empty(g, np.float32)
        u, c = np.empty(g, np.float32), np.empty(g, np.float32)
        indices, planes, terms = np.empty(g, np.uint32), np.empty(g, np.uint32), np.empty(g, np.float32)
        for group in range(task * GROUPS_PER_TASK, min(n_groups, (task + 1) * GROUPS_PER_TASK)):
            for j in range(g):
                y[j] = load_float32(values[group, j]) * first[j]
            factor = _ONE
            square = dot(y, y, terms)
            flag = np.uint8(0)
            if not (square < _SAFE_SQUARE):
                factor = _UP
                for j in range(g):
                    y[j] *= _DOWN
                square = dot(y, y, terms)
                if not (square <= _FINITE_MAX):
                    flag = steps.NONFINITE
                    square = _ZERO
                    for j in range(g):
                        y[j] = _ZERO
            if is_rotated:
                transform(y, mixed, width, base, last, lanes)
            cut = False
            if layout == _FLOAT16:
                for j in range(g):
                    cut |= steps.store_float16(y[j] * factor, out[group], 2 * j)
                    c[j] = steps.load_float16(out[group], 2 * j)
                _moments(y, c, factor, terms, moments[group])
            elif layout in (_Q8_0, _Q4_0):
                for j in range(g):
                    u[j] = y[j] * factor
                for block in range(g // values_per_block):
                    start = block * values_per_block
                    if layout == _Q8_0:
                        cut |= steps.encode_q8_0(
                            u, start, values_per_block, out[group], block * (values_per_block + 2), c
                        )
                    else:
                        position = block * (values_per_block // 2 + 2)
                        cut |= steps.encode_q4_0(u, start, values_per_block, out[group], position, c)
                _moments(y, c, factor, terms, moments[group])
            else:
                norm = np.sqrt(square)
                inverse = _ONE / norm if norm * factor >= steps._F16_TINY else _ZERO
                for j in range(g):
                    u[j] = y[j] * inverse
                steps.quantize(u, boundaries, centroids, indices, c)
                uc, cc = dot(u, c, terms), dot(c, c, terms)
                stored = steps.corrected_norm(norm * factor, uc, cc, mode)
                cut = steps.pack_group(indices, stored, layout, bits, values_per_block, planes, out[group])
                stored = steps.load_float16(out[group], 0)
                _codebook_moments(y, c, norm, stored, uc, cc, factor, terms, moments[group])
            if cut:
                flag |= steps.SATURATED
            flags[group] = flag


@strict_parallel
def _decode_all(
    stored: Any,
    out: Any,
    layout: int,
    bits: int,
    values_per_block: int,
    centroids: Any,
    is_rotated: bool,
    width: int,
    base: Any,
    first: Any,
    last: Any,
    lanes: int,
) -> None:
    n_groups, g = out.shape
    for task in prange((n_groups + GROUPS_PER_TASK - 1) // GROUPS_PER_TASK):
        mixed, indices = np.empty(g, np.float32), np.empty(g, np.uint32)
        for group in range(task * GROUPS_PER_TASK, min(n_groups, (task + 1) * GROUPS_PER_TASK)):
            y = out[group]
            steps.dequantize_group(stored[group], layout, bits, values_per_block, centroids, indices, y)
            if is_rotated:
                for j in range(g):
                    y[j] *= first[j]
                transform(y, mixed, width, base, last, lanes)


def encode(
    values: NDArray[np.float16] | NDArray[np.float32],
    block_format: BlockFormat,
    rotation: Rotation,
    centroids: NDArray[np.float32],
    boundaries: NDArray[np.float32],
    mode: NormMode,
) -> EncodedGroups:
    """Blocks of the groups `values` (n, group_size), C-contiguous float16 or float32, with what the coding cost."""
    n = len(values)
    out = np.empty((n, block_format.bytes_per_group), np.uint8)
    moments, flags = np.empty((n, 4)), np.empty(n, np.uint8)
    _encode_all(
        values.view(np.uint16) if values.dtype == np.float16 else values,
        out,
        moments,
        flags,
        int(block_format.layout),
        block_format.bits,
        block_format.values_per_block,
        int(mode),
        boundaries,
        centroids,
        not rotation.is_identity,
        rotation.width,
        rotation.base,
        rotation.signs_before,
        rotation.signs_after * rotation.scale,
        RADIX,
    )
    return EncodedGroups(out, moments, flags)


def decode(
    blocks: NDArray[np.uint8], block_format: BlockFormat, rotation: Rotation, centroids: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The values float32 (n, group_size) that blocks uint8 (n, bytes_per_group), C-contiguous, stand for.

    With the identity as rotation the values stay as stored: rotated.
    """
    out = np.empty((len(blocks), block_format.group_size), np.float32)
    _decode_all(
        blocks,
        out,
        int(block_format.layout),
        block_format.bits,
        block_format.values_per_block,
        centroids,
        not rotation.is_identity,
        rotation.width,
        np.ascontiguousarray(rotation.base.T),
        rotation.signs_after,
        rotation.signs_before * rotation.scale,
        RADIX,
    )
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
