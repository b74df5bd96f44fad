"""What happens to one group inside the cpu kernels. v is float32 (g,), out the group's bytes.

Sums are trees of fixed shape, so that their value does not depend on the compiler.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.formats.block_format import FLOAT16_MAX, FLOAT16_TINY, Layout
from turbocode.kernels._cpu import float16_from_float32, float32_from_float16, strict
from turbocode.kernels.scalar.norm_mode import NormMode

SATURATED = np.uint8(1)  # flag of a group: a stored number was cut to the largest float16
NONFINITE = np.uint8(2)  # flag of a group: it held a NaN or an infinity and was stored as zero

_RAW, _L2, _MSE = np.int64(NormMode.RAW), np.int64(NormMode.L2), np.int64(NormMode.MSE)
_SPLIT_PLANES, _FLOAT16 = np.int64(Layout.SPLIT_PLANES), np.int64(Layout.FLOAT16)
_Q8_0, _Q4_0 = np.int64(Layout.Q8_0), np.int64(Layout.Q4_0)
_PREFIX, _RING = np.int64(Layout.TRELLIS_PREFIX), np.int64(Layout.TRELLIS_RING)
_F16_MAX, _F16_TINY = np.float32(FLOAT16_MAX), np.float32(FLOAT16_TINY)
_F16_MAX_PATTERN = np.uint16(0x7BFF)
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_Q8_MAX, _Q4_OFFSET = np.float32(127.0), np.float32(8.0)


@strict
def sum_terms(terms: Any, count: Any) -> Any:
    """Sum of terms[:count] in float32, which it overwrites.

    While the number of terms is even and above eight, the upper half is added to the lower; the rest one by one.
    """
    n = count
    while n > np.uint64(8) and (n & np.uint64(1)) == np.uint64(0):
        n = n >> np.uint64(1)
        for j in range(n):
            terms[j] += terms[j + n]
    total = terms[0]
    for j in range(np.uint64(1), n):
        total += terms[j]
    return total


@strict
def dot(a: Any, b: Any, terms: Any) -> Any:
    """Sum of a * b in float32, of even length; terms is float32 scratch of half that length or more.

    The first terms are the sums over the halves, then as `sum_terms`.
    """
    n = np.uint64(a.shape[0] // 2)
    for j in range(n):
        terms[j] = a[j] * b[j] + a[j + n] * b[j + n]
    return sum_terms(terms, n)


@strict
def squared_error(a: Any, b: Any, scale: Any, terms: Any) -> Any:
    """Sum of (a - b * scale)^2 in float32, as `dot` sums."""
    n = np.uint64(a.shape[0] // 2)
    for j in range(n):
        low, high = a[j] - b[j] * scale, a[j + n] - b[j + n] * scale
        terms[j] = low * low + high * high
    return sum_terms(terms, n)


@strict
def store_float16(value: Any, out: Any, position: int) -> Any:
    """Write the nearest float16 of a finite or infinite value at out[position:], cut to 65504; true if it was cut."""
    cut = not (-_F16_MAX <= value <= _F16_MAX)
    half = float16_from_float32(value)
    if cut:
        half = np.uint16(_F16_MAX_PATTERN | (np.uint16(0x8000) if value < _ZERO else np.uint16(0)))
    out[position] = np.uint8(half & np.uint16(0xFF))
    out[position + 1] = np.uint8(half >> np.uint16(8))
    return cut


@strict
def load_float16(stored: Any, position: int) -> Any:
    """The float16 at stored[position:] as float32."""
    return float32_from_float16(
        np.uint16(np.uint16(stored[position]) | np.uint16(np.uint16(stored[position + 1]) << 8))
    )


@strict
def quantize(u: Any, boundaries: Any, centroids: Any, indices: Any, c: Any) -> None:
    """Set indices (uint32) to the number of boundaries <= u, and c to their centroids. Boundaries come 3, 7 or 15."""
    if boundaries.shape[0] == 7:
        _quantize7(u, boundaries, centroids, indices, c)
        return
    g = np.uint64(u.shape[0])
    boundary = boundaries[0]
    for j in range(g):
        indices[j] = np.uint32(u[j] >= boundary)
    for b in range(1, boundaries.shape[0], 2):
        first, second = boundaries[b], boundaries[b + 1]
        for j in range(g):
            indices[j] += np.uint32(np.uint32(u[j] >= first) + np.uint32(u[j] >= second))
    for j in range(g):
        c[j] = centroids[indices[j]]


@strict
def _quantize7(u: Any, boundaries: Any, centroids: Any, indices: Any, c: Any) -> None:
    """`quantize` at three bits in one pass: comparisons and selections vectorise, look-ups do not."""
    b0, b1, b2, b3 = boundaries[0], boundaries[1], boundaries[2], boundaries[3]
    b4, b5, b6 = boundaries[4], boundaries[5], boundaries[6]
    c0, c1, c2, c3 = centroids[0], centroids[1], centroids[2], centroids[3]
    c4, c5, c6, c7 = centroids[4], centroids[5], centroids[6], centroids[7]
    for j in range(np.uint64(u.shape[0])):
        x = u[j]
        low = np.uint32(np.uint32(x >= b0) + np.uint32(x >= b1) + np.uint32(x >= b2))
        high = np.uint32(np.uint32(x >= b3) + np.uint32(x >= b4) + np.uint32(x >= b5) + np.uint32(x >= b6))
        indices[j] = np.uint32(low + high)
        y = c1 if x >= b0 else c0
        y = c2 if x >= b1 else y
        y = c3 if x >= b2 else y
        y = c4 if x >= b3 else y
        y = c5 if x >= b4 else y
        y = c6 if x >= b5 else y
        c[j] = c7 if x >= b6 else y


@strict
def corrected_norm(norm: Any, uc: Any, cc: Any, mode: int) -> Any:
    """The norm to store, float32, before rounding to float16; 0 where it is not defined. See NormMode."""
    if norm < _F16_TINY or not (cc > _ZERO):
        return _ZERO
    if mode == _RAW:
        return norm
    if mode == _L2:
        return norm / np.sqrt(cc)
    if not (uc > _ZERO):
        return _ZERO
    return norm * (uc / cc) if mode == _MSE else norm / uc


@strict
def pack(indices: Any, bits: int, out: Any, position: int, start: int, count: int) -> None:
    """Write indices[start:start + count] of `bits` (1 to 4) bits at out[position:], lowest first."""
    b, eight, one, two, three = np.uint32(bits), np.uint64(8), np.uint64(1), np.uint64(2), np.uint64(3)
    b2, b3, b4 = np.uint32(2 * bits), np.uint32(3 * bits), np.uint32(4 * bits)
    p = np.uint64(position)
    for j in range(np.uint64(start), np.uint64(start + count), eight):
        low = np.uint32(indices[j] | np.uint32(indices[j + one] << b))
        low |= np.uint32(indices[j + two] << b2) | np.uint32(indices[j + three] << b3)
        high = np.uint32(indices[j + np.uint64(4)] | np.uint32(indices[j + np.uint64(5)] << b))
        high |= np.uint32(indices[j + np.uint64(6)] << b2) | np.uint32(indices[j + np.uint64(7)] << b3)
        word = np.uint32(np.uint32(low) | np.uint32(np.uint32(high) << b4))
        out[p] = np.uint8(word & np.uint32(0xFF))
        if bits > 1:
            out[p + one] = np.uint8(np.uint32(word >> np.uint32(8)) & np.uint32(0xFF))
        if bits > 2:
            out[p + two] = np.uint8(np.uint32(word >> np.uint32(16)) & np.uint32(0xFF))
        if bits > 3:
            out[p + three] = np.uint8(word >> np.uint32(24))
        p += np.uint64(bits)


@strict
def unpack(stored: Any, bits: int, position: int, indices: Any, start: int, count: int, shift: int) -> None:
    """Add what `pack` wrote at stored[position:], shifted left by `shift`, to indices[start:start + count]."""
    b, up, one = np.uint64(bits), np.uint64(shift), np.uint64(1)
    mask = (one << b) - one
    p = np.uint64(position)
    for j in range(np.uint64(start), np.uint64(start + count), np.uint64(8)):
        word = np.uint64(0)
        for byte in range(b):
            word |= np.uint64(stored[p + byte]) << (np.uint64(8) * byte)
        p += b
        for lane in range(np.uint64(8)):
            indices[j + lane] |= np.uint32(((word >> (b * lane)) & mask) << up)


@strict
def pack_group(
    indices: Any, stored_norm: Any, layout: int, bits: int, values_per_block: int, planes: Any, out: Any
) -> Any:
    """Write a group's blocks, each with the norm, and say whether the norm was cut; planes is uint32 (g,) scratch."""
    position, cut = 0, False
    for start in range(0, indices.shape[0], values_per_block):
        cut = store_float16(stored_norm, out, position)
        position += 2
        if layout == _SPLIT_PLANES:
            high_position = position + values_per_block // 4
            for j in range(start, start + values_per_block):
                planes[j] = indices[j] & np.uint32(3)
            pack(planes, 2, out, position, start, values_per_block)
            for j in range(start, start + values_per_block):
                planes[j] = indices[j] >> np.uint32(2)
            pack(planes, 1, out, high_position, start, values_per_block)
            position = high_position + values_per_block // 8
        else:
            pack(indices, bits, out, position, start, values_per_block)
            position += values_per_block * bits // 8
    return cut


