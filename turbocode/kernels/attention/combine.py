"""Partial results of a head become one: of the warps of a block through shared memory, of blocks through global memory.

A partial result is a sum of values relative to a maximum, and the total of the probabilities (flash-decoding, arXiv
2311.01282). It lies in memory as accumulators lie in a warp, lanes of a query side by side: [sum, t, g], so that a
thread adds up four numbers of one query, and only queries that exist are stored. Behind the sums are [top, total] of
each query.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.kernels import _ptx, _ptx_exchange
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.attention.softmax import UNSEEN

WARP = 32
AT_ONCE = 9  # parts whose loads are under way together

float32, uint32, uint64 = types.float32, types.uint32, types.uint64
_ZERO = np.float32(0.0)


class Combiner(NamedTuple):
    """n_pairs : pairs of queries that there are, of 4 tiles; sums of the others are not added up

    part_floats : of one partial result; area_bytes : shared memory that all this needs
    leave(area, o, top, total, n_pairs, warp, lane) : one warp's result to its place in the area
    of_warps(area, memory, target, is_whole, n_pairs, thread) : the sum of all warps' to rows (columns, head_dim),
        maxima and totals in shared memory, `memory`; or, if it is a part, to global memory
    gather(area, memory, source, n_parts, n_pairs, thread, sync) : the sum of parts to rows; the first lies at source,
        the next ones 3, 5, 7, ... places behind
    """

    part_floats: int
    area_bytes: int
    leave: Any
    of_warps: Any
    gather: Any


def _adder(at_once: int, load_four: Any, address_of: Any) -> Any:
    """add(source, first, step, n_parts, sum_at, top_at, is_odd, found): parts first, first + step, ... to found (6,).

    They have at the byte offsets: sums of four numbers of a query, its maximum and its total.
    """
    n_loaded = 4 * at_once

    @device
    def add(
        source: Any, first: Any, step: Any, n_parts: Any, sum_at: Any, top_at: Any, is_odd: Any, found: Any
    ) -> None:
        x = cuda.local.array(n_loaded, float32)
        tops, totals = cuda.local.array(at_once, float32), cuda.local.array(at_once, float32)
        for i in range(4):
            found[i] = _ZERO
        found[4], found[5] = UNSEEN, _ZERO
        part = uint32(first)
        while part < n_parts:
            for i in range(at_once):  # without a branch, so that all loads are under way together
                p = uint32(min(uint32(part + uint32(step * uint32(i))), uint32(n_parts - uint32(1))))
                x0, x1, x2, x3 = load_four(address_of(source, p, sum_at))
                x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3] = x0, x1, x2, x3
                top, total, odd_top, odd_total = load_four(address_of(source, p, top_at))
                tops[i], totals[i] = (odd_top, odd_total) if is_odd != uint32(0) else (top, total)
            most = found[4]
            for i in range(at_once):
                most = max(most, tops[i])
            factor = _ptx.power_of_two(found[4] - most)
            found[4] = most
            for j in range(4):
                found[j] = found[j] * factor
            found[5] = found[5] * factor
            for i in range(at_once):
                factor = _ptx.power_of_two(tops[i] - most)
                if uint32(part + uint32(step * uint32(i))) >= n_parts:
                    factor = _ZERO
                for j in range(4):
                    found[j] = found[j] + x[4 * i + j] * factor
                found[5] = found[5] + totals[i] * factor
            part = uint32(part + uint32(step * uint32(at_once)))

    return add


@functools.cache
def combiner(channel_of: Any, head_dim: int, n_sums: int, n_column_tiles: int, n_warps: int) -> Combiner:
    """The functions for n_sums accumulators of a lane and column tile, whose channels are channel_of(g, sum // 2)."""
    n_columns, all_sums = 2 * n_column_tiles, n_sums * n_column_tiles
    part_floats = WARP * all_sums + 16 * n_column_tiles
    part_bytes, tops_at = 4 * part_floats, 4 * WARP * all_sums
    threads = WARP * n_warps

    @device
    def global_part(source: Any, part: Any, byte: Any) -> Any:
        place = uint32(uint32(part << uint32(1)) + uint32(min(part, uint32(1))))
        return source + (uint64(place) * uint64(part_bytes) + uint64(byte))

    @device
    def shared_part(source: Any, part: Any, byte: Any) -> Any:
        return at(source, uint32(uint32(part * uint32(part_bytes)) + byte))

    add_parts = _adder(AT_ONCE, _ptx_exchange.load_f32x4_fresh, global_part)
    add_warps = _adder(min(n_warps, 8), _ptx.load_shared_f32x4, shared_part)

    @device
    def leave(area: Any, o: Any, top: Any, total: Any, n_pairs: Any, warp: Any, lane: Any) -> None:
        g, t = uint32(lane >> uint32(2)), uint32(lane & uint32(3))
        mine = at(area, uint32(warp * uint32(part_bytes)))
        if t < n_pairs:
            for v in range(all_sums):
                place = uint32(uint32(uint32(v * WARP) + uint32(t << uint32(3))) + g)
                _ptx.store_shared_f32(at(mine, uint32(place * uint32(4))), o[v])
            if g == uint32(0):
                for c in range(n_columns):
                    place = uint32(uint32(tops_at + 64 * (c // 2) + 8 * (c % 2)) + uint32(t << uint32(4)))
                    _ptx.store_shared_f32(at(mine, place), top[c])
                    _ptx.store_shared_f32(at(mine, uint32(place + uint32(4))), total[c])

    @device
    def spot(item: Any, n_pairs: Any) -> Any:
        """(byte of the four sums, byte of the pair's tops, column, sum, lane g of the first) of item v, t, half."""
        per_tile = uint32(min(n_pairs, uint32(4)))
        half, rest = uint32(item & uint32(1)), uint32(item >> uint32(1))
        v = uint32(rest // per_tile)
        t = uint32(rest - uint32(v * per_tile))
        n = uint32(v // uint32(n_sums))
        sum_at = uint32(uint32(v << uint32(7)) + uint32(uint32(t << uint32(5)) + uint32(half << uint32(4))))
        pair = uint32(uint32(n << uint32(2)) + t)
        column = uint32(uint32(pair << uint32(1)) + uint32(v & uint32(1)))
        top_at = uint32(uint32(tops_at) + uint32(pair << uint32(4)))
        return sum_at, top_at, column, uint32(v - uint32(n * uint32(n_sums))), uint32(half << uint32(2))

    @device
    def items_of(n_pairs: Any) -> Any:
        tiles = uint32(uint32(n_pairs + uint32(3)) >> uint32(2))
        return uint32(uint32(tiles * uint32(2 * n_sums)) * uint32(min(n_pairs, uint32(4))))

    @device
    def to_rows(memory: Any, column: Any, v: Any, g: Any, found: Any) -> None:
        _, rows, tops, totals, _ = memory
        row = at(rows, uint32(column * uint32(4 * head_dim)))
        for i in range(4):
            channel = channel_of(uint32(g + uint32(i)), uint32(v >> uint32(1)))
            _ptx.store_shared_f32(at(row, uint32(channel * uint32(4))), found[i])
        if v < uint32(2) and g == uint32(0):
            _ptx.store_shared_f32(at(tops, uint32(column * uint32(4))), found[4])
            _ptx.store_shared_f32(at(totals, uint32(column * uint32(4))), found[5])

    @device
    def of_warps(area: Any, memory: Any, target: Any, is_whole: Any, n_pairs: Any, thread: Any) -> None:
        found = cuda.local.array(6, float32)
        item, n_items = uint32(thread), items_of(n_pairs)
        while item < n_items:
            sum_at, top_at, column, v, g = spot(item, n_pairs)
            is_odd = uint32(v & uint32(1))
            add_warps(area, uint32(0), uint32(1), uint32(n_warps), sum_at, top_at, is_odd, found)
            if is_whole != uint32(0):
                to_rows(memory, column, v, g, found)
            else:
                _ptx_exchange.store_f32x4(target + uint64(sum_at), found[0], found[1], found[2], found[3])
                if v < uint32(2) and g == uint32(0):
                    place = target + (uint64(top_at) + uint64(is_odd) * uint64(8))
                    _ptx.store_f32(place, found[4])
                    _ptx.store_f32(place + uint64(4), found[5])
            item = uint32(item + uint32(threads))

    @device
    def join(area: Any, place: Any, found: Any) -> None:
        """Another thread's `found`, from the area, added."""
        top = _ptx.load_shared_f32(at(area, uint32(uint32(place + uint32(4 * threads)) * uint32(4))))
        both = max(found[4], top)
        here, there = _ptx.power_of_two(found[4] - both), _ptx.power_of_two(top - both)
        found[4] = both
        for i in range(6):
            if i != 4:
                other = _ptx.load_shared_f32(at(area, uint32(uint32(place + uint32(i * threads)) * uint32(4))))
                found[i] = found[i] * here + other * there

    @device
    def gather(area: Any, memory: Any, source: Any, n_parts: Any, n_pairs: Any, thread: Any, sync: Any) -> None:
        found = cuda.local.array(6, float32)
        n_items = items_of(n_pairs)
        groups = uint32(1)  # threads that share the parts of an item
        while uint32(uint32(groups * uint32(2)) * n_items) <= uint32(threads):
            groups = uint32(groups * uint32(2))
        group = uint32(thread // n_items) if groups > uint32(1) else uint32(0)
        item = uint32(thread - uint32(group * n_items))
        while item < n_items:  # if threads share items, all of them go round once
            sum_at, top_at, column, v, g = spot(item, n_pairs)
            if group < groups:
                add_parts(source, group, groups, n_parts, sum_at, top_at, uint32(v & uint32(1)), found)
            if groups > uint32(1):
                if group > uint32(0) and group < groups:
                    for i in range(6):
                        place = uint32(uint32(thread + uint32(i * threads)) * uint32(4))
                        _ptx.store_shared_f32(at(area, place), found[i])
                sync()
                other = uint32(1)
                while group == uint32(0) and other < groups:
                    join(area, uint32(thread + uint32(other * n_items)), found)
                    other = uint32(other + uint32(1))
            if group == uint32(0):
                to_rows(memory, column, v, g, found)
            item = uint32(item + uint32(threads))

    area_bytes = max(n_warps * part_bytes, 24 * threads)
    return Combiner(part_floats, area_bytes, leave, of_warps, gather)
