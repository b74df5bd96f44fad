"""Partial results of a head become one: of the warps of a block through shared memory, of blocks through global memory.

A partial result is a sum of values relative to a maximum, and the total of the weights (flash-decoding, arXiv
2311.01282). A block that has a part of a head's tokens leaves it in global memory and counts itself; the one that
counts last adds all up, so that nothing has to be started after it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.attention.reading import place_in_block
from turbocode.kernels.attention.softmax import UNSEEN
from turbocode.kernels.attention.value_sums import LANES

WARP = 32
AT_ONCE = 8  # parts whose loads are under way together

float32, uint32, uint64 = types.float32, types.uint32, types.uint64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


class Combiner(NamedTuple):
    """part_floats : of one partial result in memory; warp_bytes : shared memory that `warps` needs

    warps(o, top, total, area, warp, lane) : warp 0 gets the sum of all warps
    publish(target, o, top, total, lane) : one warp's result to global memory
    lay(rows, tops, totals, o, top, total, lane) : one warp's result to rows (columns, head_dim) in shared memory
    gather(rows, tops, totals, area, source, first_slot, second_slot, n_parts, thread) : the sum of n_parts results in
        the slots first_slot, second_slot, second_slot + 2, ... to rows; area : 32 tiles bytes a part
    """

    part_floats: int
    warp_bytes: int
    warps: Any
    publish: Any
    lay: Any
    gather: Any


@functools.cache
def combiner(form: BlockFormat, head_dim: int, n_sums: int, n_column_tiles: int, n_warps: int) -> Combiner:
    """The functions for n_sums accumulators of a lane and column tile, laid out as `sum_channels` says."""
    n_columns, all_sums = 2 * n_column_tiles, n_sums * n_column_tiles
    part_floats = WARP * (all_sums + 2 * n_columns)
    in_block, run = form.values_per_block, form.values_per_block // LANES
    place_of = place_in_block(form)
    threads = WARP * n_warps
    n_quads = all_sums * WARP // 4

    @device
    def channel_of(v: Any, g: Any) -> Any:
        number = uint32(uint32(uint32(v >> uint32(2)) << uint32(1)) | uint32(uint32(v >> uint32(1)) & uint32(1)))
        block = uint32(number // uint32(run))
        within = uint32(number - uint32(block * uint32(run)))
        return uint32(uint32(block * uint32(in_block)) + place_of(uint32(uint32(g * uint32(run)) + within)))

    @device
    def place_in_rows(rows: Any, v: Any, lane: Any) -> Any:
        n = uint32(v // uint32(n_sums))
        within = uint32(v - uint32(n * uint32(n_sums)))
        column = uint32(uint32(n * uint32(8)) + uint32(uint32(lane & uint32(3)) << uint32(1)))
        column = uint32(column + uint32(within & uint32(1)))
        channel = channel_of(within, uint32(lane >> uint32(2)))
        return at(rows, uint32(uint32(uint32(column * uint32(head_dim)) + channel) * uint32(4)))

    @device
    def spot(area: Any, number: Any, lane: Any) -> Any:
        return at(area, uint32(uint32(uint32(number * uint32(WARP)) + lane) * uint32(4)))

    @device
    def warps(o: Any, top: Any, total: Any, area: Any, warp: Any, lane: Any, sync: Any) -> None:
        left = uint32(n_warps)
        while left > uint32(1):
            half = uint32(uint32(left + uint32(1)) >> uint32(1))
            if warp >= half and warp < left:
                mine = at(area, uint32(uint32(warp - half) * uint32(4 * part_floats)))
                for v in range(all_sums):
                    _ptx.store_shared_f32(spot(mine, uint32(v), lane), o[v])
                for c in range(n_columns):
                    _ptx.store_shared_f32(spot(mine, uint32(all_sums + c), lane), top[c])
                    _ptx.store_shared_f32(spot(mine, uint32(all_sums + n_columns + c), lane), total[c])
            sync()
            if warp < uint32(left - half):
                other = at(area, uint32(warp * uint32(4 * part_floats)))
                for c in range(n_columns):
                    there = _ptx.load_shared_f32(spot(other, uint32(all_sums + c), lane))
                    added = _ptx.load_shared_f32(spot(other, uint32(all_sums + n_columns + c), lane))
                    both = max(top[c], there)
                    here, far = _ptx.power_of_two(top[c] - both), _ptx.power_of_two(there - both)
                    top[c], total[c] = both, total[c] * here + added * far
                    for v in range(n_sums // 2):
                        w = n_sums * (c // 2) + 2 * v + c % 2
                        o[w] = o[w] * here + _ptx.load_shared_f32(spot(other, uint32(w), lane)) * far
            sync()
            left = half

    @device
    def publish(target: Any, o: Any, top: Any, total: Any, lane: Any) -> None:
        for v in range(all_sums):
            _ptx.store_f32(target + uint64(uint32(uint32(v * WARP) + lane)) * uint64(4), o[v])
        for c in range(n_columns):
            number = uint32(uint32((all_sums + c) * WARP) + lane)
            _ptx.store_f32(target + uint64(number) * uint64(4), top[c])
            _ptx.store_f32(target + uint64(uint32(number + uint32(n_columns * WARP))) * uint64(4), total[c])

    @device
    def lay(rows: Any, tops: Any, totals: Any, o: Any, top: Any, total: Any, lane: Any) -> None:
        for v in range(all_sums):
            _ptx.store_shared_f32(place_in_rows(rows, uint32(v), lane), o[v])
        if lane < uint32(4):
            for c in range(n_columns):
                column = uint32(uint32(8 * (c // 2) + c % 2) + uint32(lane << uint32(1)))
                _ptx.store_shared_f32(at(tops, uint32(column * uint32(4))), top[c])
                _ptx.store_shared_f32(at(totals, uint32(column * uint32(4))), total[c])

    @device
    def slot_of(part: Any, first_slot: Any, second_slot: Any) -> Any:
        later = uint32(second_slot + uint32(uint32(part - uint32(1)) << uint32(1)))
        return later if part > uint32(0) else first_slot

    @device
    def weigh_parts(
        tops: Any, totals: Any, area: Any, source: Any, first_slot: Any, second_slot: Any, n_parts: Any, thread: Any
    ) -> None:
        """A warp a column: its maximum and total over all parts, and in area[part, column] each part's factor."""
        lane, column = uint32(thread & uint32(31)), uint32(thread >> uint32(5))
        while column < uint32(8 * n_column_tiles):
            c = uint32(uint32(uint32(column >> uint32(3)) << uint32(1)) | uint32(column & uint32(1)))
            number = uint32(
                uint32(uint32(uint32(all_sums) + c) * uint32(WARP)) + uint32(uint32(column & uint32(7)) >> uint32(1))
            )
            byte = uint64(number) * uint64(4)
            top = UNSEEN
            part = lane
            while part < n_parts:
                place = source + uint64(slot_of(part, first_slot, second_slot)) * uint64(4 * part_floats) + byte
                top = max(top, _ptx.load_f32_fresh(place))
                part = uint32(part + uint32(WARP))
            for step in range(5):
                top = max(top, _ptx.shuffle_xor_f32(top, uint32(1 << step)))
            total = _ZERO
            part = lane
            while part < n_parts:
                place = source + uint64(slot_of(part, first_slot, second_slot)) * uint64(4 * part_floats) + byte
                factor = _ptx.power_of_two(_ptx.load_f32_fresh(place) - top)
                total = total + factor * _ptx.load_f32_fresh(place + uint64(4 * n_columns * WARP))
                spot_of_factor = uint32(uint32(part * uint32(8 * n_column_tiles)) + column)
                _ptx.store_shared_f32(at(area, uint32(spot_of_factor * uint32(4))), factor)
                part = uint32(part + uint32(WARP))
            for step in range(5):
                total = total + _ptx.shuffle_xor_f32(total, uint32(1 << step))
            if lane == uint32(0):
                _ptx.store_shared_f32(at(tops, uint32(column * uint32(4))), top)
                _ptx.store_shared_f32(at(totals, uint32(column * uint32(4))), total)
            column = uint32(column + uint32(n_warps))

    @device
    def add_parts(
        rows: Any, area: Any, source: Any, first_slot: Any, second_slot: Any, n_parts: Any, thread: Any
    ) -> None:
        quad = uint32(thread)
        while quad < uint32(n_quads):
            v, lane = uint32(quad >> uint32(3)), uint32(uint32(quad & uint32(7)) << uint32(2))
            n = uint32(v // uint32(n_sums))
            column = uint32(uint32(n * uint32(8)) + uint32(v & uint32(1)))
            s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
            part = uint32(0)
            while part < n_parts:
                for step in range(AT_ONCE):  # without a branch, so that all loads are under way together
                    p = uint32(min(uint32(part + uint32(step)), uint32(n_parts - uint32(1))))
                    is_there = _ONE if uint32(part + uint32(step)) < n_parts else _ZERO
                    slot = uint64(slot_of(p, first_slot, second_slot)) * uint64(4 * part_floats)
                    x = _ptx.load_f32x4_fresh(source + slot + uint64(quad) * uint64(16))
                    factors = at(area, uint32(uint32(uint32(p * uint32(8 * n_column_tiles)) + column) * uint32(4)))
                    s0 = s0 + x[0] * (is_there * _ptx.load_shared_f32(factors))
                    s1 = s1 + x[1] * (is_there * _ptx.load_shared_f32(at(factors, uint32(8))))
                    s2 = s2 + x[2] * (is_there * _ptx.load_shared_f32(at(factors, uint32(16))))
                    s3 = s3 + x[3] * (is_there * _ptx.load_shared_f32(at(factors, uint32(24))))
                part = uint32(part + uint32(AT_ONCE))
            _ptx.store_shared_f32(place_in_rows(rows, v, lane), s0)
            _ptx.store_shared_f32(place_in_rows(rows, v, uint32(lane + uint32(1))), s1)
            _ptx.store_shared_f32(place_in_rows(rows, v, uint32(lane + uint32(2))), s2)
            _ptx.store_shared_f32(place_in_rows(rows, v, uint32(lane + uint32(3))), s3)
            quad = uint32(quad + uint32(threads))

    @device
    def gather(
        rows: Any,
        tops: Any,
        totals: Any,
        area: Any,
        source: Any,
        first_slot: Any,
        second_slot: Any,
        n_parts: Any,
        thread: Any,
        sync: Any,
    ) -> None:
        weigh_parts(tops, totals, area, source, first_slot, second_slot, n_parts, thread)
        sync()
        add_parts(rows, area, source, first_slot, second_slot, n_parts, thread)

    warp_bytes = n_warps // 2 * 4 * part_floats
    return Combiner(part_floats, warp_bytes, warps, publish, lay, gather)
