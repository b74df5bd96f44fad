"""The arithmetic of a warp's 16 query rows with a tile of decoded keys and values (arXiv 2307.08691).

Lane 4 g + t has, of rows g and g + 8, the scores of tokens 8 i + 2 t and 8 i + 2 t + 1 and the sums of channels alike:
accumulators 4 i to 4 i + 3 of the products are row g's two numbers, then row g + 8's. Probabilities are the left
operand of the second product where they lie.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.kernels import _ptx, _ptx_matrices
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.attention.in_turn import three_in_turn
from turbocode.kernels.attention.softmax import NOTHING, UNSEEN
from turbocode.kernels.attention.word_copy import WORD

STEP = 16  # channels, or tokens, of one product
AT_ONCE = 8  # sums that one loop goes through: longer ones are not unrolled, and leave the registers

float32, int32, uint32 = types.float32, types.int32, types.uint32
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_TWO_LOG2_E = np.float32(2.0 / np.log(2.0))


class PrefillProducts(NamedTuple):
    """Arrays: s float32 (tile / 2,); o float32 (head_dim / 2,); top, total float32 (2,), of rows g and g + 8

    begin(top, total, o)
    score(queries, keys, s) : shared addresses of the warp's rows and of the tile, moved on to the lane's matrix row by
        query_place, which values share, and key_place
    cap(s, factor, softcap) : softcap log2(e) tanh(factor s)
    hide(s, half, token, lane, last, oldest) : scores of tokens that row g, or g + 8, does not see become NOTHING
    weigh(s, factor, top, total, o) : s becomes the probabilities 2**(factor s - top), all else is brought up to date
    add(s, values, o)
    put(spot, factor, o) : sums times factor float32 (2,) as float16; spot : shared address of the lane's first two
    """

    begin: Any
    query_place: Any
    key_place: Any
    score: Any
    cap: Any
    hide: Any
    weigh: Any
    add: Any
    put: Any


@functools.cache
def prefill_products(head_dim: int, tile: int, row_bytes: int) -> PrefillProducts:
    """The functions for float16 rows of head_dim values that lie row_bytes apart."""
    n_scores, n_sums = tile // 2, head_dim // 2

    def cleared(first: int) -> Any:
        @device
        def clear(top: Any, total: Any, o: Any) -> None:
            for v in range(AT_ONCE):
                o[first + v] = _ZERO

        return clear

    def scaled(first: int) -> Any:
        @device
        def scale(factor: Any, total: Any, o: Any) -> None:
            for v in range(AT_ONCE):
                o[first + v] = o[first + v] * factor[v % 4 // 2]

        return scale

    def stored(first: int) -> Any:
        near, far = 4 * first, 4 * first + 8 * row_bytes

        @device
        def put(spot: Any, factor: Any, o: Any) -> None:
            a, b = o[first] * factor[0], o[first + 1] * factor[0]
            c, d = o[first + 2] * factor[1], o[first + 3] * factor[1]
            _ptx.store_shared_u32(at(spot, uint32(near)), _ptx.pack_halves(a, b))
            _ptx.store_shared_u32(at(spot, uint32(far)), _ptx.pack_halves(c, d))

        return put

    firsts = range(0, n_sums, AT_ONCE)
    clear, scale = three_in_turn([cleared(v) for v in firsts]), three_in_turn([scaled(v) for v in firsts])
    put = three_in_turn([stored(v) for v in range(0, n_sums, 4)])

    @device
    def begin(top: Any, total: Any, o: Any) -> None:
        for row in range(2):
            top[row], total[row] = UNSEEN, _ZERO
        clear(top, total, o)

    @device
    def query_place(lane: Any) -> Any:
        row, word = uint32(lane & uint32(15)), uint32(lane >> uint32(4))
        return uint32(uint32(row * uint32(row_bytes)) + uint32(word * uint32(WORD)))

    @device
    def key_place(lane: Any) -> Any:
        row = uint32(uint32(lane & uint32(7)) + uint32(uint32(lane >> uint32(4)) << uint32(3)))
        word = uint32(uint32(lane >> uint32(3)) & uint32(1))
        return uint32(uint32(row * uint32(row_bytes)) + uint32(word * uint32(WORD)))

    def score_pair(step: int, number: int) -> Any:
        key_at, v = number * STEP * row_bytes + step * 2 * STEP, 8 * number
        is_first = step == 0

        @device
        def multiply(keys: Any, a: Any, s: Any) -> None:
            b = _ptx_matrices.load_matrices(at(keys, uint32(key_at)))
            if is_first:
                for e in range(8):
                    s[v + e] = _ZERO
            c = _ptx_matrices.multiply_halves(
                a[0], a[1], a[2], a[3], b[0], b[1], s[v], s[v + 1], s[v + 2], s[v + 3]
            )  # fmt: skip
            d = _ptx_matrices.multiply_halves(
                a[0], a[1], a[2], a[3], b[2], b[3], s[v + 4], s[v + 5], s[v + 6], s[v + 7]
            )  # fmt: skip
            s[v], s[v + 1], s[v + 2], s[v + 3] = c[0], c[1], c[2], c[3]
            s[v + 4], s[v + 5], s[v + 6], s[v + 7] = d[0], d[1], d[2], d[3]

        return multiply

    def score_step(step: int) -> Any:
        products = three_in_turn([score_pair(step, number) for number in range(tile // STEP)])
        query_at = step * 2 * STEP

        @device
        def multiply(queries: Any, keys: Any, s: Any) -> None:
            products(keys, _ptx_matrices.load_matrices(at(queries, uint32(query_at))), s)

        return multiply

    score = three_in_turn([score_step(step) for step in range(head_dim // STEP)])

    def add_pair(step: int, number: int) -> Any:
        value_at, v = step * STEP * row_bytes + number * 2 * STEP, 8 * number

        @device
        def multiply(values: Any, a: Any, o: Any) -> None:
            b = _ptx_matrices.load_turned_matrices(at(values, uint32(value_at)))
            c = _ptx_matrices.multiply_halves(
                a[0], a[1], a[2], a[3], b[0], b[1], o[v], o[v + 1], o[v + 2], o[v + 3]
            )  # fmt: skip
            d = _ptx_matrices.multiply_halves(
                a[0], a[1], a[2], a[3], b[2], b[3], o[v + 4], o[v + 5], o[v + 6], o[v + 7]
            )  # fmt: skip
            o[v], o[v + 1], o[v + 2], o[v + 3] = c[0], c[1], c[2], c[3]
            o[v + 4], o[v + 5], o[v + 6], o[v + 7] = d[0], d[1], d[2], d[3]

        return multiply

    def add_step(step: int) -> Any:
        products = three_in_turn([add_pair(step, number) for number in range(head_dim // STEP)])
        v = 8 * step

        @device
        def multiply(s: Any, values: Any, o: Any) -> None:
            a = (
                _ptx.pack_halves(s[v], s[v + 1]),
                _ptx.pack_halves(s[v + 2], s[v + 3]),
                _ptx.pack_halves(s[v + 4], s[v + 5]),
                _ptx.pack_halves(s[v + 6], s[v + 7]),
            )
            products(values, a, o)

        return multiply

    add = three_in_turn([add_step(step) for step in range(tile // STEP)])

    @device
    def cap(s: Any, factor: Any, softcap: Any) -> None:
        for v in range(n_scores):
            e = _ptx.power_of_two(s[v] * factor * _TWO_LOG2_E)
            s[v] = softcap - _TWO * softcap * _ptx.reciprocal(_ONE + e)

    @device
    def hide(s: Any, half: Any, token: Any, lane: Any, last: Any, oldest: Any) -> None:
        first = int32(int32(token) + int32(uint32(uint32(lane & uint32(3)) << uint32(1))))
        for i in range(tile // 8):
            for e in range(2):
                number = int32(first + int32(8 * i + e))
                if number > last or number < oldest:
                    s[4 * i + 2 * half + e] = NOTHING

    @device
    def weigh(s: Any, factor: Any, top: Any, total: Any, o: Any) -> None:
        shrink = cuda.local.array(2, float32)
        is_new = uint32(0)
        for row in range(2):
            found = s[2 * row]
            for i in range(n_scores // 4):
                for e in range(2):
                    found = max(found, s[4 * i + 2 * row + e])
            found = max(found, _ptx.shuffle_xor_f32(found, uint32(1)))
            found = max(found, _ptx.shuffle_xor_f32(found, uint32(2)))
            found = max(found * factor, top[row])
            if found > top[row]:
                is_new = uint32(1)
            shrink[row] = _ptx.power_of_two(top[row] - found)
            top[row] = found
        if _ptx.any_lane(is_new) != uint32(0):
            for row in range(2):
                total[row] = total[row] * shrink[row]
            scale(shrink, total, o)
        for i in range(n_scores // 4):
            for e in range(4):
                row = e // 2
                weight = _ptx.power_of_two(_ptx.multiply_add(s[4 * i + e], factor, -top[row]))
                s[4 * i + e] = weight
                total[row] = total[row] + weight

    return PrefillProducts(begin, query_place, key_place, score, cap, hide, weigh, add, put)
