"""Blocks of q8_0 and q4_0 from float16 values, packed two to a register: the CPU's bytes with fewer instructions.

Lane t of a group's four holds a quarter of each block and works out the scale of block t. Extremes are found on packed
float16; quotients are corrected reciprocals, which tests/simulated/test_ggml_blocks.py shows to be exact for every
float16; a number comes to lie in a byte of its own by the sum with one that has its lowest bit eight places below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx, _ptx_bits
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.fwht.lanes import CHUNK
from turbocode.kernels.fwht.tensor_lanes import LANES
from turbocode.kernels.scalar import gpu_steps as steps

float32, uint32 = types.float32, types.uint32
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_BYTE_ONE = np.float32(2.0**15)  # a sum with it has its whole part in bits 8 to 15
_ROUNDED_BYTE_ONE = np.float32(2.0**15 + 0.5)
_INVERSE_Q8_MAX = np.float32(1.0 / 127.0)
_NO_SIGN, _SIGNS, _BYTE_SIGNS = 0x7FFF7FFF, 0x80008000, 0x80808080


class BlockFiller(NamedTuple):
    """spot(block, t) -> places : of lane t in the blocks of a group, the first of which is at the shared address

    fill(words, lane, places) : write the lane's part of the blocks of its group, whose values are words (4 * chunks,)
    """

    spot: Any
    fill: Any


@device
def inverse_of(x: Any) -> Any:
    """1 / x for x in the range of scales, correctly rounded."""
    y = _ptx.reciprocal(x)
    return _ptx.multiply_add(_ptx.multiply_add(-x, y, _ONE), y, y)


@device
def over_127(x: Any) -> Any:
    """x / 127, correctly rounded."""
    quotient = _ptx.multiply(x, _INVERSE_Q8_MAX)
    return _ptx.multiply_add(_ptx.multiply_add(quotient, -steps.Q8_MAX, x), _INVERSE_Q8_MAX, quotient)


@device
def _four_bytes(a: Any, b: Any, c: Any, d: Any) -> Any:
    """The bytes in bits 8 to 15 of four float32, in a word."""
    low = _ptx.select_bytes(_ptx.float_bits(a), _ptx.float_bits(b), uint32(0x0051))
    high = _ptx.select_bytes(_ptx.float_bits(c), _ptx.float_bits(d), uint32(0x5100))
    return _ptx.select_bytes(low, high, uint32(0x7610))


@device
def _in_group(value: Any) -> Any:
    """The bits that are set in any lane of the group."""
    value = uint32(value | _ptx.shuffle_xor(value, uint32(1)))
    return uint32(value | _ptx.shuffle_xor(value, uint32(2)))


@device
def _exchanged(a: Any, b: Any, t: Any, distance: Any) -> Any:
    """The larger halves of a, or of b in lanes with the bit `distance`, here and that far away."""
    is_upper = uint32(t & uint32(distance)) != uint32(0)
    kept, sent = b if is_upper else a, a if is_upper else b
    return _ptx_bits.max_halves(kept, _ptx.shuffle_xor(sent, uint32(distance)))


@device
def _across(a: Any, distance: Any) -> Any:
    return _ptx_bits.max_halves(a, _ptx.shuffle_xor(a, uint32(distance)))


@device
def _folded(a: Any, b: Any) -> Any:
    """(the larger half of a, the larger half of b)"""
    return _ptx_bits.max_halves(_ptx.select_bytes(a, b, uint32(0x5410)), _ptx.select_bytes(a, b, uint32(0x7632)))


def _clearer(n_words: int) -> Any:
    """clear(words, is_finite) -> whether the group has a value that is not finite; its words are zeros then."""

    @device
    def clear(words: Any, is_finite: Any) -> Any:
        is_bad = False
        if _ptx.any_lane(uint32(0 if is_finite else 1)) != uint32(0):
            is_bad = _in_group(uint32(0 if is_finite else 1)) != uint32(0)
            if is_bad:
                for w in range(n_words):
                    words[w] = uint32(0)
        return is_bad

    return clear


def block_filler(form: BlockFormat, is_q8: bool) -> BlockFiller:
    """The functions for groups of two or four blocks."""
    assert form.blocks_per_group in (2, 4)
    return (_q8_filler if is_q8 else _q4_filler)(form)


def _q8_filler(form: BlockFormat) -> BlockFiller:
    n_chunks, block_bytes = form.group_size // LANES // CHUNK, form.bytes_per_block
    has_four = n_chunks > 2
    clear = _clearer(4 * n_chunks)
    signed = _ptx_bits.bitwise(lambda sign, negative, positive: (sign & negative) | (~sign & positive))
    turned = _ptx_bits.bitwise(lambda x, sign, mask: x ^ (sign & mask))

    @device
    def spot(block: Any, t: Any) -> Any:
        scales = _ptx.anchored(at(block, uint32(t * uint32(block_bytes))))
        return scales, _ptx.anchored(at(block, uint32(uint32(2) + uint32(t * uint32(CHUNK)))))

    @device
    def largest_of(words: Any, t: Any) -> Any:
        """The largest magnitude of block t, in the lower half."""
        sizes = cuda.local.array(4, uint32)
        for chunk in range(n_chunks):
            w = 4 * chunk
            first = _ptx_bits.max_sizes(words[w], words[w + 1])
            sizes[chunk] = _ptx_bits.max_sizes(first, _ptx_bits.max_sizes(words[w + 2], words[w + 3]))
        found = _folded(sizes[0], sizes[1])
        if has_four:
            found = _across(_exchanged(found, _folded(sizes[2], sizes[3]), t, 2), 1)
        else:
            found = _across(_across(found, 2), 1)
        return uint32(found >> uint32(uint32(t & uint32(1)) << uint32(4)))

    @device
    def level(value: Any, inverse: Any) -> Any:
        """The magnitude, half away from zero, in bits 8 to 15."""
        return _ptx.add_toward_zero(abs(_ptx.multiply(value, inverse)), _ROUNDED_BYTE_ONE)

    @device
    def four(a: Any, b: Any, inverse: Any) -> Any:
        """Four int8 from the values in two words."""
        first, second = level(_ptx.low_half(a), inverse), level(_ptx.high_half(a), inverse)
        third, fourth = level(_ptx.low_half(b), inverse), level(_ptx.high_half(b), inverse)
        sizes = _four_bytes(first, second, third, fourth)
        signs = _ptx.select_bytes(a, b, uint32(0xFDB9))
        negative = uint32(uint32(_BYTE_SIGNS) - sizes)  # of each byte 128 more than its negative
        return turned(signed(signs, negative, sizes), signs, uint32(_BYTE_SIGNS))

    @device
    def put(place: Any, chunk: Any, low: Any, high: Any) -> None:
        start = at(place, chunk * block_bytes)
        if chunk % 2 == 0:  # two bytes beside a multiple of four
            _ptx.store_shared_u16(start, low)
            _ptx.store_shared_u32(at(start, 2), _ptx.select_bytes(low, high, uint32(0x5432)))
            _ptx.store_shared_u16(at(start, 6), uint32(high >> uint32(16)))
        else:
            _ptx.store_shared_u32(start, low)
            _ptx.store_shared_u32(at(start, 4), high)

    @device
    def fill(words: Any, lane: Any, places: Any) -> None:
        t = uint32(lane & uint32(3))
        largest = _ptx.low_half(largest_of(words, t))
        if clear(words, largest <= steps.F16_MAX):
            largest = _ZERO
        scale, inverse = over_127(largest), _ZERO
        if largest > _ZERO:
            inverse = inverse_of(scale)
        if t < uint32(n_chunks):
            _ptx.store_shared_u16(places[0], _ptx.pack_halves(scale, _ZERO))
        for chunk in range(n_chunks):
            w = 4 * chunk
            factor = _ptx.shuffle_index_f32(inverse, uint32(uint32(lane & uint32(28)) + uint32(chunk)))
            low, high = four(words[w], words[w + 1], factor), four(words[w + 2], words[w + 3], factor)
            put(places[1], chunk, low, high)

    return BlockFiller(spot, fill)


def _q4_filler(form: BlockFormat) -> BlockFiller:
    n_chunks, block_bytes = form.group_size // LANES // CHUNK, form.bytes_per_block
    has_four = n_chunks > 2
    clear, is_first_negative = _clearer(4 * n_chunks), _tie_breaker(n_chunks)
    eighth, offset = np.float32(1 / 8), steps.Q4_OFFSET + np.float32(0.5)

    @device
    def spot(block: Any, t: Any) -> Any:
        scales = _ptx.anchored(at(block, uint32(t * uint32(block_bytes))))
        byte = uint32(uint32(uint32(t & uint32(1)) << uint32(3)) + uint32(uint32(t >> uint32(1)) << uint32(2)))
        return scales, _ptx.anchored(at(block, uint32(uint32(2) + byte)))

    @device
    def extremes_of(words: Any, t: Any) -> Any:
        """The largest value of block t and the largest of its values' negatives, packed."""
        found = cuda.local.array(4, uint32)
        for chunk in range(n_chunks):
            w = 4 * chunk
            high = _ptx_bits.max_halves(words[w], words[w + 1])
            high = _ptx_bits.max_halves(high, _ptx_bits.max_halves(words[w + 2], words[w + 3]))
            low = _ptx_bits.min_halves(words[w], words[w + 1])
            low = _ptx_bits.min_halves(low, _ptx_bits.min_halves(words[w + 2], words[w + 3]))
            found[chunk] = _folded(high, uint32(low ^ uint32(_SIGNS)))
        first = _exchanged(found[0], found[1], t, 1)
        if has_four:
            return _exchanged(first, _exchanged(found[2], found[3], t, 1), t, 2)
        return _across(first, 2)

    @device
    def level(value: Any, inverse: Any) -> Any:
        """The nibble, or 16, in bits 8 to 15."""
        return _ptx.add_toward_zero(_ptx.add(_ptx.multiply(value, inverse), offset), _BYTE_ONE)

    @device
    def four(a: Any, b: Any, inverse: Any) -> Any:
        """Four nibbles from the values in two words, each in a byte."""
        first, second = level(_ptx.low_half(a), inverse), level(_ptx.high_half(a), inverse)
        third, fourth = level(_ptx.low_half(b), inverse), level(_ptx.high_half(b), inverse)
        found = _four_bytes(first, second, third, fourth)
        return uint32(found - uint32(uint32(found >> uint32(4)) & uint32(0x01010101)))  # 15 instead of 16

    @device
    def put(place: Any, chunk: Any, word: Any) -> None:
        start = at(place, chunk * block_bytes)
        if chunk % 2 == 0:  # two bytes beside a multiple of four
            _ptx.store_shared_u16(start, word)
            _ptx.store_shared_u16(at(start, 2), uint32(word >> uint32(16)))
        else:
            _ptx.store_shared_u32(start, word)

    @device
    def fill(words: Any, lane: Any, places: Any) -> None:
        t = uint32(lane & uint32(3))
        found = extremes_of(words, t)
        if clear(words, _ptx.low_half(found) + _ptx.high_half(found) <= steps.FINITE_MAX):
            found = uint32(0)
        high, low = _ptx.low_half(found), _ptx.high_half(found)
        largest, is_negative = abs(max(high, low)), low > high  # of zeros, not -0
        is_tied = high == low and high > _ZERO
        if _ptx.any_lane(uint32(1 if is_tied else 0)) != uint32(0):
            is_first = is_first_negative(words, lane, found)
            if is_tied:
                is_negative = is_first
        scale, inverse = largest * (eighth if is_negative else -eighth), _ZERO
        if largest > _ZERO:
            inverse = inverse_of(scale)
        if t < uint32(n_chunks):
            _ptx.store_shared_u16(places[0], _ptx.pack_halves(scale, _ZERO))
        is_upper = t >= uint32(
            2
        )  # these lanes have values j + 16, of the high nibbles, and write the second half of bytes
        mine, theirs = uint32(16 if is_upper else 1), uint32(1 if is_upper else 16)
        for chunk in range(n_chunks):
            w = 4 * chunk
            factor = _ptx.shuffle_index_f32(inverse, uint32(uint32(lane & uint32(28)) + uint32(chunk)))
            first, second = four(words[w], words[w + 1], factor), four(words[w + 2], words[w + 3], factor)
            kept, sent = second if is_upper else first, first if is_upper else second
            other = _ptx.shuffle_xor(sent, uint32(2))
            put(places[1], chunk, uint32(uint32(kept * mine) + uint32(other * theirs)))

    return BlockFiller(spot, fill)


def _tie_breaker(n_chunks: int) -> Any:
    """is_first_negative(words, lane, found): of the values of block t that have the largest magnitude, the first one's
    sign.
    """

    @device
    def is_first_negative(words: Any, lane: Any, found: Any) -> Any:
        t, result = uint32(lane & uint32(3)), False
        for chunk in range(n_chunks):
            largest = _ptx.shuffle_index(found, uint32(uint32(lane & uint32(28)) + uint32(chunk)))
            key = uint32(64)
            for v in range(CHUNK):
                e = CHUNK - 1 - v
                half = uint32(uint32(words[4 * chunk + e // 2] >> uint32(16 * (e % 2))) & uint32(0xFFFF))
                if uint32(half & uint32(0x7FFF)) == uint32(largest & uint32(0xFFFF)):
                    key = uint32(uint32(uint32(t * uint32(2 * CHUNK)) + uint32(2 * e)) + uint32(half >> uint32(15)))
            key = min(key, _ptx.shuffle_xor(key, uint32(1)))
            key = min(key, _ptx.shuffle_xor(key, uint32(2)))
            if t == uint32(chunk):
                result = uint32(key & uint32(1)) != uint32(0)
        return result

    return is_first_negative
