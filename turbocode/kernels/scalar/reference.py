"""The definition of scalar encoding and decoding in NumPy float64. n groups, g values a group.

Blocks are structured arrays of shape (n, blocks_per_group) with the format's dtype. Infinite and NaN values are not
accepted here; the codec rejects them before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import FLOAT16_MAX, FLOAT16_TINY, BlockFormat, Layout
from turbocode.formats.packing import pack_bits, pack_nibbles, unpack_bits, unpack_nibbles
from turbocode.kernels.fwht import Rotation
from turbocode.kernels.fwht import reference as fwht
from turbocode.kernels.scalar.norm_mode import NormMode

Q8_MAX = 127
Q4_OFFSET = 8


def quantize(u: NDArray[Any], boundaries: NDArray[Any]) -> NDArray[np.int64]:
    """Index of the centroid nearest to each value: the number of boundaries that are <= it."""
    return np.searchsorted(boundaries, u, side="right")


def stored_norm(norm: NDArray[Any], u: NDArray[Any], c: NDArray[Any], mode: NormMode) -> NDArray[np.float64]:
    """The float64 norm (n,) to store for norms (n,), unit vectors u and quantized vectors c (n, g); see NormMode."""
    cc, uc = (c * c).sum(-1), (u * c).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = {
            NormMode.RAW: np.ones_like(cc),
            NormMode.L2: 1 / np.sqrt(cc),
            NormMode.MSE: uc / cc,
            NormMode.UNBIASED: 1 / uc,
        }[mode]
    usable = np.isfinite(factor) & (factor > 0) & (norm >= FLOAT16_TINY)
    return np.where(usable, norm * np.where(usable, factor, 0.0), 0.0)


def saturate_float16(values: NDArray[Any]) -> NDArray[np.float16]:
    """The nearest float16, with what would overflow set to the largest finite one."""
    return np.clip(values, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)


def encode(
    x: NDArray[Any],
    block_format: BlockFormat,
    rotation: Rotation,
    centroids: NDArray[Any],
    boundaries: NDArray[Any],
    mode: NormMode,
) -> NDArray[np.void]:
    """Blocks of the groups x (n, g), finite."""
    x = np.asarray(x, dtype=np.float64)
    n = len(x)
    blocks = np.zeros((n, block_format.blocks_per_group), dtype=block_format.dtype)
    if block_format.layout is Layout.FLOAT16:
        blocks["values"] = saturate_float16(fwht.rotate(x, rotation)).reshape(blocks["values"].shape)
        return blocks
    if not block_format.has_codebook:
        _encode_ggml(fwht.rotate(x, rotation), block_format, blocks)
        return blocks
    norm = np.sqrt((x * x).sum(-1))
    u = fwht.rotate(np.divide(x, norm[:, None], where=norm[:, None] > 0, out=np.zeros_like(x)), rotation)
    u[norm < FLOAT16_TINY] = 0.0
    indices = quantize(u, boundaries)
    c = np.asarray(centroids, dtype=np.float64)[indices]
    blocks["norm"] = saturate_float16(stored_norm(norm, u, c, mode))[:, None]
    indices = indices.reshape(n, block_format.blocks_per_group, -1)
    if block_format.layout is Layout.SPLIT_PLANES:
        blocks["low_bits"], blocks["high_bits"] = pack_bits(indices & 3, 2), pack_bits(indices >> 2, 1)
    else:
        blocks["indices"] = pack_bits(indices, block_format.bits)
    return blocks


def _encode_ggml(y: NDArray[np.float64], block_format: BlockFormat, blocks: NDArray[np.void]) -> None:
    """q8_0 and q4_0 with ggml's rounding, which is defined in float32."""
    rows = y.astype(np.float32).reshape(len(y), block_format.blocks_per_group, -1)
    if block_format.layout is Layout.Q8_0:
        scale = np.abs(rows).max(-1) / np.float32(Q8_MAX)
    else:
        extreme = np.take_along_axis(rows, np.abs(rows).argmax(-1)[..., None], axis=-1)[..., 0]
        scale = (extreme + np.float32(0)) / np.float32(-Q4_OFFSET)  # ggml starts from +0, so -0 is never the extreme
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    inverse = np.where(np.isfinite(inverse), inverse, np.float32(0))
    scaled = rows * inverse[..., None]
    blocks["scale"] = saturate_float16(scale)
    if block_format.layout is Layout.Q8_0:
        whole = np.trunc(scaled)
        blocks["quants"] = whole + np.where(np.abs(scaled - whole) >= 0.5, np.sign(scaled), 0)
    else:
        blocks["quants"] = pack_nibbles(np.minimum(np.trunc(scaled + np.float32(Q4_OFFSET + 0.5)), 15))


def dequantize(blocks: NDArray[np.void], block_format: BlockFormat, centroids: NDArray[Any]) -> NDArray[np.float64]:
    """The rotated values (n, g) that the blocks hold."""
    layout = block_format.layout
    if layout is Layout.FLOAT16:
        values = blocks["values"].astype(np.float64)
    elif layout is Layout.Q8_0:
        values = blocks["quants"] * blocks["scale"].astype(np.float64)[..., None]
    elif layout is Layout.Q4_0:
        offset = unpack_nibbles(blocks["quants"]).astype(np.float64) - Q4_OFFSET
        values = offset * blocks["scale"].astype(np.float64)[..., None]
    else:
        if layout is Layout.SPLIT_PLANES:
            indices = np.bitwise_or(unpack_bits(blocks["low_bits"], 2), unpack_bits(blocks["high_bits"], 1) * 4)
        else:
            indices = unpack_bits(blocks["indices"], block_format.bits)
        values = np.asarray(centroids, dtype=np.float64)[indices] * blocks["norm"].astype(np.float64)[..., None]
    return np.asarray(values.reshape(len(blocks), -1))


def decode(
    blocks: NDArray[np.void], block_format: BlockFormat, rotation: Rotation, centroids: NDArray[Any]
) -> NDArray[np.float64]:
    """The values (n, g) that the blocks stand for: dequantized and un-rotated."""
    return fwht.unrotate(dequantize(blocks, block_format, centroids), rotation)
