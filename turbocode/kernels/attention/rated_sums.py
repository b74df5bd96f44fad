"""value_sums.py for multirate blocks: lane 4 g + t reads half run g of the eight of each 32 channels of its tokens."""

from __future__ import annotations

import functools
from typing import Any

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels._ptx_matrices import multiply_halves
from turbocode.kernels.attention.half_run import (
    ENTRY_BYTES,
    ROWS_APART,
    begin_of,
    has_pairs,
    is_empty,
    pairs_at,
    spot_of,
    values_at,
)
from turbocode.kernels.attention.in_turn import in_turn
from turbocode.kernels.attention.key_scores import HALF_TILE
from turbocode.kernels.attention.rate_tables import HALF_RUN
from turbocode.kernels.attention.ring_heads import HEAD_BYTES, gain_of
from turbocode.kernels.attention.token_order import token_of
from turbocode.kernels.attention.value_sums import LANES, ValueSums

PLACES = 5
CHANNELS = LANES * HALF_RUN  # of two products

uint32 = types.uint32


@functools.cache
def rated_channel() -> Any:
    """`sum_channel` of these sums."""

    @device
    def channel(g: Any, number: Any) -> Any:
        step, within = uint32(number >> uint32(2)), uint32(number & uint32(3))
        return uint32(uint32(step * uint32(CHANNELS)) + uint32(uint32(g * uint32(HALF_RUN)) + within))

    return channel


@functools.cache
def rated_sums(head_dim: int, n_column_tiles: int, tile_tokens: int, is_spread: bool) -> ValueSums:
    """The functions for rows of head_dim values of any schedule; `table` is (image, words, heads)."""
    n_steps, n_halves = head_dim // CHANNELS, tile_tokens // HALF_TILE
    n_sums = 8 * n_steps
    token_in_eight = token_of(is_spread)
    step_entries, head_step = LANES * ENTRY_BYTES, ROWS_APART * HEAD_BYTES

    def multiplier(number: int, half: int) -> Any:
        base, first_weight = 8 * number, 2 * n_column_tiles * half

        def product(which: int) -> Any:
            @device
            def multiply(a0: Any, a1: Any, a2: Any, a3: Any, weights: Any, o: Any) -> None:
                for n in range(n_column_tiles):
                    v, w = n_sums * n + base + 4 * which, first_weight + 2 * n
                    d = multiply_halves(a0, a1, a2, a3, weights[w], weights[w + 1], o[v], o[v + 1], o[v + 2], o[v + 3])
                    o[v], o[v + 1], o[v + 2], o[v + 3] = d[0], d[1], d[2], d[3]

            return multiply

        first, second = product(0), product(1)

        @device
        def of_pairs(even: Any, odd: Any, spot: Any, image: Any, weights: Any, o: Any) -> None:
            """even, odd : (address, shift, step) of a row and the next one."""
            a, b = pairs_at(even[0], even[1], spot, image)
            c, d = pairs_at(odd[0], odd[1], spot, image)
            e, f = pairs_at(at(even[0], even[2]), even[1], spot, image)
            g, h = pairs_at(at(odd[0], odd[2]), odd[1], spot, image)
            low, high = uint32(0x5410), uint32(0x7632)
            a0, a1 = _ptx.select_bytes(a, c, low), _ptx.select_bytes(a, c, high)
            a2, a3 = _ptx.select_bytes(e, g, low), _ptx.select_bytes(e, g, high)
            first(a0, a1, a2, a3, weights, o)
            a0, a1 = _ptx.select_bytes(b, d, low), _ptx.select_bytes(b, d, high)
            a2, a3 = _ptx.select_bytes(f, h, low), _ptx.select_bytes(f, h, high)
            second(a0, a1, a2, a3, weights, o)

        @device
        def of_values(even: Any, odd: Any, spot: Any, image: Any, weights: Any, o: Any) -> None:
            low = uint32(0x5410)
            a, b, c, d = values_at(even[0], even[1], spot, image)
            e, f, g, h = values_at(odd[0], odd[1], spot, image)
            a0, a1 = _ptx.select_bytes(a, e, low), _ptx.select_bytes(b, f, low)
            b0, b1 = _ptx.select_bytes(c, g, low), _ptx.select_bytes(d, h, low)
            a, b, c, d = values_at(at(even[0], even[2]), even[1], spot, image)
            e, f, g, h = values_at(at(odd[0], odd[2]), odd[1], spot, image)
            first(a0, a1, _ptx.select_bytes(a, e, low), _ptx.select_bytes(b, f, low), weights, o)
            second(b0, b1, _ptx.select_bytes(c, g, low), _ptx.select_bytes(d, h, low), weights, o)

        return of_pairs, of_values

    def step(number: int) -> Any:
        near_pairs, near_values = multiplier(number, 0)
        far_pairs, far_values = multiplier(number, n_halves - 1)

        @device
        def add_step(tile: Any, places: Any, table: Any, place: Any, weights: Any, o: Any) -> None:
            image, words, heads = table
            mine = uint32(uint32(place >> uint32(4)) * uint32(ENTRY_BYTES))
            entry = _ptx.load_shared_u32x4(at(words, uint32(mine + uint32(number * step_entries))))
            if not is_empty(entry):
                spot = spot_of(entry, place)
                first = uint32(uint32(place & uint32(12)) >> uint32(1))
                head = at(heads, uint32(token_in_eight(first) * uint32(HEAD_BYTES)))
                beside = at(heads, uint32(token_in_eight(uint32(first + uint32(1))) * uint32(HEAD_BYTES)))
                row_step = places[4]
                even = begin_of(entry, at(tile, places[0]), places[1], head, row_step, uint32(head_step))
                odd = begin_of(entry, at(tile, places[2]), places[3], beside, row_step, uint32(head_step))
                further = uint32(even[2] << uint32(1))
                far_even = at(even[0], further), even[1], even[2]
                far_odd = at(odd[0], further), odd[1], odd[2]
                if has_pairs(entry):
                    near_pairs(even, odd, spot, image, weights, o)
                    far_pairs(far_even, far_odd, spot, image, weights, o)
                else:
                    near_values(even, odd, spot, image, weights, o)
                    far_values(far_even, far_odd, spot, image, weights, o)

        return add_step

    @device
    def start(late: Any, row_bytes: Any, lane: Any, places: Any) -> None:
        first = uint32(uint32(lane & uint32(3)) << uint32(1))
        row = uint32(late + uint32(token_in_eight(first) * row_bytes))
        places[0], places[1] = uint32(row & uint32(0xFFFFFFFC)), uint32(uint32(row & uint32(3)) << uint32(3))
        row = uint32(late + uint32(token_in_eight(uint32(first + uint32(1))) * row_bytes))
        places[2], places[3] = uint32(row & uint32(0xFFFFFFFC)), uint32(uint32(row & uint32(3)) << uint32(3))
        places[4] = uint32(row_bytes * uint32(ROWS_APART))

    @device
    def load_norms(tile: Any, first: Any, table: Any, lane: Any, norms: Any) -> None:
        for i in range(tile_tokens // 8):
            token = token_in_eight(uint32(lane >> uint32(2)))
            norms[i] = gain_of(table[2], uint32(token + uint32(ROWS_APART * i)))

    add = in_turn([step(number) for number in range(n_steps)])
    return ValueSums(n_sums, PLACES, start, add, load_norms)