@strict
def unpack_group(stored: Any, layout: int, bits: int, values_per_block: int, indices: Any) -> Any:
    """Set the indices of a group from its blocks; the norm that its first block holds."""
    for j in range(indices.shape[0]):
        indices[j] = 0
    position = 0
    for start in range(0, indices.shape[0], values_per_block):
        position += 2
        if layout == _SPLIT_PLANES:
            unpack(stored, 2, position, indices, start, values_per_block, 0)
            position += values_per_block // 4
            unpack(stored, 1, position, indices, start, values_per_block, 2)
            position += values_per_block // 8
        else:
            unpack(stored, bits, position, indices, start, values_per_block, 0)
            position += values_per_block * bits // 8
    return load_float16(stored, 0)


@strict
def encode_q8_0(v: Any, start: int, count: int, out: Any, position: int, decoded: Any) -> Any:
    """Write a q8_0 block of v[start:start + count] (rounding half away from zero); true if its scale was cut."""
    largest = _ZERO
    for j in range(start, start + count):
        largest = max(largest, abs(v[j]))
    scale = largest / _Q8_MAX
    inverse = _ONE / scale if scale > _ZERO else _ZERO
    if not (inverse <= np.float32(np.finfo(np.float32).max)):
        inverse = _ZERO
    cut = store_float16(scale, out, position)
    stored_scale = load_float16(out, position)
    for j in range(count):
        scaled = v[start + j] * inverse
        quant = np.trunc(scaled)
        if abs(scaled - quant) >= _HALF:
            quant += _ONE if scaled > _ZERO else -_ONE
        # A rotated value that overflowed is infinite; its product with inverse = 0 is NaN.
        quant = quant if abs(quant) <= _Q8_MAX else _ZERO
        out[position + 2 + j] = np.uint8(np.int8(quant))
        decoded[start + j] = quant * stored_scale
    return cut


