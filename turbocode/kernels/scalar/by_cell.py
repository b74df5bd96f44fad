"""Indices of 4 bits: a value finds its cell of 32, and what a lane of the warp keeps for that cell turns the value's
own bits into the index.

A value becomes a number G from 1 to 2, whose five highest bits of mantissa are the cell. For a cell with a boundary,
the lane keeps (number of the index above it) 2^28 - (bits of the boundary's G): added to the bits of G, the highest
four bits are that index, or the one below if the difference is negative. Without a boundary it keeps what makes the
highest four bits the index of all its values.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx, _ptx_bits
from turbocode.kernels._cuda import cuda, device, types
from turbocode.kernels.fwht.lanes import CHUNK
from turbocode.kernels.fwht.tensor_lanes import LANES
from turbocode.kernels.scalar.gpu_steps import CELLS_AT, CENTROIDS_AT
from turbocode.kernels.scalar.place_tensor import lane_placer
from turbocode.kernels.scalar.tensor_indices import TensorIndices, chunk_signs

BITS, N_CELLS, N_BOUNDARIES = 4, 32, 15
N_MAGNITUDES = 8
REACH = np.float32(33.0 / 32.0)  # the cells cover this much of the highest boundary, on both sides of 0
_CELL_AT, _INDEX_AT = 18, 28  # the lowest bits of the cell in the bits of G, and of the index
_BELOW_ONE = np.float32(1.0 - 2.0**-22)  # so that G stays below 2
_HALF, _ONE = np.float32(0.5), np.float32(1.0)

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64


def cells(boundaries: NDArray[np.float32]) -> NDArray[np.uint32] | None:
    """(32,): what the lanes keep for 15 ascending boundaries that are symmetric; None where two lie in one cell."""
    values = boundaries.astype(np.float32) * (_HALF / (boundaries[-1] * REACH)) + _HALF
    patterns = (values * _BELOW_ONE + _ONE).astype(np.float32).view(np.uint32)
    cell = patterns >> np.uint32(_CELL_AT) & np.uint32(N_CELLS - 1)
    if len(set(cell.tolist())) < N_BOUNDARIES:
        return None
    numbers = np.arange(N_CELLS)
    below = np.searchsorted(cell, numbers)  # boundaries in lower cells: the index of a value without one in its own
    kept = (below << _INDEX_AT) - (int(_ONE.view(np.uint32)) + (numbers << _CELL_AT))
    kept[cell] = (np.arange(1, N_BOUNDARIES + 1) << _INDEX_AT) - patterns.astype(np.int64)
    return (kept & 0xFFFFFFFF).astype(np.uint32)


@functools.cache
def by_cell(form: BlockFormat, root: float, signs_key: bytes) -> TensorIndices:
    """The functions for 4 bits. root : what `scale` has of the transform's; signs_key : signs after it, as bytes."""
    negative = chunk_signs(np.frombuffer(signs_key, np.float32)).astype(np.uint64)
    mirrors = (negative * 15 << (BITS * np.arange(CHUNK, dtype=np.uint64))).sum(axis=-1)
    n_values = form.group_size // LANES
    n_chunks = n_values // CHUNK
    count, (spot, put) = _counter(n_chunks), lane_placer(form)
    factor = np.float32(0.5 * root)

    @device
    def prepare(table: Any, lane: Any, constants: Any) -> Any:
        top = _ptx.load_f32(table + uint64(4 * (N_BOUNDARIES - 1)))
        constants[0] = _ptx.divide(factor, top * REACH)
        for m in range(N_MAGNITUDES):  # the square of a centroid as a sum over the subsets of its number's bits
            square = float32(0)
            for part in range(N_MAGNITUDES):
                if (part & m) == part:
                    c = _ptx.load_f32(table + uint64(4 * (CENTROIDS_AT + N_MAGNITUDES + part)))
                    odd = uint32(_ptx.count_bits(uint32(part ^ m)) & uint32(1))
                    square = square + (-(c * c) if odd != uint32(0) else c * c)
            constants[1 + m] = square
        return _ptx.load_u32(table + uint64(uint32(4) * uint32(uint32(CELLS_AT) + lane)))

    @device
    def four(d: Any, v: Any, scale: Any, kept: Any, word: Any) -> Any:
        values = cuda.local.array(4, float32)
        values[0], values[1] = d[v] + d[v + 2], d[v + 1] + d[v + 3]
        values[2], values[3] = d[v] - d[v + 2], d[v + 1] - d[v + 3]
        for e in range(4):  # the last value first: it ends in the highest bits
            inside = _ptx.multiply_add_saturated(values[3 - e], scale, _HALF)
            g = _ptx.float_bits(_ptx.multiply_add(inside, _BELOW_ONE, _ONE))
            found = uint32(g + _ptx.shuffle_index(kept, uint32(g >> uint32(_CELL_AT))))
            word = _ptx_bits.funnel_shift_left(found, word, uint32(BITS))
        return word

    @device
    def find(d: Any, scale: Any, kept: Any, constants: Any, mirror: Any, words: Any) -> Any:
        for chunk in range(n_chunks):
            word = four(d, CHUNK * chunk + 4, scale, kept, uint32(0))
            words[chunk] = four(d, CHUNK * chunk, scale, kept, word)
        square = count(words, constants)
        for chunk in range(n_chunks):
            words[chunk] = uint32(words[chunk] ^ mirror[chunk])
        return square

    @device
    def index(words: Any, v: Any) -> Any:
        return uint32(uint32(words[v // CHUNK] >> uint32(BITS * (v % CHUNK))) & uint32(15))

    zeros = (0x88888888,) * n_chunks
    kept_mirrors = np.ascontiguousarray(mirrors.astype(np.uint32))
    return TensorIndices(n_chunks, 1 + N_MAGNITUDES, kept_mirrors, zeros, prepare, find, index, spot, put)


def _counter(n_chunks: int) -> Any:
    """count(words, constants): |c|^2 from how often all bits of each magnitude are set.

    Counting bits is slow, so the bits of a number of all words are collected in one word first.
    """
    ones, twos, fours = uint32(0x55555555), uint32(0x33333333), uint32(0x11111111)
    valid = uint32(int("1" * 8, 16) * ((1 << n_chunks) - 1))
    base = np.float32(n_chunks * CHUNK)
    has_second, has_four = n_chunks > 1, n_chunks > 2

    mixed = _ptx_bits.choose_bits
    differing = _ptx_bits.bitwise(lambda a, b, mask: a ^ (~b & mask))

    @device
    def planes(words: Any, p: Any) -> None:
        """Set p (4,): bit 4 e + i of p[b] is bit b of value e in word i."""
        if not has_second:
            for b in range(4):
                p[b] = uint32(uint32(words[0] >> uint32(b)) & fours)
        else:
            even, odd = (
                mixed(ones, words[0], uint32(words[1] << uint32(1))),
                mixed(ones, uint32(words[0] >> uint32(1)), words[1]),
            )
            far_even, far_odd = uint32(0), uint32(0)
            if has_four:
                far_even = mixed(ones, words[2], uint32(words[3] << uint32(1)))
                far_odd = mixed(ones, uint32(words[2] >> uint32(1)), words[3])
            p[0], p[2] = (
                mixed(twos, even, uint32(far_even << uint32(2))),
                mixed(twos, uint32(even >> uint32(2)), far_even),
            )
            p[1], p[3] = mixed(twos, odd, uint32(far_odd << uint32(2))), mixed(twos, uint32(odd >> uint32(2)), far_odd)

    @device
    def count(words: Any, constants: Any) -> Any:
        p = cuda.local.array(4, uint32)
        planes(words, p)
        for b in range(3):  # of the magnitude's number: the index's for values above 0, else its complement's
            p[b] = differing(p[b], p[3], valid)
        square = constants[1] * base
        for m in range(1, N_MAGNITUDES):
            common = valid
            for b in range(3):
                if m & (1 << b) != 0:
                    common = uint32(common & p[b])
            square = _ptx.multiply_add(_ptx.from_int(int32(_ptx.count_bits(common))), constants[1 + m], square)
        return square

    return count
