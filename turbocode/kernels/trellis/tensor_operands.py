"""The operands of search_tensor.py's product of matrices: words of two float16 for samples and for states.

    sum over 8 columns = 2^b (w^2 - u w + 2^9 c) + 2^(k phase) branch,   c = round(u^2 / 4 / 2^9)

with u and w of whole_numbers.py, b bits for the branches of a cycle of b / k steps, phase the step's number in it.
Columns of a sample: u, c, 1, 1024, u, c, 1024, 2^(k phase); of a state: what they are multiplied by, -u w 2^b and c in
two halves, w^2 2^b in three digits. So each product is a whole number below 2^24, and so are the sums that lead to the
cost of a good path: the tensor cores' float32 sums give them exactly, in any order (tests/simulated). c keeps the costs
of good paths from falling; its rounding is the same for all states.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.trellis.tensor_layout import GROUPS, SLOTS, THREADS, layout, slot_of, turner
from turbocode.kernels.trellis.trellis import Trellis
from turbocode.kernels.trellis.whole_numbers import LIMITS, STEPS_AT_ONCE, sample_scale

COARSE = 9  # log2 of the unit of c: c fits float16 for |u| below 2048
DIGIT = 10  # bits of a digit of w^2 2^b, of which the third has four at most

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_MAGIC = np.float32(1.5 * 2.0**23)  # adding and subtracting it rounds to the nearest whole number
_HALF = np.float32(0.5)


class TensorOperands(NamedTuple):
    """n_held : registers of a lane's part of the states' words

    sample_word(u) : columns 0 and 1, also 4 and 5, of a coordinate of a unit vector
    constant_word(t, phase) : columns 2 t and 2 t + 1 of every sample, for odd t
    state_word(value, branch, t) : columns 2 t and 2 t + 1 of a state with that value, the branch-th of its set
    put_sample(area, j, group, u) : put the word of sample j where the search reads it
    prepare(table, area, thread, held) : put the constants there and set held (n_held,)
    """

    n_held: int
    sample_word: Any
    constant_word: Any
    state_word: Any
    put_sample: Any
    prepare: Any


@device
def _whole(value: Any, bound: Any) -> Any:
    return min(max(_ptx.subtract(_ptx.add(value, _MAGIC), _MAGIC), -bound), bound)


@device
def _half_pair(low: Any, high: Any) -> Any:
    return _ptx.pack_halves(_ptx.from_int(int32(low)), _ptx.from_int(int32(high)))


@functools.cache
def tensor_operands(trellis: Trellis, g: int) -> TensorOperands:
    """The operands for groups of g values."""
    k, found = trellis.bits, layout(trellis, g)
    n_own, size, n_words = found.n_own, 1 << k, 4 << trellis.states_log2
    least_at, constants_at = found.least_at, 4 * GROUPS * g
    scale = sample_scale(k, g)
    half_scale = np.float32(scale * _HALF)
    coarse_unit = np.float32(0.5 ** (COARSE + 2))
    tag_bits, cycle = found.tag_bits, found.cycle
    product_unit, coarse_share = np.float32(-(1 << tag_bits)), np.float32(1 << (tag_bits + COARSE - 1))
    limit, half_limit = np.float32(LIMITS[k]), np.float32(LIMITS[k] // 2)
    digit_mask = (1 << DIGIT) - 1
    turned, _ = turner(trellis)

    @device
    def sample_word(u: Any) -> Any:
        x = _whole(_ptx.multiply(u, scale), limit)
        return _ptx.pack_halves(x, _whole(_ptx.multiply(_ptx.multiply(x, x), coarse_unit), limit))

    @device
    def constant_word(t: Any, phase: Any) -> Any:
        if t == uint32(1):
            return _half_pair(uint32(1), uint32(1 << DIGIT))
        return _half_pair(uint32(1 << DIGIT), uint32(uint32(1) << uint32(phase * uint32(k))))

    @device
    def state_word(value: Any, branch: Any, t: Any) -> Any:
        w = _whole(_ptx.multiply(value, half_scale), half_limit)
        number = _ptx.to_int(w)
        square = uint32(uint32(number * number) << uint32(tag_bits))
        if t == uint32(1):
            return _half_pair(
                uint32(square & uint32(digit_mask)), uint32(uint32(square >> uint32(DIGIT)) & uint32(digit_mask))
            )
        if t == uint32(3):
            return _half_pair(uint32(uint32(square >> uint32(2 * DIGIT)) << uint32(DIGIT)), branch)
        part = _whole(_ptx.multiply(w, _HALF), half_limit)
        if t == uint32(0):
            part = _ptx.subtract(w, part)
        return _ptx.pack_halves(_ptx.multiply(part, product_unit), coarse_share)

    @device
    def put_sample(area: Any, j: Any, group: Any, u: Any) -> None:
        place = uint32(uint32(j * uint32(4 * GROUPS)) + uint32(group * uint32(4)))
        _ptx.store_shared_u32(at(area, place), sample_word(u))

    @device
    def prepare(table: Any, area: Any, thread: Any, held: Any) -> None:
        words = at(area, uint32(least_at))
        i = uint32(thread)
        while i < uint32(n_words):
            state = uint32(i >> uint32(2))
            value = _ptx.load_f32(table + uint64(uint32(state * uint32(4))))
            word = state_word(value, uint32(state & uint32(size - 1)), uint32(i & uint32(3)))
            _ptx.store_shared_u32(at(words, uint32(i * uint32(4))), word)
            i = uint32(i + uint32(THREADS))
        if thread == uint32(0):
            constants = at(area, uint32(constants_at))
            for i in range(STEPS_AT_ONCE):
                _ptx.store_shared_u32(at(constants, uint32(4 * i)), constant_word(uint32(1), uint32(i % cycle)))
                _ptx.store_shared_u32(at(constants, uint32(16 + 4 * i)), constant_word(uint32(3), uint32(i % cycle)))
        cuda.syncthreads()
        slot, t = slot_of(thread), uint32(thread & uint32(3))
        own = at(words, uint32(uint32(slot * uint32(16 * size)) + uint32(t * uint32(4))))
        other_way = uint32(turned(slot) * uint32(32))
        for e in range(n_own):
            for p in range(size):
                place = uint32(uint32(16 * size * SLOTS * e + 16 * p) ^ other_way)
                held[size * e + p] = _ptx.load_shared_u32(at(own, place))
        cuda.syncthreads()

    return TensorOperands(n_own * size, sample_word, constant_word, state_word, put_sample, prepare)
