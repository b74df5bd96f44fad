"""Queries on their way in and outputs on their way out: rows of float32 in shared memory, a warp a row.

Queries are rotated into the basis of the keys once, outputs back from the basis of the values once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.formats import BlockFormat, MultirateFormat
from turbocode.kernels import _ptx, _ptx_copies
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.attention.key_scores import LANES
from turbocode.kernels.attention.lookup import Lookup
from turbocode.kernels.attention.reading import place_of_key, values_shared
from turbocode.kernels.fwht.hadamard import Rotation
from turbocode.kernels.fwht.in_shared import in_shared, read, write
from turbocode.kernels.fwht.lanes import BFLOAT16, FLOAT32, VALUE_BYTES

WARP = 32
_LN2 = np.float32(np.log(2.0))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_NEVER = np.float32(-np.inf)

float32, uint32, uint64 = types.float32, types.uint32, types.uint64


class QueryRows(NamedTuple):
    """fragment_bytes : of the queries of a column tile as the tensor cores take them

    begin(address, row, lane) : start copying the query at a global address to a row
    turn(row, factor, lane) : the query that has arrived in a row, as float32, rotated, times the factor
    lay(row, column, fragments, lane) : a row to its places in the fragments; clear(column, fragments, lane) : zeros
    fragments(fragments, lane, q) : set q uint32 (words tiles,) to the lane's part: word w has values
        2 w and 2 w + 1 of its runs in all blocks, in the order of `place_of_key`
    finish(row, total, gain, address, lane) : the row over its total, times the gain, rotated back, to a global address
    lse(top, total) : the log-sum-exp of logits
    """

    fragment_bytes: int
    begin: Any
    turn: Any
    lay: Any
    clear: Any
    fragments: Any
    finish: Any
    lse: Any


@functools.cache
def query_rows(
    head_dim: int,
    key_format: BlockFormat | MultirateFormat,
    key_lookup: Lookup,
    key_rotation: Rotation,
    value_rotation: Rotation,
    query_type: int,
    out_type: int,
    n_column_tiles: int,
) -> QueryRows:
    """The functions for vectors of head_dim values and types of lanes.py."""
    key_group, value_group = key_rotation.group_size, value_rotation.group_size
    forth, back = in_shared(key_rotation, query_type), in_shared(value_rotation, out_type, is_inverse=True)
    n_key_groups, n_value_groups = head_dim // key_group, head_dim // value_group
    query_bytes, out_bytes = VALUE_BYTES[query_type], VALUE_BYTES[out_type]
    flip_first, rotate = forth.flip, forth.transform
    store_group, flip, unrotate = back.store, back.flip, back.transform
    is_rotated, is_rotated_back = not key_rotation.is_identity, not value_rotation.is_identity
    in_block = values_shared(key_format, LANES)
    run = in_block // LANES
    n_words = head_dim // (2 * LANES)
    fragment_bytes, query_words, per_lane = 128 * n_words, head_dim * query_bytes // 16, -(-head_dim // WARP)
    words_per_lane = -(-LANES * n_words // WARP)
    place_of = place_of_key(key_format, key_lookup)

    @device
    def scale(row: Any, factor: Any, lane: Any) -> None:
        j = uint32(lane)
        while j < uint32(head_dim):
            write(row, j, read(row, j) * factor)
            j = uint32(j + uint32(WARP))
        _ptx.sync_warp()

    @device
    def begin(address: Any, row: Any, lane: Any) -> None:
        word = uint32(lane)
        while word < uint32(query_words):
            byte = uint32(word * uint32(16))
            _ptx_copies.copy_async_whole(at(row, byte), address + uint64(byte))
            word = uint32(word + uint32(WARP))

    @device
    def widen(row: Any, lane: Any) -> None:
        values = cuda.local.array(per_lane, float32)
        for m in range(per_lane):
            j = uint32(min(uint32(lane + uint32(m * WARP)), uint32(head_dim - 1)))
            bits = _ptx.load_shared_u16(at(row, uint32(j * uint32(2))))
            if query_type == BFLOAT16:
                values[m] = _ptx.float_from_bits(uint32(bits << uint32(16)))
            else:
                values[m] = _ptx.low_half(bits)
        _ptx.sync_warp()
        for m in range(per_lane):
            j = uint32(lane + uint32(m * WARP))
            if j < uint32(head_dim):
                write(row, j, values[m])
        _ptx.sync_warp()

    @device
    def place_of_word(fragments: Any, column: Any, t: Any, w: Any) -> Any:
        """Two words of a lane lie side by side, lanes behind one another: read without conflicts."""
        lane = uint32(uint32(uint32(column & uint32(7)) << uint32(2)) + t)
        tile = uint32(uint32(column >> uint32(3)) * uint32(fragment_bytes))
        pair = uint32(uint32(uint32(w >> uint32(1)) << uint32(8)) + uint32(lane << uint32(3)))
        return at(fragments, uint32(uint32(tile + pair) + uint32(uint32(w & uint32(1)) << uint32(2))))

    @device
    def turn(row: Any, factor: Any, lane: Any) -> None:
        if query_type != FLOAT32:
            widen(row, lane)
        if is_rotated:
            for group in range(n_key_groups):
                y = at(row, uint32(group * key_group * 4))
                flip_first(y, lane)
                rotate(y, lane)
        scale(row, factor, lane)

    @device
    def lay(row: Any, column: Any, fragments: Any, lane: Any) -> None:
        for m in range(words_per_lane):
            number = uint32(lane + uint32(m * WARP))
            if number < uint32(LANES * n_words):
                t, w = uint32(number & uint32(3)), uint32(number >> uint32(2))
                block = uint32(uint32(w * uint32(2)) // uint32(run))
                j = uint32(uint32(uint32(w * uint32(2)) - uint32(block * uint32(run))) + uint32(t * uint32(run)))
                of_block = at(row, uint32(block * uint32(4 * in_block)))
                first, second = read(of_block, place_of(j)), read(of_block, place_of(uint32(j + uint32(1))))
                place = place_of_word(fragments, column, t, w)
                _ptx.store_shared_u32(place, _ptx.pack_halves(first, second))

    @device
    def clear(column: Any, fragments: Any, lane: Any) -> None:
        number = uint32(lane)
        while number < uint32(LANES * n_words):
            place = place_of_word(fragments, column, uint32(number & uint32(3)), uint32(number >> uint32(2)))
            _ptx.store_shared_u32(place, uint32(0))
            number = uint32(number + uint32(WARP))

    @device
    def fragments(laid: Any, lane: Any, q: Any) -> None:
        mine = at(laid, uint32(lane << uint32(3)))
        for w in range(0, n_words * n_column_tiles, 2):
            q[w], q[w + 1] = _ptx.load_shared_u32x2(at(mine, uint32(128 * w)))

    @device
    def finish(row: Any, total: Any, gain: Any, address: Any, lane: Any) -> None:
        factor = _ZERO
        if total > _ZERO:
            factor = _ptx.divide(gain, total)
        scale(row, factor, lane)
        for group in range(n_value_groups):
            y = at(row, uint32(group * value_group * 4))
            if is_rotated_back:
                flip(y, lane)
                unrotate(y, lane)
            store_group(address + uint64(group * value_group * out_bytes), y, lane)

    @device
    def lse(top: Any, total: Any) -> Any:
        found = _NEVER
        if total > _ZERO:
            found = (top + _ptx.logarithm_of_two(total)) * _LN2
        return found

    return QueryRows(fragment_bytes, begin, turn, lay, clear, fragments, finish, lse)
