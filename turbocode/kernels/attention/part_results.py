"""What a block does with its result for a stretch of a head: finish the head, or leave a part and maybe gather all.

A head that is all this block's is finished at once. Otherwise the part goes to global memory and is counted; the block
that counts last adds up all parts, so that no second launch is needed, and leaves the counter at zero for the next one.
"""

from __future__ import annotations

import functools
from typing import Any

from turbocode.kernels import _ptx, _ptx_exchange
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.attention.combine import Combiner
from turbocode.kernels.attention.query_rows import QueryRows
from turbocode.kernels.attention.work_split import block_of

uint32, uint64 = types.uint32, types.uint64


@functools.cache
def part_settler(joined: Combiner) -> Any:
    """settle(o, top, total, memory, stretch, split, where, warp, lane, sync) -> whether the head's rows are complete.

    memory : (area, rows, tops, totals, flag) shared addresses; stretch : (block, units of the head before it, place of
    the head's first unit, place behind its last one, pairs of queries that there are)
    split : work_split.shares of the launch; where : (work, counter) addresses
    Rows, maxima and totals are then in shared memory; all threads of the block call it together.
    """
    part_bytes = 4 * joined.part_floats
    leave, of_warps, gather = joined.leave, joined.of_warps, joined.gather

    @device
    def settle(
        o: Any, top: Any, total: Any, memory: Any, stretch: Any, split: Any, where: Any, warp: Any, lane: Any, sync: Any
    ) -> Any:
        area, _, _, _, flag = memory
        block, units_before, head_start, head_stop, n_pairs = stretch
        work, counter = where
        thread = uint32(uint32(warp << uint32(5)) + lane)
        leave(area, o, top, total, n_pairs, warp, lane)
        sync()
        first_block = block_of(head_start, split)
        last_block = block_of(uint32(head_stop - uint32(1)), split)
        n_parts = uint32(uint32(last_block - first_block) + uint32(1))
        is_whole = uint32(1 if n_parts == uint32(1) else 0)
        # A block has at most two parts: that of a head which it begins, and that of one which it goes on with.
        later = uint32(0 if units_before == uint32(0) else 1)
        target = work + uint64(uint32(uint32(block << uint32(1)) + later)) * uint64(part_bytes)
        of_warps(area, memory, target, is_whole, n_pairs, thread)
        sync()
        is_complete = is_whole
        if is_whole == uint32(0):
            if thread == uint32(0):
                _ptx_exchange.fence()
                arrived = _ptx_exchange.add_u32(counter, uint32(1))
                if arrived == uint32(n_parts - uint32(1)):
                    _ptx.store_u32(counter, uint32(0))
                    _ptx_exchange.fence()
                _ptx.store_shared_u32(flag, arrived)
            sync()
            is_complete = uint32(1 if _ptx.load_shared_u32(flag) == uint32(n_parts - uint32(1)) else 0)
            if is_complete != uint32(0):
                source = work + uint64(uint32(first_block << uint32(1))) * uint64(part_bytes)
                gather(area, memory, source, n_parts, n_pairs, thread, sync)
                sync()
        return is_complete

    return settle


@functools.cache
def row_finisher(rows_of: QueryRows, head_dim: int, n_columns: int, n_warps: int, has_gain: bool) -> Any:
    """finish(memory, seq, head, first_column, shape, out, warp, lane): a head's rows to global memory, a warp a row.

    shape : (n_kv_heads, query heads of each, rows); out : (output, its strides by sequence, head and row, lse, gains,
    bits of the factor that outputs get)
    """
    finish_row, lse_of = rows_of.finish, rows_of.lse

    @device
    def finish(memory: Any, seq: Any, head: Any, first_column: Any, shape: Any, out: Any, warp: Any, lane: Any) -> None:
        _, rows, tops, totals, _ = memory
        n_kv_heads, per_head, n_rows = shape
        target, out_seq, out_head, out_row, lse, gains, factor = out
        row = uint32(warp)
        while row < uint32(n_columns) and uint32(first_column + row) < uint32(per_head * n_rows):
            column = uint32(first_column + row)
            of_head = uint32(column // uint32(n_rows))
            query_row = uint32(column - uint32(of_head * uint32(n_rows)))
            number = uint32(uint32(head * uint32(per_head)) + of_head)
            gain = _ptx.float_from_bits(uint32(factor))
            if has_gain:
                gain = gain * _ptx.load_f32(gains + uint64(number) * uint64(4))
            top = _ptx.load_shared_f32(at(tops, uint32(row * uint32(4))))
            total = _ptx.load_shared_f32(at(totals, uint32(row * uint32(4))))
            address = target + (uint64(seq) * out_seq + uint64(number) * out_head + uint64(query_row) * out_row)
            finish_row(at(rows, uint32(row * uint32(4 * head_dim))), total, gain, address, lane)
            if lane == uint32(0):
                place = (uint64(seq) * (n_kv_heads * per_head) + uint64(number)) * n_rows + uint64(query_row)
                _ptx.store_f32(lse + place * uint64(4), lse_of(top, total))
            row = uint32(row + uint32(n_warps))

    return finish