@strict
def encode_q4_0(v: Any, start: int, count: int, out: Any, position: int, decoded: Any) -> Any:
    """Write a q4_0 block of v[start:start + count] (the extreme value maps to -8); true if its scale was cut."""
    largest, extreme = _ZERO, _ZERO
    for j in range(start, start + count):
        if abs(v[j]) > largest:
            largest, extreme = abs(v[j]), v[j]
    scale = extreme / -_Q4_OFFSET
    inverse = _ONE / scale if scale != _ZERO else _ZERO
    if not (abs(inverse) <= np.float32(np.finfo(np.float32).max)):
        inverse = _ZERO
    cut = store_float16(scale, out, position)
    stored_scale = load_float16(out, position)
    half = count // 2
    for j in range(half):
        low_level = v[start + j] * inverse + (_Q4_OFFSET + _HALF)
        high_level = v[start + half + j] * inverse + (_Q4_OFFSET + _HALF)
        # NaN, from a rotated value that overflowed, is stored as 0.
        low = min(np.int32(15), np.int32(low_level if low_level >= _ZERO else _ZERO))
        high = min(np.int32(15), np.int32(high_level if high_level >= _ZERO else _ZERO))
        out[position + 2 + j] = np.uint8(low | (high << np.int32(4)))
        decoded[start + j] = np.float32(low - np.int32(8)) * stored_scale
        decoded[start + half + j] = np.float32(high - np.int32(8)) * stored_scale
    return cut


