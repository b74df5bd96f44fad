"""Scores of a tile of keys on the tensor cores, decoded in registers from the rows as they are stored.

A product of matrices takes 16 tokens by 16 channels of keys and 16 channels by 8 queries. Which channels are summed
together is free, so lane 4 g + t of a warp decodes run t of four of tokens g and g + 8 of each 16 (or of those that
token_order.py has in their place), four channels a product, and queries are laid out alike. The norm multiplies the
sum, not the values.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx, _ptx_matrices
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.attention.in_turn import in_turn
from turbocode.kernels.attention.lookup import Lookup
from turbocode.kernels.attention.reading import has_norm, reading
from turbocode.kernels.attention.token_order import token_of

LANES = 4  # that share a token's key
STEP = 4  # channels of a lane in one product
HALF_TILE = 16  # tokens of one product

float32, uint32 = types.float32, types.uint32
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


class KeyScores(NamedTuple):
    """query_words : of a lane and a column tile, 0 if it reads them where they are laid out; places : words that say
    where a lane reads

    start(late, row_bytes, lane, places) : set places uint32 for tiles whose first row begins `late` bytes behind their
        address
    score(tile, places, table, place, q, s) : set s float32 (8 tiles,): s[2 (tiles i + n) + e] is the score of token
        8 i + token_of(g) and query 8 n + 2 t + e
    """

    query_words: int
    places: int
    start: Any
    score: Any


@functools.cache
def key_scores(
    form: BlockFormat, head_dim: int, lookup: Lookup, n_column_tiles: int, tile_tokens: int, is_spread: bool
) -> KeyScores:
    """The functions for rows of head_dim values and tiles of tile_tokens tokens, in the order of token_order.py."""
    n_blocks, block_bytes = head_dim // form.values_per_block, form.bytes_per_block
    row_bytes = form.bytes_per_vector(head_dim)
    read = reading(form, LANES, lookup)
    begin, load, n_words, per_block = read.start, read.load, read.words, read.places + 1
    n_steps = read.values // STEP
    words_per_block = 2 * n_steps
    words = words_per_block * n_blocks
    n_sums = 4 * n_column_tiles
    # Even and odd steps add up apart, half as long a wait, where registers allow it.
    chains = 1 if n_column_tiles > 1 or head_dim > 128 else 2
    n_chains = chains * n_sums
    is_scaled = has_norm(form)
    token_in_eight = token_of(is_spread)

    def step(block: int, number: int) -> Any:
        four = read.four(number)
        word = words_per_block * block + 2 * number
        chain = n_sums * (number % chains)

        @device
        def multiply(xa: Any, xb: Any, table: Any, place: Any, q: Any, c: Any) -> None:
            a0, a2 = four(xa, table, place)
            a1, a3 = four(xb, table, place)
            for n in range(n_column_tiles):
                v, w = chain + 4 * n, words * n + word
                d = _ptx_matrices.multiply_halves(a0, a1, a2, a3, q[w], q[w + 1], c[v], c[v + 1], c[v + 2], c[v + 3])
                c[v], c[v + 1], c[v + 2], c[v + 3] = d[0], d[1], d[2], d[3]

        return multiply

    def half(block: int, number: int) -> Any:
        products = in_turn([step(block, j) for j in range(n_steps)])
        upper, lower = 2 * number * 8 * row_bytes, (2 * number + 1) * 8 * row_bytes
        first = 4 * n_column_tiles * number
        at_place = per_block * block
        is_first = block == 0

        @device
        def score(tile: Any, places: Any, table: Any, place: Any, q: Any, s: Any) -> None:
            xa, xb = cuda.local.array(n_words, uint32), cuda.local.array(n_words, uint32)
            c = cuda.local.array(n_chains, float32)
            load(tile, places, at_place + 1, upper, xa)
            load(tile, places, at_place + 1, lower, xb)
            for v in range(n_chains):
                c[v] = _ZERO
            products(xa, xb, table, place, q, c)
            norm_a, norm_b = _ONE, _ONE
            if is_scaled:
                norms = at(tile, places[at_place])
                norm_a = _ptx.low_half(_ptx.load_shared_u16(at(norms, uint32(upper))))
                norm_b = _ptx.low_half(_ptx.load_shared_u16(at(norms, uint32(lower))))
            for n in range(n_column_tiles):
                for e in range(2):
                    v = 4 * n + e
                    a, b = first + 2 * n + e, first + 2 * (n_column_tiles + n) + e
                    sum_a, sum_b = c[v], c[v + 2]
                    if chains == 2:
                        sum_a, sum_b = sum_a + c[n_sums + v], sum_b + c[n_sums + v + 2]
                    s[a] = sum_a * norm_a if is_first else s[a] + sum_a * norm_a
                    s[b] = sum_b * norm_b if is_first else s[b] + sum_b * norm_b

        return score

    @device
    def start(late: Any, _: Any, lane: Any, places: Any) -> None:
        token = token_in_eight(uint32(lane >> uint32(2)))
        row = uint32(late + uint32(token * uint32(row_bytes)))
        for block in range(n_blocks):
            spot = uint32(row + uint32(block * block_bytes))
            places[per_block * block] = spot
            begin(spot, uint32(lane & uint32(3)), places, per_block * block + 1)

    score = in_turn([half(block, number) for number in range(tile_tokens // HALF_TILE) for block in range(n_blocks)])
    return KeyScores(words, per_block * n_blocks, start, score)
