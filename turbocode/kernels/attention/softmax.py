"""The online softmax of a tile whose scores lie as the tensor cores leave them (arXiv 1805.02867, 2205.14135).

Lane 4 g + t has the scores of tokens 8 i + g for queries 8 n + 2 t and 8 n + 2 t + 1. Scores are logits times log2(e).
A weight is the probability relative to the running maximum times the norm of the token's value; weights are float16,
so that norms are divided by a power of two, which is taken from the first of them and lowered if one is far larger.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.kernels import _ptx, _ptx_matrices
from turbocode.kernels._cuda import cuda, device, types

UNSEEN = np.float32(-1e30)  # a maximum before there is any: finite, so that differences are
NOTHING = np.float32(-np.inf)  # the score of a token that is not seen
MAX_NORM = np.float32(4096.0)  # of a value in units of the power of two: its weight is a float16

float32, int32, uint32 = types.float32, types.int32, types.uint32
_ZERO = np.float32(0.0)
_FIRST_UNIT = np.float32(2.0**100)  # every norm is too large for it


class Softmax(NamedTuple):
    """Arrays: s (8 tiles,) scores, then probabilities; top, total (2 tiles,); o (sums tiles,); norms (4 blocks,)

    begin(top, total, o, unit); hide(s, token, lane, last, oldest) : scores of unseen tokens become NOTHING
    update(s, top, total, o) : s becomes the probabilities relative to the new maxima
    scale(norms, unit, o) : norms become multiples of the unit, o is rescaled if the unit changes
    weigh(number, s, norms, weights) : weights for value_sums.py of tokens 16 number to 16 number + 15
    finish(total, o, unit) : the lanes' totals added up, o in plain units
    """

    begin: Any
    hide: Any
    update: Any
    scale: Any
    weigh: Any
    finish: Any


@functools.cache
def softmax(n_column_tiles: int, n_sums: int, n_blocks: int, tile: int) -> Softmax:
    """The functions for n_sums accumulators of a column tile, and values that have a norm in each of n_blocks."""
    n_rows, n_columns = tile // 8, 2 * n_column_tiles
    n_norms, all_sums = n_rows * n_blocks, n_sums * n_column_tiles

    @device
    def over_tokens(value: Any) -> Any:
        value = max(value, _ptx.shuffle_xor_f32(value, uint32(4)))
        value = max(value, _ptx.shuffle_xor_f32(value, uint32(8)))
        return max(value, _ptx.shuffle_xor_f32(value, uint32(16)))

    @device
    def inverse_power(x: Any) -> Any:
        return _ptx.float_from_bits(uint32(uint32(0x7F000000) - _ptx.float_bits(x)))

    @device
    def begin(top: Any, total: Any, o: Any, unit: Any) -> None:
        for c in range(n_columns):
            top[c], total[c] = UNSEEN, _ZERO
        for v in range(all_sums):
            o[v] = _ZERO
        unit[0] = _FIRST_UNIT

    @device
    def hide(s: Any, token: Any, lane: Any, last: Any, oldest: Any) -> None:
        for i in range(n_rows):
            at_row = int32(int32(token) + int32(8 * i) + int32(uint32(lane) >> uint32(2)))
            for c in range(n_columns):
                if at_row > last[c] or at_row < oldest[c]:
                    s[n_columns * i + c] = NOTHING

    @device
    def update(s: Any, top: Any, total: Any, o: Any) -> None:
        factors = cuda.local.array(n_columns, float32)
        is_new = uint32(0)
        for c in range(n_columns):
            found = s[c]
            for i in range(1, n_rows):
                found = max(found, s[n_columns * i + c])
            found = max(over_tokens(found), top[c])
            if found > top[c]:
                is_new = uint32(1)
            factors[c] = _ptx.power_of_two(top[c] - found)
            top[c] = found
        if _ptx.any_lane(is_new) != uint32(0):
            for c in range(n_columns):
                total[c] = total[c] * factors[c]
            for n in range(n_column_tiles):
                for v in range(n_sums):
                    o[n_sums * n + v] = o[n_sums * n + v] * factors[2 * n + v % 2]
        for i in range(n_rows):
            for c in range(n_columns):
                s[n_columns * i + c] = _ptx.power_of_two(s[n_columns * i + c] - top[c])
                total[c] = total[c] + s[n_columns * i + c]

    @device
    def scale(norms: Any, unit: Any, o: Any) -> None:
        largest = _ZERO
        for j in range(n_norms):
            largest = max(largest, abs(norms[j]))
        if _ptx.any_lane(uint32(1 if largest * unit[0] > MAX_NORM else 0)) != uint32(0):
            largest = over_tokens(largest)
            power = uint32(_ptx.float_bits(largest) & uint32(0x7F800000))
            wanted = inverse_power(_ptx.float_from_bits(power))
            change = wanted * inverse_power(unit[0])
            unit[0] = wanted
            for v in range(all_sums):
                o[v] = o[v] * change
        for j in range(n_norms):
            norms[j] = norms[j] * unit[0]

    @device
    def weigh(number: Any, s: Any, norms: Any, weights: Any) -> None:
        for block in range(n_blocks):
            for n in range(n_column_tiles):
                for half in range(2):
                    row = 2 * number + half
                    v, norm = n_columns * row + 2 * n, norms[n_blocks * row + block]
                    word = _ptx.pack_halves(s[v] * norm, s[v + 1] * norm)
                    weights[2 * (n_column_tiles * block + n) + half] = _ptx_matrices.transpose_halves(word)

    @device
    def finish(total: Any, o: Any, unit: Any) -> None:
        for c in range(n_columns):
            total[c] = total[c] + _ptx.shuffle_xor_f32(total[c], uint32(4))
            total[c] = total[c] + _ptx.shuffle_xor_f32(total[c], uint32(8))
            total[c] = total[c] + _ptx.shuffle_xor_f32(total[c], uint32(16))
        back = inverse_power(unit[0])
        for v in range(all_sums):
            o[v] = o[v] * back

    return Softmax(begin, hide, update, scale, weigh, finish)
