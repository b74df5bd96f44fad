"""Queries on their way in and outputs on their way out: rows of float32 in shared memory, a warp a row.

Queries are rotated into the basis of the keys once, outputs back from the basis of the values once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.attention.key_scores import LANES
from turbocode.kernels.attention.reading import place_in_block
from turbocode.kernels.fwht.hadamard import Rotation
from turbocode.kernels.fwht.in_shared import in_shared, read, write
from turbocode.kernels.fwht.lanes import VALUE_BYTES

WARP = 32
_LN2 = np.float32(np.log(2.0))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_NEVER = np.float32(-np.inf)

float32, uint32, uint64 = types.float32, types.uint32, types.uint64


class QueryRows(NamedTuple):
    """load(address, row, factor, lane) : the query at a global address to a row, rotated, times the factor

    clear(row, lane) : a row of zeros
    fragments(rows, lane, q) : set q uint32 (words tiles,) to the lane's part of all rows, as `query_channels` says
    finish(row, total, gain, address, lane) : the row over its total, times the gain, rotated back, to a global address
    lse(top, total) : the log-sum-exp of logits
    """

    load: Any
    clear: Any
    fragments: Any
    finish: Any
    lse: Any


@functools.cache
def query_rows(
    head_dim: int,
    key_format: BlockFormat,
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
    load_group, rotate = forth.load, forth.transform
    store_group, flip, unrotate = back.store, back.flip, back.transform
    is_rotated_back = not value_rotation.is_identity
    in_block, run = key_format.values_per_block, key_format.values_per_block // LANES
    n_words = head_dim // (2 * LANES)
    place_of = place_in_block(key_format)

    @device
    def scale(row: Any, factor: Any, lane: Any) -> None:
        j = uint32(lane)
        while j < uint32(head_dim):
            write(row, j, read(row, j) * factor)
            j = uint32(j + uint32(WARP))
        _ptx.sync_warp()

    @device
    def load(address: Any, row: Any, factor: Any, lane: Any) -> None:
        for group in range(n_key_groups):
            y = at(row, uint32(group * key_group * 4))
            load_group(address + uint64(group * key_group * query_bytes), y, lane)
            rotate(y, lane)
        scale(row, factor, lane)

    @device
    def clear(row: Any, lane: Any) -> None:
        j = uint32(lane)
        while j < uint32(head_dim):
            write(row, j, _ZERO)
            j = uint32(j + uint32(WARP))

    @device
    def fragments(rows: Any, lane: Any, q: Any) -> None:
        t, g = uint32(lane & uint32(3)), uint32(lane >> uint32(2))
        for n in range(n_column_tiles):
            row = at(rows, uint32(uint32(g + uint32(8 * n)) * uint32(4 * head_dim)))
            for w in range(n_words):
                block, within = 2 * w // run, 2 * w % run
                j = uint32(uint32(within) + uint32(t * uint32(run)))
                of_block = at(row, uint32(4 * block * in_block))
                first, second = read(of_block, place_of(j)), read(of_block, place_of(uint32(j + uint32(1))))
                q[n_words * n + w] = _ptx.pack_halves(first, second)

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

    return QueryRows(load, clear, fragments, finish, lse)
