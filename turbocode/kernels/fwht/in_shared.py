"""A group in shared memory, worked on by a warp, for any group size: what trellises and groups of 80 and 96 values use.

Functions take uint32 shared addresses of float32 (g,) and the lane's number; each ends with a barrier of the warp. The
arithmetic and its order are those of fwht/cpu.py and scalar/steps.py: same bits.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.fwht.hadamard import Rotation
from turbocode.kernels.fwht.lanes import BFLOAT16, FLOAT32

WARP = 32

float32, uint32, uint64 = types.float32, types.uint32, types.uint64


class InShared(NamedTuple):
    """load(address, y, lane) : the group at a global address, times the first signs; store(address, y, lane) : back

    flip(y, lane) : multiply by the first signs in place, what is in shared memory already
    transform(y, lane) : butterflies, base matrix and scaled last signs, in place
    """

    load: Any
    store: Any
    flip: Any
    transform: Any


@device
def read(y: Any, j: Any) -> Any:
    """y[j]"""
    return _ptx.load_shared_f32(at(y, uint32(uint32(j) * uint32(4))))


@device
def write(y: Any, j: Any, value: Any) -> None:
    """y[j] = value"""
    _ptx.store_shared_f32(at(y, uint32(uint32(j) * uint32(4))), value)


@functools.cache
def summed(count: int) -> Any:
    """total(terms, lane): the sum of terms (count,) as scalar/steps.py: sum_terms."""

    @device
    def total(terms: Any, lane: Any) -> Any:
        n = uint32(count)
        while n > uint32(8) and uint32(n & uint32(1)) == uint32(0):
            n = uint32(n >> uint32(1))
            j = uint32(lane)
            while j < n:
                write(terms, j, _ptx.add(read(terms, j), read(terms, uint32(j + n))))
                j = uint32(j + uint32(WARP))
            _ptx.sync_warp()
        result = read(terms, uint32(0))
        j = uint32(1)
        while j < n:
            result = _ptx.add(result, read(terms, j))
            j = uint32(j + uint32(1))
        _ptx.sync_warp()
        return result

    return total


@functools.cache
def products(g: int) -> Any:
    """dot(a, b, terms, lane): the sum over the group, in every lane; terms is scratch of g / 2 values."""
    half = g // 2
    total = summed(half)

    @device
    def dot(a: Any, b: Any, terms: Any, lane: Any) -> Any:
        j = uint32(lane)
        while j < uint32(half):
            low = _ptx.multiply(read(a, j), read(b, j))
            high = _ptx.multiply(read(a, uint32(j + uint32(half))), read(b, uint32(j + uint32(half))))
            write(terms, j, _ptx.add(low, high))
            j = uint32(j + uint32(WARP))
        _ptx.sync_warp()
        return total(terms, lane)

    return dot


def sign_words(signs: Any) -> Any:
    """uint32 (ceil(n / 32),): bit j of the row of words is set where sign j is negative.

    Lanes that ask a constant array for places of their own are served one after the other; bits of a common word are
    not.
    """
    negative = np.zeros(-(-len(signs) // WARP) * WARP, np.uint8)
    negative[: len(signs)] = signs < 0
    return np.packbits(negative, bitorder="little").view(np.uint32).copy()


@device
def signed(value: Any, word: Any, bit: Any) -> Any:
    """The value, negated if the bit of the word is set."""
    sign = uint32(uint32(uint32(word) >> uint32(bit)) << uint32(31))
    return _ptx.float_from_bits(uint32(_ptx.float_bits(value) ^ sign))


@functools.cache
def in_shared(rotation: Rotation, value_type: int, is_inverse: bool = False) -> InShared:
    """The functions for one rotation and one type of values in global memory."""
    g, width = rotation.group_size, rotation.width
    order = len(rotation.base)
    rows = np.concatenate([sign_words(row) for row in (rotation.base.T if is_inverse else rotation.base)])
    before, after = rotation.signs_before, rotation.signs_after
    first, last = (after, before) if is_inverse else (before, after)
    first_words, last_words, scale = sign_words(first), sign_words(last), rotation.scale
    is_rotated = not rotation.is_identity
    per_lane = -(-g // WARP)
    stages = width.bit_length() - 1

    @device
    def load(address: Any, y: Any, lane: Any) -> None:
        signs = cuda.const.array_like(first_words)
        for m in range(per_lane):
            j = uint32(uint32(lane) + uint32(m * WARP))
            if j < uint32(g):
                if value_type == FLOAT32:
                    value = _ptx.load_f32(address + uint64(j * uint32(4)))
                else:
                    bits = _ptx.load_u16(address + uint64(j * uint32(2)))
                    if value_type == BFLOAT16:
                        value = _ptx.float_from_bits(uint32(bits << uint32(16)))
                    else:
                        value = _ptx.low_half(bits)
                write(y, j, signed(value, signs[m], lane))
        _ptx.sync_warp()

    @device
    def flip(y: Any, lane: Any) -> None:
        signs = cuda.const.array_like(first_words)
        for m in range(per_lane):
            j = uint32(uint32(lane) + uint32(m * WARP))
            if j < uint32(g):
                write(y, j, signed(read(y, j), signs[m], lane))
        _ptx.sync_warp()

    @device
    def store(address: Any, y: Any, lane: Any) -> None:
        for m in range(per_lane):
            j = uint32(uint32(lane) + uint32(m * WARP))
            if j < uint32(g):
                value = read(y, j)
                if value_type == FLOAT32:
                    _ptx.store_f32(address + uint64(j * uint32(4)), value)
                elif value_type == BFLOAT16:
                    _ptx.store_u16(address + uint64(j * uint32(2)), _ptx.pack_bfloats(value, float32(0.0)))
                else:
                    _ptx.store_u16(address + uint64(j * uint32(2)), _ptx.pack_halves(value, float32(0.0)))

    @device
    def transform(y: Any, lane: Any) -> None:
        if is_rotated:
            for stage in range(stages):
                h = uint32(uint32(1) << uint32(stage))
                pair = uint32(lane)
                while pair < uint32(g // 2):
                    low = uint32(
                        uint32(uint32(pair >> uint32(stage)) << uint32(stage + 1))
                        | uint32(pair & uint32(h - uint32(1)))
                    )
                    a, b = read(y, low), read(y, uint32(low + h))
                    write(y, low, _ptx.add(a, b))
                    write(y, uint32(low + h), _ptx.subtract(a, b))
                    pair = uint32(pair + uint32(WARP))
                _ptx.sync_warp()
            mixed = cuda.local.array(per_lane, float32)
            signs = cuda.const.array_like(last_words)
            matrix = cuda.const.array_like(rows)
            for m in range(per_lane):
                j = uint32(min(uint32(uint32(lane) + uint32(m * WARP)), uint32(g - 1)))
                if order > 1:
                    column, word = uint32(j % uint32(width)), matrix[uint32(j // uint32(width))]
                    value = signed(read(y, column), word, uint32(0))
                    for b in range(1, order):
                        value = _ptx.add(value, signed(read(y, uint32(column + uint32(b * width))), word, uint32(b)))
                else:
                    value = read(y, j)
                mixed[m] = signed(_ptx.multiply(value, scale), signs[m], lane)
            _ptx.sync_warp()
            for m in range(per_lane):
                j = uint32(uint32(lane) + uint32(m * WARP))
                if j < uint32(g):
                    write(y, j, mixed[m])
            _ptx.sync_warp()

    return InShared(load, store, flip, transform)
