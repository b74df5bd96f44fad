"""The readable kernel of decode attention: no tensor cores, no tables in shared memory, any format and group size.

It is what the fast kernel is compared with, and what group sizes that the fast one does not know get. A block takes one
query row and one stretch of its tokens; each of its warps goes through every n-th token with an online softmax,
a lane having every 32nd channel. Stretches are merged by merge_kernel.py.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.formats import BlockFormat, MultirateFormat
from turbocode.kernels import _ptx, _ptx_copies
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.attention.lookup import NO_TABLE
from turbocode.kernels.attention.pages import place_of_token
from turbocode.kernels.attention.query_rows import query_rows
from turbocode.kernels.attention.softmax import UNSEEN
from turbocode.kernels.attention.stored_value import stored_value
from turbocode.kernels.fwht.hadamard import Rotation
from turbocode.kernels.fwht.in_shared import read, write
from turbocode.kernels.fwht.lanes import FLOAT32

WARPS = 4
WARP = 32
N_ARGS = 36

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_TWO_LOG2_E = np.float32(2.0 / np.log(2.0))


class PlainVariant(NamedTuple):
    """What the kernel is compiled for; query_type is of fwht/lanes.py."""

    key_format: BlockFormat | MultirateFormat
    value_format: BlockFormat | MultirateFormat
    key_rotation: Rotation
    value_rotation: Rotation
    head_dim: int
    query_type: int
    is_paged: bool
    has_softcap: bool


@functools.cache
def plain_kernel(variant: PlainVariant) -> Any:
    """The kernel of WARPS * 32 threads, a block for each of n_splits stretches of each query row.

    Arguments as attend_kernel.py: attend, but for out and lse, which are float32 (n_splits, S, H, R, D) and (n_splits,
    S, H, R), and the tables, which are float32.
    """
    d = variant.head_dim
    key_format, value_format = variant.key_format, variant.value_format
    key_value, value_value = stored_value(key_format), stored_value(value_format)
    key_block, value_block = key_format.values_per_block, value_format.values_per_block
    key_block_bytes, value_block_bytes = key_format.bytes_per_block, value_format.bytes_per_block
    rows = query_rows(
        d, key_format, NO_TABLE, variant.key_rotation, variant.value_rotation, variant.query_type, FLOAT32, 1
    )
    begin_row, turn_row, finish_row, lse_of = rows.begin, rows.turn, rows.finish, rows.lse
    wait_all = _ptx_copies.wait_for_copies(0)
    per_lane = -(-d // WARP)
    n_row = (WARPS + 1) * d
    n_small = 2 * WARPS
    is_paged, has_softcap = variant.is_paged, variant.has_softcap

    @device
    def over_lanes(value: Any) -> Any:
        for number in range(5):
            value = value + _ptx.shuffle_xor_f32(value, uint32(1 << number))
        return value

    @kernel(launch_bounds=(WARPS * WARP, 1))
    def attend(
        queries: Any,
        out: Any,
        lse: Any,
        keys: Any,
        values: Any,
        key_table: Any,
        value_table: Any,
        last_token: Any,
        pages: Any,
        gains: Any,
        n_seqs: Any,
        n_kv_heads: Any,
        per_head: Any,
        n_rows: Any,
        n_tokens: Any,
        first_token: Any,
        window: Any,
        q_seq: Any,
        q_head: Any,
        q_row: Any,
        k_seq: Any,
        k_head: Any,
        k_token: Any,
        v_seq: Any,
        v_head: Any,
        v_token: Any,
        page_stride: Any,
        page_log2: Any,
        key_table_head: Any,
        value_table_head: Any,
        query_factor: Any,
        softcap: Any,
        n_splits: Any,
        has_gains: Any,
        sparse_v: Any,
        tile_floor: Any,
    ) -> None:
        rows_memory = cuda.shared.array(n_row, float32)
        small_memory = cuda.shared.array(n_small, float32)
        o = cuda.local.array(per_lane, float32)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = uint32(thread & uint32(31)), uint32(thread >> uint32(5))
        q, small = shared_address(rows_memory, 0), shared_address(small_memory, 0)
        number = uint32(uint32(cuda.blockIdx.x) // uint32(n_splits))
        split = uint32(uint32(cuda.blockIdx.x) - uint32(number * uint32(n_splits)))
        row = uint32(number % uint32(n_rows))
        q_number = uint32(uint32(number // uint32(n_rows)) % uint32(n_kv_heads * per_head))
        seq = uint32(uint32(number // uint32(n_rows)) // uint32(n_kv_heads * per_head))
        head = uint32(q_number // uint32(per_head))
        if warp == uint32(0):
            address = queries + (uint64(seq) * q_seq + uint64(q_number) * q_head + uint64(row) * q_row)
            begin_row(address, q, lane)
            _ptx_copies.close_copies()
            wait_all()
            _ptx.sync_warp()
            turn_row(q, _ptx.float_from_bits(uint32(query_factor)), lane)
        cuda.syncthreads()
        seen = int32(_ptx.load_u32(last_token + uint64(uint32(uint32(seq * uint32(n_rows)) + row)) * uint64(4)))
        stop = int32(int32(seen + int32(1)) - int32(first_token))
        begin = int32(0)
        if window != uint64(0):
            begin = max(int32(stop - int32(window)), int32(0))
        stop = max(min(stop, int32(n_tokens)), begin)
        length = uint32(uint32(uint32(stop - begin) + uint32(n_splits - uint64(1))) // uint32(n_splits))
        token = uint32(uint32(begin) + uint32(split * length))
        end = uint32(min(uint32(token + length), uint32(stop)))
        token = uint32(token + warp)
        key_table = key_table + uint64(head) * key_table_head
        value_table = value_table + uint64(head) * value_table_head
        top, total = UNSEEN, _ZERO
        for m in range(per_lane):
            o[m] = _ZERO
        while token < end:
            entry, within = uint64(seq), uint64(token)
            if is_paged:
                entry, within = place_of_token(token, pages + uint64(seq) * page_stride * uint64(4), page_log2)
            key = keys + (entry * k_seq + uint64(head) * k_head + within * k_token)
            value = values + (entry * v_seq + uint64(head) * v_head + within * v_token)
            score = _ZERO
            for m in range(per_lane):
                j = uint32(lane + uint32(m * WARP))
                if j < uint32(d):
                    block, place = uint32(j // uint32(key_block)), uint32(j % uint32(key_block))
                    stored = key_value(key + uint64(uint32(block * uint32(key_block_bytes))), place, key_table)
                    score = score + read(q, j) * stored
            score = over_lanes(score)
            if has_softcap:
                cap = _ptx.float_from_bits(uint32(softcap))
                e = _ptx.power_of_two(score * _TWO_LOG2_E)
                score = cap - _TWO * cap * _ptx.reciprocal(_ONE + e)
            highest = max(top, score)
            shrink, weight = _ptx.power_of_two(top - highest), _ptx.power_of_two(score - highest)
            if score - top >= _ptx.float_from_bits(uint32(tile_floor)):  # a tile is one token here
                top, total = highest, total * shrink + weight
                if weight >= _ptx.float_from_bits(uint32(sparse_v)):
                    for m in range(per_lane):
                        j = uint32(lane + uint32(m * WARP))
                        if j < uint32(d):
                            block, place = uint32(j // uint32(value_block)), uint32(j % uint32(value_block))
                            address = value + uint64(uint32(block * uint32(value_block_bytes)))
                            o[m] = o[m] * shrink + weight * value_value(address, place, value_table)
            token = uint32(token + uint32(WARPS))
        # The warps' partial results, then their sum in the first row.
        mine = at(q, uint32(uint32(warp + uint32(1)) * uint32(4 * d)))
        for m in range(per_lane):
            j = uint32(lane + uint32(m * WARP))
            if j < uint32(d):
                write(mine, j, o[m])
        if lane == uint32(0):
            write(small, warp, top)
            write(small, uint32(warp + uint32(WARPS)), total)
        cuda.syncthreads()
        if warp == uint32(0):
            highest, all_of = UNSEEN, _ZERO
            for w in range(WARPS):
                highest = max(highest, read(small, uint32(w)))
            for w in range(WARPS):
                all_of = all_of + read(small, uint32(WARPS + w)) * _ptx.power_of_two(read(small, uint32(w)) - highest)
            for m in range(per_lane):
                j = uint32(lane + uint32(m * WARP))
                if j < uint32(d):
                    sum_of = _ZERO
                    for w in range(WARPS):
                        part = read(at(q, uint32(4 * d * (w + 1))), j)
                        sum_of = sum_of + part * _ptx.power_of_two(read(small, uint32(w)) - highest)
                    write(q, j, sum_of)
            _ptx.sync_warp()
            gain = _ONE
            if has_gains != uint64(0):
                gain = _ptx.load_f32(gains + uint64(q_number) * uint64(4))
            of_split = uint64(split) * (n_seqs * n_kv_heads * per_head * n_rows) + uint64(number)
            finish_row(q, all_of, gain, out + of_split * uint64(4 * d), lane)
            if lane == uint32(0):
                _ptx.store_f32(lse + of_split * uint64(4), lse_of(highest, all_of))

    return attend