@strict
def decode_q8_0(block: Any, out: Any) -> None:
    """Set out (32,) from a q8_0 block (34 bytes)."""
    scale, quants = load_float16(block, 0), block[2:]
    for j in range(out.shape[0]):
        out[j] = np.float32(np.int8(quants[j])) * scale


@strict
def decode_q4_0(block: Any, out: Any) -> None:
    """Set out (32,) from a q4_0 block (18 bytes)."""
    scale, quants = load_float16(block, 0), block[2:]
    half = out.shape[0] // 2
    low, high = out[:half], out[half:]
    for j in range(half):
        byte = np.int32(quants[j])
        low[j] = np.float32((byte & np.int32(15)) - np.int32(8)) * scale
        high[j] = np.float32((byte >> np.int32(4)) - np.int32(8)) * scale


@strict
def unpack_path(stored: Any, bits: int, is_ring: bool, mask: Any, states: Any) -> None:
    """Set states uint32 (g,) to the windows of the stream behind the norm; mask: 2**states_log2 - 1.

    Eight windows lie in bits + 2 bytes; a ring goes on at its beginning.
    """
    n_bytes, b, eight = np.uint64(stored.shape[0] - 2), np.uint64(bits), np.uint64(8)
    if is_ring and n_bytes < b + np.uint64(2):
        _unpack_short_ring(stored, bits, mask, states)
        return
    p = np.uint64(0)
    for j in range(np.uint64(0), np.uint64(states.shape[0]), eight):
        word = np.uint64(0)
        for byte in range(b + np.uint64(2)):
            position = p + byte
            if is_ring and position >= n_bytes:
                position -= n_bytes
            word |= np.uint64(stored[np.uint64(2) + position]) << (eight * byte)
        p += b
        for lane in range(eight):
            states[j + lane] = np.uint32((word >> (b * lane)) & np.uint64(mask))


@strict
def _unpack_short_ring(stored: Any, bits: int, mask: Any, states: Any) -> None:
    """`unpack_path` for rings of fewer bytes than the windows of eight values span."""
    n_bytes = stored.shape[0] - 2
    for j in range(states.shape[0]):
        word = np.uint64(0)
        for byte in range(4):
            position = (bits * j // 8 + byte) % n_bytes
            word |= np.uint64(stored[2 + position]) << np.uint64(8 * byte)
        states[j] = np.uint32((word >> np.uint64(bits * j % 8)) & np.uint64(mask))


@strict
def dequantize_group(
    stored: Any, layout: int, bits: int, values_per_block: int, centroids: Any, indices: Any, y: Any
) -> None:
    """Set y (g,) to the rotated values of one group of any layout; indices is uint32 (g,) scratch."""
    g = y.shape[0]
    if layout in (_Q8_0, _Q4_0):
        n_bytes = values_per_block + 2 if layout == _Q8_0 else values_per_block // 2 + 2
        for number in range(g // values_per_block):
            block = stored[number * n_bytes : (number + 1) * n_bytes]
            out = y[number * values_per_block : (number + 1) * values_per_block]
            if layout == _Q8_0:
                decode_q8_0(block, out)
            else:
                decode_q4_0(block, out)
    elif layout == _FLOAT16:
        halves = stored.view(np.uint16)
        for j in range(g):
            y[j] = float32_from_float16(halves[j])
    elif layout in (_PREFIX, _RING):
        unpack_path(stored, bits, layout == _RING, centroids.shape[0] - 1, indices)
        norm = load_float16(stored, 0)
        for j in range(g):
            y[j] = centroids[indices[j]] * norm
    else:
        norm = unpack_group(stored, layout, bits, values_per_block, indices)
        for j in range(g):
            y[j] = centroids[indices[j]] * norm
