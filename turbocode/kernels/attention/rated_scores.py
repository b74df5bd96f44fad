"""key_scores.py for multirate blocks: lane 4 g + t reads half run t of the four of each 16 channels of its tokens.

All four tokens of a lane that lie eight rows apart are read at a time, as what says where is the same for them; queries
stay in shared memory.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from turbocode.kernels import _ptx, _ptx_matrices
from turbocode.kernels._cuda import at, cuda, device, types
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
from turbocode.kernels.attention.key_scores import HALF_TILE, LANES, STEP, KeyScores
from turbocode.kernels.attention.ring_heads import HEAD_BYTES, gain_of
from turbocode.kernels.attention.token_order import token_of

PLACES = 3

float32, uint32 = types.float32, types.uint32
_ZERO = np.float32(0.0)


@functools.cache
def rated_scores(head_dim: int, n_column_tiles: int, tile_tokens: int, is_spread: bool) -> KeyScores:
    """The functions for rows of head_dim values of any schedule; `table` is (image, words, heads, laid-out queries)."""
    channels = LANES * STEP
    n_steps, n_halves = head_dim // channels, tile_tokens // HALF_TILE
    n_scores, n_queries = tile_tokens // 8 * 2 * n_column_tiles, 2 * n_column_tiles
    token_in_eight = token_of(is_spread)
    step_entries, step_queries, tile_queries = LANES * ENTRY_BYTES, 2 * 128, 16 * head_dim

    def multiplier(half: int) -> Any:
        first = 4 * n_column_tiles * half

        @device
        def multiply(a0: Any, a1: Any, a2: Any, a3: Any, b: Any, s: Any) -> None:
            for n in range(n_column_tiles):
                i, k = first + 2 * n, first + 2 * (n_column_tiles + n)
                d = _ptx_matrices.multiply_halves(
                    a0, a1, a2, a3, b[2 * n], b[2 * n + 1], s[i], s[i + 1], s[k], s[k + 1]
                )
                s[i], s[i + 1], s[k], s[k + 1] = d[0], d[1], d[2], d[3]

        return multiply

    first_half, second_half = multiplier(0), multiplier(n_halves - 1)

    @device
    def of_pairs(address: Any, shift: Any, step: Any, spot: Any, image: Any) -> Any:
        a0, a2 = pairs_at(address, shift, spot, image)
        a1, a3 = pairs_at(at(address, step), shift, spot, image)
        return a0, a1, a2, a3

    @device
    def of_values(address: Any, shift: Any, step: Any, spot: Any, image: Any) -> Any:
        a, b, c, d = values_at(address, shift, spot, image)
        e, f, g, h = values_at(at(address, step), shift, spot, image)
        a0, a2 = _ptx.select_bytes(a, b, uint32(0x5410)), _ptx.select_bytes(c, d, uint32(0x5410))
        a1, a3 = _ptx.select_bytes(e, f, uint32(0x5410)), _ptx.select_bytes(g, h, uint32(0x5410))
        return a0, a1, a2, a3

    @device
    def score(tile: Any, places: Any, table: Any, place: Any, q: Any, s: Any) -> None:
        image, words, heads, laid = table
        b = cuda.local.array(n_queries, uint32)
        entries = at(words, uint32(uint32(place & uint32(12)) << uint32(2)))
        queries = at(laid, uint32(place << uint32(1)))
        token = token_in_eight(uint32(place >> uint32(4)))
        row, bit, row_step = at(tile, places[0]), places[1], places[2]
        head, head_step = at(heads, uint32(token * uint32(HEAD_BYTES))), uint32(ROWS_APART * HEAD_BYTES)
        for v in range(n_scores):
            s[v] = _ZERO
        number = uint32(0)
        while number < uint32(n_steps):
            entry = _ptx.load_shared_u32x4(at(entries, uint32(number * uint32(step_entries))))
            if not is_empty(entry):
                for n in range(n_column_tiles):
                    mine = at(queries, uint32(uint32(number * uint32(step_queries)) + uint32(n * tile_queries)))
                    b[2 * n], b[2 * n + 1] = _ptx.load_shared_u32x2(mine)
                spot = spot_of(entry, place)
                address, shift, step = begin_of(entry, row, bit, head, row_step, head_step)
                further = at(address, uint32(step << uint32(1)))
                if has_pairs(entry):
                    a0, a1, a2, a3 = of_pairs(address, shift, step, spot, image)
                    first_half(a0, a1, a2, a3, b, s)
                    a0, a1, a2, a3 = of_pairs(further, shift, step, spot, image)
                    second_half(a0, a1, a2, a3, b, s)
                else:
                    a0, a1, a2, a3 = of_values(address, shift, step, spot, image)
                    first_half(a0, a1, a2, a3, b, s)
                    a0, a1, a2, a3 = of_values(further, shift, step, spot, image)
                    second_half(a0, a1, a2, a3, b, s)
            number = uint32(number + uint32(1))
        for i in range(tile_tokens // 8):
            gain = gain_of(heads, uint32(token + uint32(ROWS_APART * i)))
            for v in range(2 * n_column_tiles):
                s[2 * n_column_tiles * i + v] = s[2 * n_column_tiles * i + v] * gain

    @device
    def start(late: Any, row_bytes: Any, lane: Any, places: Any) -> None:
        row = uint32(late + uint32(token_in_eight(uint32(lane >> uint32(2))) * row_bytes))
        places[0], places[1] = uint32(row & uint32(0xFFFFFFFC)), uint32(uint32(row & uint32(3)) << uint32(3))
        places[2] = uint32(row_bytes * uint32(ROWS_APART))

    return KeyScores(0, PLACES, start, score)
