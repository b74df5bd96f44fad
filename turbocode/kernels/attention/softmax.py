"""The online softmax of a tile whose scores lie as the tensor cores leave them (arXiv 1805.02867, 2205.14135).

Lane 4 g + t has the scores of tokens 8 i + token_of(g) for queries 8 n + 2 t and 8 n + 2 t + 1. Scores are logits times
log2(e).

Weights go to the tensor cores as float16 and include the norm of the token's value, whose size may be anything. So the
running maximum is not that of the scores but of score plus log2 of the norm: no weight passes 1, and the largest ones
are the most exact, however small or large values are.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.kernels import _ptx, _ptx_matrices
from turbocode.kernels._cuda import cuda, device, types
from turbocode.kernels.attention.in_turn import three_in_turn
from turbocode.kernels.attention.token_order import token_of

UNSEEN = np.float32(-1e30)  # a maximum before there is any: finite, so that differences are
NOTHING = np.float32(-np.inf)  # the score of a token that is not seen
LEAST_NORM = np.float32(2.0**-24)  # what a norm of 0 counts as in the maximum, so that probabilities stay finite

float32, int32, uint32 = types.float32, types.int32, types.uint32
_ZERO = np.float32(0.0)


class Softmax(NamedTuple):
    """Arrays: s (8 tiles,) scores, then probabilities; top, total (2 tiles,); o (sums tiles,); norms (4 blocks,)

    begin(top, total, o)
    hide(s, c, token, lane, last, oldest) : scores of the tokens that column c does not see become NOTHING
    rise(s, norms, top, total, o) : maxima are brought up to date, totals and sums with them
    weigh(s, norms, top, total, weights) : s becomes the probabilities; weights for value_sums.py, of the tile's first
        16 tokens and of the others
    finish(total) : the lanes' totals added up
    reach(s, norms, top) : the largest of the lane's score plus log2 of the norm less the maximum so far, before `rise`
    thin(weights, least) : weights below `least` become 0; whether any other is left, 0 or 1
    """

    begin: Any
    hide: Any
    rise: Any
    weigh: Any
    finish: Any
    reach: Any
    thin: Any


@functools.cache
def softmax(n_column_tiles: int, n_sums: int, n_blocks: int, tile: int, is_spread: bool) -> Softmax:
    """The functions for n_sums accumulators of a column tile, and values that have a norm in each of n_blocks.

    is_spread : the order of tokens, see token_order.py
    """
    n_rows, n_columns = tile // 8, 2 * n_column_tiles
    all_sums = n_sums * n_column_tiles
    per_half = 2 * n_blocks * n_column_tiles  # weights
    token_in_eight = token_of(is_spread)

    @device
    def over_tokens(value: Any) -> Any:
        value = max(value, _ptx.shuffle_xor_f32(value, uint32(4)))
        value = max(value, _ptx.shuffle_xor_f32(value, uint32(8)))
        return max(value, _ptx.shuffle_xor_f32(value, uint32(16)))

    @device
    def begin(top: Any, total: Any, o: Any) -> None:
        for c in range(n_columns):
            top[c], total[c] = UNSEEN, _ZERO
        for v in range(all_sums):
            o[v] = _ZERO

    @device
    def hide(s: Any, c: Any, token: Any, lane: Any, last: Any, oldest: Any) -> None:
        first = int32(int32(token) + int32(token_in_eight(uint32(uint32(lane) >> uint32(2)))))
        for i in range(n_rows):
            at_row = int32(first + int32(8 * i))
            if at_row > last or at_row < oldest:
                s[n_columns * i + c] = NOTHING

    @device
    def size_of(norms: Any, i: Any) -> Any:
        """log2 of a value's largest norm."""
        largest = LEAST_NORM
        for block in range(n_blocks):
            largest = max(largest, abs(norms[n_blocks * i + block]))
        return _ptx.logarithm_of_two(largest)

    @device
    def reach(s: Any, norms: Any, top: Any) -> Any:
        most = NOTHING
        for i in range(n_rows):
            size = size_of(norms, i)
            for c in range(n_columns):
                most = max(most, s[n_columns * i + c] + size - top[c])
        return most

    @device
    def thin(weights: Any, least: Any) -> Any:
        is_left = uint32(0)
        for w in range(2 * per_half):
            low, high = _ptx.low_half(weights[w]), _ptx.high_half(weights[w])
            kept = uint32(0)
            if abs(low) >= least:
                kept = uint32(0xFFFF)
            if abs(high) >= least:
                kept = uint32(kept | uint32(0xFFFF0000))
            weights[w] = uint32(weights[w] & kept)
            if weights[w] != uint32(0):
                is_left = uint32(1)
        return is_left

    @device
    def rise(s: Any, norms: Any, top: Any, total: Any, o: Any) -> None:
        sizes = cuda.local.array(n_rows, float32)
        factors = cuda.local.array(n_columns, float32)
        for i in range(n_rows):
            sizes[i] = size_of(norms, i)
        is_new = uint32(0)
        for c in range(n_columns):
            found = s[c] + sizes[0]
            for i in range(1, n_rows):
                found = max(found, s[n_columns * i + c] + sizes[i])
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

    def of_row(i: int) -> Any:
        @device
        def probabilities(s: Any, top: Any, total: Any) -> None:
            for c in range(n_columns):
                s[n_columns * i + c] = _ptx.power_of_two(s[n_columns * i + c] - top[c])
                total[c] = total[c] + s[n_columns * i + c]

        return probabilities

    of_rows = three_in_turn([of_row(i) for i in range(n_rows)])

    @device
    def weigh(s: Any, norms: Any, top: Any, total: Any, weights: Any) -> None:
        of_rows(s, top, total)
        for row in range(n_rows):
            for block in range(n_blocks):
                norm = norms[n_blocks * row + block]
                for n in range(n_column_tiles):
                    v = n_columns * row + 2 * n
                    word = _ptx.pack_halves(s[v] * norm, s[v + 1] * norm)
                    w = per_half * (row // 2) + 2 * (n_column_tiles * block + n) + row % 2
                    weights[w] = _ptx_matrices.transpose_halves(word)

    @device
    def finish(total: Any) -> None:
        for c in range(n_columns):
            total[c] = total[c] + _ptx.shuffle_xor_f32(total[c], uint32(4))
            total[c] = total[c] + _ptx.shuffle_xor_f32(total[c], uint32(8))
            total[c] = total[c] + _ptx.shuffle_xor_f32(total[c], uint32(16))

    return Softmax(begin, hide, rise, weigh, finish, reach, thin)
