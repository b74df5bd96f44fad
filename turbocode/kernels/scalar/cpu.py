"""Scalar encoding and decoding on the CPU: one pass over the values, groups in parallel, scratch in cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels._cpu import GROUPS_PER_TASK, prange, strict_parallel
from turbocode.kernels.fwht import Rotation
from turbocode.kernels.fwht.cpu import RADIX, transform
from turbocode.kernels.group import EncodedGroups, codebook_moments, measure, prepare
from turbocode.kernels.scalar import steps
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.scalar.steps import dot

_FLOAT16, _Q8_0, _Q4_0 = np.int64(Layout.FLOAT16), np.int64(Layout.Q8_0), np.int64(Layout.Q4_0)
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


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
            factor, square, flag = prepare(values[group], first, is_rotated, width, base, last, lanes, y, mixed, terms)
            cut = False
            if layout == _FLOAT16:
                for j in range(g):
                    cut |= steps.store_float16(y[j] * factor, out[group], 2 * j)
                    c[j] = steps.load_float16(out[group], 2 * j)
                measure(y, c, factor, terms, moments[group])
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
                measure(y, c, factor, terms, moments[group])
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
                codebook_moments(y, c, norm, stored, uc, cc, factor, terms, moments[group])
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
