"""The weighted sum of a tile of values on the tensor cores, decoded in registers from the rows as they are stored.

A product of matrices takes 16 channels by 16 tokens of values and 16 tokens by 8 queries of weights. Lane 4 g + t
decodes run g of eight of tokens 2 t, 2 t + 1, 2 t + 8 and 2 t + 9, or what token_order.py has in their place: channels
are rows, which may be any, and a register holds the same channel of two tokens. The norm is part of the weight.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels._ptx_matrices import multiply_halves
from turbocode.kernels.attention.in_turn import in_turn
from turbocode.kernels.attention.key_scores import HALF_TILE
from turbocode.kernels.attention.lookup import Lookup
from turbocode.kernels.attention.reading import distance_of_two, has_norm, place_in_block, reading
from turbocode.kernels.attention.token_order import token_of

LANES = 8  # that share a token's value
CHANNELS = 2  # of a lane in one product

uint32 = types.uint32
_ONE = np.float32(1.0)


class ValueSums(NamedTuple):
    """sums : float32 numbers of a lane and a column tile; places : words that say where a lane reads

    start(late, row_bytes, lane, places) : set places uint32 for tiles whose first row begins `late` bytes behind their
        address
    add(tile, places, table, place, weights, o) : add the products to o float32 (sums tiles,); weights uint32 (halves, 2
        blocks tiles) are the lane's parts of the weights of 16 tokens each
    load_norms(tile, first, table, lane, norms) : set norms float32 (tile / 8 blocks,) to those of rows 8 i + lane // 4;
        first : where in the tile row lane // 4 begins
    """

    sums: int
    places: int
    start: Any
    add: Any
    load_norms: Any


@functools.cache
def sum_channel(head_dim: int, form: BlockFormat, lookup: Lookup) -> Any:
    """channel(g, number): the channel of lane g's sums 2 number and 2 number + 1, uint32."""
    in_block, run = form.values_per_block, form.values_per_block // LANES
    apart, place_of = distance_of_two(form, lookup), place_in_block(form)

    @device
    def channel(g: Any, number: Any) -> Any:
        block = uint32(number // uint32(run))
        within = uint32(number - uint32(block * uint32(run)))
        if apart > 1:
            pair, end = uint32(within >> uint32(1)), uint32(within & uint32(1))
            first = uint32(uint32(uint32(pair // uint32(apart)) * uint32(2 * apart)) + uint32(pair % uint32(apart)))
            within = uint32(first + uint32(end * uint32(apart)))
        within = uint32(within + uint32(g * uint32(run)))
        return uint32(uint32(block * uint32(in_block)) + place_of(within))

    return channel


@functools.cache
def value_sums(
    form: BlockFormat, head_dim: int, lookup: Lookup, n_column_tiles: int, tile_tokens: int, is_spread: bool
) -> ValueSums:
    """The functions for rows of head_dim values and tiles of tile_tokens tokens, in the order of token_order.py."""
    n_blocks, block_bytes = head_dim // form.values_per_block, form.bytes_per_block
    row_bytes = form.bytes_per_vector(head_dim)
    read = reading(form, LANES, lookup)
    begin, load, mix, n_words, n_mixed = read.start, read.load, read.mix, read.words, read.mixed
    per_block = 2 * read.places
    n_steps = read.values // CHANNELS
    n_sums = 4 * n_steps * n_blocks
    n_places = read.places
    is_scaled = has_norm(form)
    token_in_eight = token_of(is_spread)

    def step(block: int, half: int, number: int) -> Any:
        two = read.two(number)
        base = 4 * (n_steps * block + number)
        first_weight = 2 * n_blocks * n_column_tiles * half

        @device
        def multiply(near: Any, far: Any, table: Any, place: Any, weights: Any, o: Any) -> None:
            a0, a1 = two(near, table, place)
            a2, a3 = two(far, table, place)
            for n in range(n_column_tiles):
                v, w = n_sums * n + base, first_weight + 2 * (n_column_tiles * block + n)
                d = multiply_halves(a0, a1, a2, a3, weights[w], weights[w + 1], o[v], o[v + 1], o[v + 2], o[v + 3])
                o[v], o[v + 1], o[v + 2], o[v + 3] = d[0], d[1], d[2], d[3]

        return multiply

    def of_block(block: int, half: int) -> Any:
        products = in_turn([step(block, half, j) for j in range(n_steps)])
        offset, eight, even = half * HALF_TILE * row_bytes, 8 * row_bytes, per_block * block
        odd = even + n_places

        @device
        def add(tile: Any, places: Any, table: Any, place: Any, weights: Any, o: Any) -> None:
            xa, xb = cuda.local.array(n_words, uint32), cuda.local.array(n_words, uint32)
            near, far = cuda.local.array(n_mixed, uint32), cuda.local.array(n_mixed, uint32)
            load(tile, places, even, offset, xa)
            load(tile, places, odd, offset, xb)
            mix(xa, xb, near)
            load(tile, places, even, offset + eight, xa)
            load(tile, places, odd, offset + eight, xb)
            mix(xa, xb, far)
            products(near, far, table, place, weights, o)

        return add

    @device
    def start(late: Any, _: Any, lane: Any, places: Any) -> None:
        part, first = uint32(lane >> uint32(2)), uint32(uint32(lane & uint32(3)) * uint32(2))
        for block in range(n_blocks):
            for odd in range(2):
                token = token_in_eight(uint32(first + uint32(odd)))
                row = uint32(late + uint32(token * uint32(row_bytes)))
                begin(uint32(row + uint32(block * block_bytes)), part, places, per_block * block + n_places * odd)

    @device
    def load_norms(tile: Any, first: Any, table: Any, lane: Any, norms: Any) -> None:
        for i in range(tile_tokens // 8):
            for block in range(n_blocks):
                norm = _ONE
                if is_scaled:
                    place = at(tile, uint32(first + uint32(8 * i * row_bytes + block * block_bytes)))
                    norm = _ptx.low_half(_ptx.load_shared_u16(place))
                norms[n_blocks * i + block] = norm

    add = in_turn([of_block(block, half) for half in range(tile_tokens // HALF_TILE) for block in range(n_blocks)])
    return ValueSums(n_sums, per_block * n_blocks, start, add, load_norms)
