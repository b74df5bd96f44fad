"""Indices of 2 and 3 bits from the signs and exponents of float32 numbers, without a comparison.

Values are scaled so that one boundary is 2, the least number whose exponent has its highest bit set: the two highest
bits of a value tell its sign and on which side of that boundary it lies. A funnel shift moves them into a word, in
one instruction. With 3 bits a second number, a linear function of the magnitude that is -2 and 2 at the lowest and the
highest boundary, tells in the same way whether the magnitude lies outside of them. So the bits are collected in Gray
code, and some operations on whole words turn them into indices.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx, _ptx_bits
from turbocode.kernels._cuda import cuda, device, types
from turbocode.kernels.fwht.lanes import CHUNK
from turbocode.kernels.fwht.tensor_lanes import LANES
from turbocode.kernels.scalar.gpu_steps import CENTROIDS_AT
from turbocode.kernels.scalar.place_tensor import lane_placer
from turbocode.kernels.scalar.tensor_indices import TensorIndices, chunk_signs

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_TWO = np.float32(2.0)
FACTOR, SLOPE, START, NONE, UPPER, OUTER, BOTH = range(7)  # places of the constants


@functools.cache
def by_exponent(form: BlockFormat, root: float, signs_key: bytes) -> TensorIndices:
    """The functions for 2 or 3 bits. root : what `scale` has of the transform's; signs_key : signs after it, bytes."""
    signs = np.frombuffer(signs_key, np.float32)
    is_split = form.layout is Layout.SPLIT_PLANES
    n_values = form.group_size // LANES
    n_chunks = n_values // CHUNK
    bits = form.bits
    step = 3 if bits == 3 and not is_split else 2  # bits that a value takes in a word
    per_word = 1 if step == 3 else 2  # chunks
    n_fields = -(-n_chunks // per_word)
    mirrors = _sign_masks(signs, step, per_word)
    turn = _turner(bits, is_split)
    collect, (spot, put) = _collector(n_chunks, bits, step, per_word), lane_placer(form)
    count, n_words = _counter(n_chunks, bits, step), n_fields * (2 if is_split else 1)
    half = 1 << (bits - 1)
    zero = sum(half << (bits * e) for e in range(CHUNK))
    zeros: tuple[int, ...] = (zero | zero << 16 if bits == 2 else zero,) * n_fields
    if is_split:
        zeros = (0,) * n_fields + (0x00FF00FF,) * n_fields
    factor_of_root = np.float32(2.0 * root)

    @device
    def prepare(table: Any, lane: Any, constants: Any) -> Any:
        middle = _ptx.load_f32(table + uint64(4 * (half + bits - 2)))
        constants[FACTOR] = _ptx.divide(factor_of_root, middle)
        squares = cuda.local.array(4, float32)
        for m in range(half):
            c = _ptx.load_f32(table + uint64(4 * (CENTROIDS_AT + half + m)))
            squares[m] = c * c
        if bits == 2:
            constants[NONE], constants[UPPER] = squares[0], squares[1] - squares[0]
        else:
            lowest, highest = _ptx.load_f32(table + uint64(4 * half)), _ptx.load_f32(table + uint64(4 * (half + 2)))
            slope = _ptx.divide(_TWO * middle, highest - lowest)
            constants[SLOPE], constants[START] = slope, -_TWO - slope * _ptx.divide(_TWO * lowest, middle)
            constants[NONE], constants[UPPER] = squares[1], squares[2] - squares[1]
            constants[OUTER] = squares[0] - squares[1]
            constants[BOTH] = (squares[3] - squares[2]) - (squares[0] - squares[1])
        return uint32(0)

    @device
    def find(d: Any, scale: Any, kept: Any, constants: Any, mirror: Any, words: Any) -> Any:
        upper, outer = cuda.local.array(n_fields, uint32), cuda.local.array(n_fields, uint32)
        for w in range(n_fields):
            upper[w], outer[w] = uint32(0), uint32(0)
        collect(d, scale, constants, upper, outer)
        for w in range(n_fields):
            turn(uint32(upper[w] ^ mirror[w]), outer[w], words, w, n_fields)
        return count(upper, outer, constants)

    @device
    def index(words: Any, v: Any) -> Any:
        chunk, e = v // CHUNK, v % CHUNK
        if is_split:
            low = uint32(uint32(words[chunk // 2] >> uint32(16 * (chunk % 2) + 2 * e)) & uint32(3))
            high = uint32(uint32(words[n_fields + chunk // 2] >> uint32(16 * (chunk % 2) + e)) & uint32(1))
            return uint32(low | uint32(high << uint32(2)))
        place = bits * (CHUNK * (chunk % per_word) + e)
        return uint32(uint32(words[chunk // per_word] >> uint32(place)) & uint32((1 << bits) - 1))

    all_mirrors = np.zeros((LANES, n_words), np.uint32)
    all_mirrors[:, :n_fields] = mirrors
    return TensorIndices(n_words, 7 if bits == 3 else 5, all_mirrors, zeros, prepare, find, index, spot, put)


def _sign_masks(signs: NDArray[np.float32], step: int, per_word: int) -> NDArray[np.uint32]:
    """(4, words): the highest bits of the fields of the values whose sign is negative."""
    negative = chunk_signs(signs).astype(np.uint64)
    fields = (negative << (step * np.arange(CHUNK, dtype=np.uint64) + np.uint64(step - 1))).sum(axis=-1)
    if per_word == 2:
        if fields.shape[1] % 2:
            fields = np.concatenate([fields, np.zeros_like(fields)], axis=1)
        fields = fields[:, ::2] | fields[:, 1::2] << np.uint64(16)
    return np.ascontiguousarray(fields.astype(np.uint32))


def _collector(n_chunks: int, bits: int, step: int, per_word: int) -> Any:
    """collect(d, scale, constants, upper, outer): a field of `step` bits a value in words that begin as zeros.

    upper has the sign in a field's highest bit and, below it, whether the magnitude is above the middle boundary; outer
    has in its lowest bit whether it is outside. Other bits are of no use.
    """
    has_outer = bits == 3

    @device
    def four(d: Any, v: Any, w: Any, last: Any, scale: Any, constants: Any, upper: Any, outer: Any) -> None:
        values = cuda.local.array(4, float32)
        first, second = d[v + 2] * scale, d[v + 3] * scale
        values[0], values[1] = _ptx.multiply_add(d[v], scale, first), _ptx.multiply_add(d[v + 1], scale, second)
        values[2], values[3] = _ptx.multiply_add(d[v], scale, -first), _ptx.multiply_add(d[v + 1], scale, -second)
        for e in range(4):  # the last value first: it ends in the highest bits
            value = values[3 - e]
            upper[w] = _ptx_bits.funnel_shift_left(_ptx.float_bits(value), upper[w], uint32(step))
            if has_outer:
                far = _ptx.multiply_add(abs(value), constants[SLOPE], constants[START])
                outer[w] = _ptx_bits.funnel_shift_left(_ptx.float_bits(far), outer[w], uint32(last if e == 3 else step))

    @device
    def collect(d: Any, scale: Any, constants: Any, upper: Any, outer: Any) -> None:
        for i in range(n_chunks):
            chunk = n_chunks - 1 - i
            v, w = CHUNK * chunk, chunk // per_word
            four(d, v + 4, w, step, scale, constants, upper, outer)
            # The second highest bit of the last of 3 bits is all that is wanted: it becomes the lowest of the word.
            four(d, v, w, 2, scale, constants, upper, outer)

    return collect


def _turner(bits: int, is_split: bool) -> Any:
    """turn(upper, outer, words, w, n_fields): set the words of indices from the fields of `_collector`."""
    ones = 0x55555555 if bits == 2 or is_split else sum(1 << (3 * e) for e in range(CHUNK))
    low, high = uint32(ones), uint32(ones << 1)

    folded_or_clear = _ptx_bits.bitwise(lambda mask, a, b: (mask & (a ^ b)) | (~mask & ~a))
    other_or_this = _ptx_bits.bitwise(lambda mask, a, b: (mask & ~b) | (~mask & a))

    if bits == 2:

        @device
        def turn(upper: Any, outer: Any, words: Any, w: Any, n_fields: Any) -> None:
            words[w] = folded_or_clear(low, upper, uint32(upper >> uint32(1)))

    elif is_split:
        either = _ptx_bits.bitwise(lambda mask, a, b: mask & (a | b))
        clear = _ptx_bits.bitwise(lambda mask, a, b: mask & ~a)

        @device
        def turn(upper: Any, outer: Any, words: Any, w: Any, n_fields: Any) -> None:
            signs = uint32(upper >> uint32(1))
            lowest = _ptx_bits.exclusive_or(outer, upper, signs)
            middle = uint32(upper ^ uint32(upper << uint32(1)))
            words[w] = other_or_this(low, middle, lowest)
            plane = clear(low, signs, uint32(0))
            plane = either(uint32(0x33333333), plane, uint32(plane >> uint32(1)))
            plane = either(uint32(0x0F0F0F0F), plane, uint32(plane >> uint32(2)))
            words[n_fields + w] = either(uint32(0x00FF00FF), plane, uint32(plane >> uint32(4)))

    else:

        @device
        def turn(upper: Any, outer: Any, words: Any, w: Any, n_fields: Any) -> None:
            above, signs = uint32(upper >> uint32(1)), uint32(upper >> uint32(2))
            lowest = _ptx_bits.exclusive_or(outer, above, signs)
            words[w] = other_or_this(low, folded_or_clear(high, upper, above), lowest)

    return turn


def _counter(n_chunks: int, bits: int, step: int) -> Any:
    """count(upper, outer, constants): |c|^2 from how often each bit, and both, are set.

    Counting bits is slow, so fields of two words are put side by side first.
    """
    n_fields = n_chunks if step == 3 else -(-n_chunks // 2)
    n_pairs = -(-n_fields // 2)
    ones = 0x55555555 if step == 2 else sum(1 << (3 * e) for e in range(CHUNK))
    first, both_fields = uint32(ones), uint32(ones | ones << 1)
    n_values = np.float32(n_chunks * CHUNK)
    has_outer, has_second = bits == 3, n_fields > 1
    down = 1 if step == 3 else 0  # where `upper` has its bit, counted from the lowest of a field

    @device
    def side_by_side(a: Any, b: Any) -> Any:
        return uint32(_ptx_bits.choose_bits(first, a, b) & both_fields)

    @device
    def count(upper: Any, outer: Any, constants: Any) -> Any:
        n_upper, n_outer, n_both = uint32(0), uint32(0), uint32(0)
        for p in range(n_pairs):
            above, outside = uint32(upper[2 * p] >> uint32(down)), outer[2 * p]
            if has_second:
                above = side_by_side(above, uint32(upper[2 * p + 1] << uint32(1 - down)))
                outside = side_by_side(outside, uint32(outer[2 * p + 1] << uint32(1)))
            else:
                above, outside = uint32(above & first), uint32(outside & first)
            n_upper = uint32(n_upper + _ptx.count_bits(above))
            if has_outer:
                n_outer = uint32(n_outer + _ptx.count_bits(outside))
                n_both = uint32(n_both + _ptx.count_bits(uint32(above & outside)))
        square = constants[NONE] * n_values
        square = _ptx.multiply_add(_ptx.from_int(int32(n_upper)), constants[UPPER], square)
        if has_outer:
            square = _ptx.multiply_add(_ptx.from_int(int32(n_outer)), constants[OUTER], square)
            square = _ptx.multiply_add(_ptx.from_int(int32(n_both)), constants[BOTH], square)
        return square

    return count
