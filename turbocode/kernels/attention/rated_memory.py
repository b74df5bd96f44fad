"""Where multirate sides have their memory in a block, and nothing of all that where a kernel has no such side.

First lies the image of tables (rate_tables.py), whose size is a number of the call; behind it everything else, among it
the words of each side in the place of a table, and for each warp the ring heads of a tile of each side.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from turbocode.kernels import _ptx, _ptx_copies
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.attention.ring_heads import HEADS_BYTES, head_writer
from turbocode.kernels.attention.shared_table import image_copier

uint32 = types.uint32


class RatedMemory(NamedTuple):
    """front : shared address where dynamic memory begins; base : behind the image

    behind(front, image_bytes) -> base
    begin(front, image, image_bytes, warp, lane) : start to copy the image, part of the first copies that lanes close
    end() : before a block ends that may have waited for nothing
    of_keys(front, base, table, laid, warp), of_values(front, base, table, warp) : `table` of score and add
    write_keys(tile, late, row_bytes, memory, lane), write_values : the ring heads of a tile
    settle() : before they are read
    """

    behind: Any
    begin: Any
    end: Any
    of_keys: Any
    of_values: Any
    write_keys: Any
    write_values: Any
    settle: Any


@device
def _same(front: Any, image_bytes: Any) -> Any:
    return front


@device
def _no_image(front: Any, image: Any, image_bytes: Any, warp: Any, lane: Any) -> None:
    pass


@device
def _nothing() -> None:
    pass


@device
def _key_table(front: Any, base: Any, table: Any, laid: Any, warp: Any) -> Any:
    return table


@device
def _value_table(front: Any, base: Any, table: Any, warp: Any) -> Any:
    return table


@device
def _no_heads(tile: Any, late: Any, row_bytes: Any, memory: Any, lane: Any) -> None:
    pass


@functools.cache
def rated_memory(head_dim: int, is_rated: tuple[bool, bool], n_warps: int, heads_at: int) -> RatedMemory:
    """The functions for a block of n_warps, whose heads lie heads_at bytes behind `base`; is_rated : keys, values."""
    of_keys, of_values = is_rated
    if not (of_keys or of_values):
        return RatedMemory(_same, _no_image, _nothing, _key_table, _value_table, _no_heads, _no_heads, _nothing)
    begin, write = image_copier(n_warps), head_writer(head_dim)
    wait_all = _ptx_copies.wait_for_copies(0)
    values_at = heads_at + (HEADS_BYTES * n_warps if of_keys else 0)

    @device
    def behind(front: Any, image_bytes: Any) -> Any:
        return at(front, uint32(image_bytes))

    @device
    def key_memory(front: Any, base: Any, table: Any, laid: Any, warp: Any) -> Any:
        return front, table, at(base, uint32(uint32(heads_at) + uint32(warp * uint32(HEADS_BYTES)))), laid

    @device
    def value_memory(front: Any, base: Any, table: Any, warp: Any) -> Any:
        return front, table, at(base, uint32(uint32(values_at) + uint32(warp * uint32(HEADS_BYTES))))

    @device
    def write_heads(tile: Any, late: Any, row_bytes: Any, memory: Any, lane: Any) -> None:
        write(tile, late, row_bytes, memory[1], memory[2], lane)

    return RatedMemory(
        behind,
        begin,
        wait_all,
        key_memory if of_keys else _key_table,
        value_memory if of_values else _value_table,
        write_heads if of_keys else _no_heads,
        write_heads if of_values else _no_heads,
        _ptx.sync_warp,
    )
