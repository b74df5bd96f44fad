"""The fast kernel of decode attention: packed keys and values in, tensor cores, one launch.

A block takes its share of all heads' tokens (work_split.py). For each stretch of a head it lays out the rotated
queries, then its warps go through tiles of 32 tokens, each on its own: rows arrive in shared memory stages ahead
(tile_copy.py), keys are decoded in registers and multiplied with the queries (key_scores.py), scores become weights
(softmax.py), values are decoded and summed (value_sums.py). Warps, then blocks, add up their partial results
(combine.py), and outputs are rotated back.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.attention.combine import combiner
from turbocode.kernels.attention.key_scores import HALF_TILE, key_scores
from turbocode.kernels.attention.lookup import Lookup, table_filler
from turbocode.kernels.attention.query_rows import query_rows
from turbocode.kernels.attention.reading import has_norm
from turbocode.kernels.attention.softmax import softmax
from turbocode.kernels.attention.tile_copy import WORD, stage_bytes, tile_copier
from turbocode.kernels.attention.value_sums import value_sums
from turbocode.kernels.attention.work_split import block_of, first_unit, work_split
from turbocode.kernels.fwht.hadamard import Rotation

TILE = 32
WARP = 32
COLUMNS = 8  # of a column tile: query heads of a KV head, times rows
N_ARGS = 36

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_TWO_LOG2_E = np.float32(2.0 / np.log(2.0))


class AttendVariant(NamedTuple):
    """What the kernel is compiled for. Types are of fwht/lanes.py.

    shares_table : keys and values are looked up in one table; tables_per_head : each head has tables of its own
    n_column_tiles : of eight query columns that a block handles at once; n_warps, n_stages : of a block, of a warp
    is_paged : rows lie in pages; is_late : rows begin at any even address
    """

    key_format: BlockFormat
    value_format: BlockFormat
    key_rotation: Rotation
    value_rotation: Rotation
    head_dim: int
    key_lookup: Lookup
    value_lookup: Lookup
    shares_table: bool
    tables_per_head: bool
    n_column_tiles: int
    n_warps: int
    n_stages: int
    blocks_at_once: int
    query_type: int
    out_type: int
    is_paged: bool
    is_late: bool
    has_softcap: bool
    has_gain: bool


class SharedLayout(NamedTuple):
    """Bytes from the beginning of a block's shared memory."""

    key_table: int
    value_table: int
    area: int
    rows: int
    tops: int
    totals: int
    flag: int
    size: int


def is_direct(form: BlockFormat) -> bool:
    """Whether this kernel knows the format: blocks are shared out among lanes that take multiples of four values."""
    return form.values_per_block % HALF_TILE == 0


def stage_sizes(variant: AttendVariant) -> tuple[int, int]:
    """Bytes of a warp's stage of keys, and of values."""
    forms = variant.key_format, variant.value_format
    keys, values = (stage_bytes(form.bytes_per_vector(variant.head_dim), TILE) for form in forms)
    return keys, values


@functools.cache
def shared_layout(variant: AttendVariant) -> SharedLayout:
    """Where what lies; the area holds the stages, and afterwards partial results."""
    d, columns = variant.head_dim, COLUMNS * variant.n_column_tiles
    sums = value_sums(variant.value_format, d, variant.value_lookup, variant.n_column_tiles)
    joined = combiner(variant.value_format, d, sums.sums, variant.n_column_tiles, variant.n_warps)
    stages = sum(stage_sizes(variant)) * variant.n_stages * variant.n_warps
    value_table = variant.key_lookup.shared_bytes
    area = value_table + (0 if variant.shares_table else variant.value_lookup.shared_bytes)
    rows = area + max(stages, joined.warp_bytes)
    tops = rows + 4 * columns * d
    totals = tops + 4 * columns
    flag = totals + 4 * columns
    return SharedLayout(0, 0 if variant.shares_table else value_table, area, rows, tops, totals, flag, flag + WORD)


def part_floats(variant: AttendVariant) -> int:
    """float32 numbers of a partial result in global memory."""
    n_sums = value_sums(variant.value_format, variant.head_dim, variant.value_lookup, variant.n_column_tiles).sums
    joined = combiner(variant.value_format, variant.head_dim, n_sums, variant.n_column_tiles, variant.n_warps)
    return joined.part_floats


@functools.cache
def attend_kernel(variant: AttendVariant) -> Any:
    """The kernel of n_warps * 32 threads. Arguments, all uint64:

    queries, out, lse : with strides in bytes of q and out by sequence, head and row; lse float32 (S, H, R)
    keys, values : rows of a head side by side, with strides in bytes by sequence (by page) and head
    key_words, value_words : tables (lookup.py), with a stride by head; last_token int32 (S, R); pages int32 (S, stride)
    work : float32, two partial results a block; counters : uint32 (S, heads), zero before and after
    """
    d, n_tiles = variant.head_dim, variant.n_column_tiles
    key_format, value_format = variant.key_format, variant.value_format
    key_table_at, value_table_at, area_at, rows_at, tops_at, totals_at, flag_at, _ = shared_layout(variant)
    n_warps, n_stages, threads = variant.n_warps, variant.n_stages, WARP * variant.n_warps
    chunk = TILE * n_warps
    scores = key_scores(key_format, d, variant.key_lookup, n_tiles, TILE)
    sums = value_sums(value_format, d, variant.value_lookup, n_tiles)
    n_value_blocks = d // value_format.values_per_block
    soft = softmax(n_tiles, sums.sums, n_value_blocks, TILE)
    joined = combiner(value_format, d, sums.sums, n_tiles, n_warps)
    split = work_split(chunk, TILE)
    rows = query_rows(
        d, key_format, variant.key_rotation, variant.value_rotation, variant.query_type, variant.out_type, n_tiles
    )
    key_bytes, value_bytes = key_format.bytes_per_vector(d), value_format.bytes_per_vector(d)
    copy_keys = tile_copier(key_bytes, TILE, variant.is_late)
    copy_values = tile_copier(value_bytes, TILE, variant.is_late)
    key_stage, value_stage = stage_sizes(variant)
    stage = key_stage + value_stage
    fill_keys = table_filler(variant.key_lookup, threads)
    fill_values = table_filler(variant.value_lookup, threads)
    key_place_mask = (1 << variant.key_lookup.copies_log2) - 1
    value_place_mask = (1 << variant.value_lookup.copies_log2) - 1
    wait = _ptx.wait_for_copies(n_stages - 2)
    wait_all = _ptx.wait_for_copies(0)
    n_query, n_scores, n_columns = scores.query_words * n_tiles, TILE // 8 * 2 * n_tiles, 2 * n_tiles
    n_o, n_norms, n_weights = sums.sums * n_tiles, TILE // 8 * n_value_blocks, 2 * n_value_blocks * n_tiles
    n_key_places, n_value_places = scores.places, sums.places
    start_keys, score, start_values = scores.start, scores.score, sums.start
    halves = [sums.add(number) for number in range(TILE // HALF_TILE)]
    add_first, add_second = halves
    begin, hide, update, rescale, weigh, end_of = soft
    value_block = value_format.bytes_per_block
    columns_at_once = COLUMNS * n_tiles
    shares_table, tables_per_head, is_paged = variant.shares_table, variant.tables_per_head, variant.is_paged
    is_scaled = has_norm(value_format)
    has_softcap, has_gain, is_late = variant.has_softcap, variant.has_gain, variant.is_late
    part_bytes = 4 * joined.part_floats
    add_up, locate = split.total, split.locate
    load_row, clear_row, lay_fragments, finish_row, lse_of = rows
    merge_warps, publish, lay, gather = joined[2:]

    @device
    def sync() -> None:
        cuda.syncthreads()

    @device
    def row_address(
        base: Any,
        seq: Any,
        head: Any,
        token: Any,
        row_bytes: Any,
        seq_stride: Any,
        head_stride: Any,
        pages: Any,
        page_stride: Any,
        page_log2: Any,
    ) -> Any:
        """The global address of a token's row."""
        row, within = uint64(seq), uint64(token)
        if is_paged:
            entry = uint64(seq) * page_stride + uint64(uint32(token >> uint32(page_log2)))
            row = uint64(_ptx.load_u32(pages + entry * uint64(4)))
            within = uint64(uint32(token & uint32(uint32(uint32(1) << uint32(page_log2)) - uint32(1))))
        return base + (row * seq_stride + uint64(head) * head_stride + within * uint64(row_bytes))

    @device
    def fetch(
        tile: Any,
        token: Any,
        stop: Any,
        lane: Any,
        keys: Any,
        values: Any,
        seq: Any,
        head: Any,
        k_seq: Any,
        k_head: Any,
        v_seq: Any,
        v_head: Any,
        pages: Any,
        page_stride: Any,
        page_log2: Any,
    ) -> None:
        """Start copying the rows of a tile of keys and values, of which those before `stop` are there."""
        if token < stop:
            second = token
            if is_paged and uint32(token + uint32(HALF_TILE)) < stop:
                second = uint32(token + uint32(HALF_TILE))
            left = int32(stop - token)
            a = row_address(keys, seq, head, token, key_bytes, k_seq, k_head, pages, page_stride, page_log2)
            b = a
            if is_paged:
                b = row_address(keys, seq, head, second, key_bytes, k_seq, k_head, pages, page_stride, page_log2)
                b = b - uint64(uint32(second - token)) * uint64(key_bytes)
            late = uint32(a & uint64(WORD - 1)) if is_late else uint32(0)
            n_bytes = int32(int32(left * int32(key_bytes)) + int32(late))
            copy_keys(tile, a - uint64(late), b - uint64(late), n_bytes, lane)
            a = row_address(values, seq, head, token, value_bytes, v_seq, v_head, pages, page_stride, page_log2)
            b = a
            if is_paged:
                b = row_address(values, seq, head, second, value_bytes, v_seq, v_head, pages, page_stride, page_log2)
                b = b - uint64(uint32(second - token)) * uint64(value_bytes)
            late = uint32(a & uint64(WORD - 1)) if is_late else uint32(0)
            n_bytes = int32(int32(left * int32(value_bytes)) + int32(late))
            copy_values(at(tile, uint32(key_stage)), a - uint64(late), b - uint64(late), n_bytes, lane)
        _ptx.close_copies()

    @device
    def cap(s: Any, softcap: Any) -> None:
        """softcap log2(e) tanh(x) for scores x = logit / softcap."""
        for i in range(n_scores):
            e = _ptx.power_of_two(s[i] * _TWO_LOG2_E)
            s[i] = softcap - _TWO * softcap * _ptx.reciprocal(_ONE + e)

    @kernel(launch_bounds=(threads, variant.blocks_at_once))
    def attend(
        queries: Any,
        out: Any,
        lse: Any,
        keys: Any,
        values: Any,
        key_words: Any,
        value_words: Any,
        last_token: Any,
        pages: Any,
        work: Any,
        counters: Any,
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
        o_seq: Any,
        o_head: Any,
        o_row: Any,
        k_seq: Any,
        k_head: Any,
        v_seq: Any,
        v_head: Any,
        page_stride: Any,
        page_log2: Any,
        key_words_head: Any,
        value_words_head: Any,
        query_factor: Any,
        softcap: Any,
        value_factor: Any,
    ) -> None:
        memory = cuda.shared.array(0, uint32)
        q = cuda.local.array(n_query, uint32)
        s = cuda.local.array(n_scores, float32)
        o = cuda.local.array(n_o, float32)
        top = cuda.local.array(n_columns, float32)
        total = cuda.local.array(n_columns, float32)
        unit = cuda.local.array(1, float32)
        norms = cuda.local.array(n_norms, float32)
        weights = cuda.local.array(n_weights, uint32)
        last = cuda.local.array(n_columns, int32)
        oldest = cuda.local.array(n_columns, int32)
        key_places = cuda.local.array(n_key_places, uint32)
        value_places = cuda.local.array(n_value_places, uint32)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = uint32(thread & uint32(31)), uint32(thread >> uint32(5))
        base = shared_address(memory, 0)
        key_table, value_table = at(base, uint32(key_table_at)), at(base, uint32(value_table_at))
        area, q_rows = at(base, uint32(area_at)), at(base, uint32(rows_at))
        tops, totals, flag = at(base, uint32(tops_at)), at(base, uint32(totals_at)), at(base, uint32(flag_at))
        mine = at(area, uint32(warp * uint32(n_stages * stage)))
        key_place = uint32(uint32(lane & uint32(key_place_mask)) << uint32(2))
        value_place = uint32(uint32(lane & uint32(value_place_mask)) << uint32(2))
        column_groups = uint32(
            uint32(uint32(uint32(per_head) * uint32(n_rows)) + uint32(columns_at_once - 1)) // uint32(columns_at_once)
        )
        heads = uint32(uint32(n_kv_heads) * column_groups)
        n_units = add_up(n_seqs, heads, lane, last_token, n_rows, first_token, n_tokens, window)
        n_blocks = uint32(min(uint32(cuda.gridDim.x), n_units))
        block = uint32(cuda.blockIdx.x)
        unit_now, unit_stop = uint32(0), uint32(0)
        if block < n_blocks:
            unit_now = first_unit(block, n_units, n_blocks)
            unit_stop = first_unit(uint32(block + uint32(1)), n_units, n_blocks)
        if not tables_per_head and unit_now < unit_stop:
            fill_keys(key_table, key_words, thread)
            if not shares_table:
                fill_values(value_table, value_words, thread)
        is_first = uint32(1)
        while unit_now < unit_stop:
            seq, units_before, seen_from, seen_to, units = locate(
                unit_now, n_seqs, heads, lane, last_token, n_rows, first_token, n_tokens, window
            )
            of_seq = uint32(unit_now - units_before)
            head_group = uint32(of_seq // units)
            unit_of_head = uint32(of_seq - uint32(head_group * units))
            head = uint32(head_group // column_groups)
            first_column = uint32(uint32(head_group - uint32(head * column_groups)) * uint32(columns_at_once))
            count = uint32(min(uint32(units - unit_of_head), uint32(unit_stop - unit_now)))
            start = uint32(uint32(seen_from) + uint32(unit_of_head * uint32(chunk)))
            stop = uint32(min(uint32(seen_to), uint32(start + uint32(count * uint32(chunk)))))
            # What the tiles of the first stages need is under way while the queries are laid out.
            token = uint32(start + uint32(warp * uint32(TILE)))
            for number in range(n_stages - 1):
                fetch(
                    at(mine, uint32(number * stage)),
                    uint32(token + uint32(number * chunk)),
                    stop,
                    lane,
                    keys,
                    values,
                    seq,
                    head,
                    k_seq,
                    k_head,
                    v_seq,
                    v_head,
                    pages,
                    page_stride,
                    page_log2,
                )
            if tables_per_head:
                fill_keys(key_table, key_words + uint64(head) * key_words_head, thread)
                if not shares_table:
                    fill_values(value_table, value_words + uint64(head) * value_words_head, thread)
            n_used = uint32(uint32(per_head) * uint32(n_rows))
            row = warp
            while row < uint32(columns_at_once):
                column = uint32(first_column + row)
                place = at(q_rows, uint32(row * uint32(4 * d)))
                if column < n_used:
                    of_head = uint32(column // uint32(n_rows))
                    query_row = uint32(column - uint32(of_head * uint32(n_rows)))
                    q_number = uint32(uint32(head * uint32(per_head)) + of_head)
                    address = queries + (uint64(seq) * q_seq + uint64(q_number) * q_head + uint64(query_row) * q_row)
                    load_row(address, place, _ptx.float_from_bits(uint32(query_factor)), lane)
                else:
                    clear_row(place, lane)
                row = uint32(row + uint32(n_warps))
            hidden_from, hidden_to = int32(seen_to), int32(0)  # tokens that some row does not see
            for c in range(n_columns):
                column = uint32(first_column + uint32(8 * (c // 2) + c % 2))
                column = uint32(column + uint32(uint32(lane & uint32(3)) << uint32(1)))
                query_row = uint32(uint32(min(column, uint32(n_used - uint32(1)))) % uint32(n_rows))
                seen = _ptx.load_u32(last_token + uint64(uint32(uint32(seq * uint32(n_rows)) + query_row)) * uint64(4))
                last[c] = min(int32(int32(seen) - int32(first_token)), int32(int32(n_tokens) - int32(1)))
                oldest[c] = int32(0)
                if window != uint64(0):
                    oldest[c] = int32(int32(int32(seen) - int32(first_token)) + int32(int32(1) - int32(window)))
                hidden_from = min(hidden_from, int32(last[c] + int32(1)))
                hidden_to = max(hidden_to, oldest[c])
            for step in range(2):
                distance = uint32(1 << step)
                hidden_from = min(hidden_from, int32(_ptx.shuffle_xor(uint32(hidden_from), distance)))
                hidden_to = max(hidden_to, int32(_ptx.shuffle_xor(uint32(hidden_to), distance)))
            sync()
            lay_fragments(q_rows, lane, q)
            begin(top, total, o, unit)
            late = late_values = uint32(0)
            if is_late:
                late = uint32((keys + uint64(seq) * k_seq + uint64(head) * k_head) & uint64(WORD - 1))
                late_values = uint32((values + uint64(seq) * v_seq + uint64(head) * v_head) & uint64(WORD - 1))
            start_keys(late, lane, key_places)
            late_values = uint32(late_values + uint32(key_stage))
            start_values(late_values, lane, value_places)
            norms_at = uint32(late_values + uint32(uint32(lane >> uint32(2)) * uint32(value_bytes)))
            turn = uint32(0)
            while token < stop:
                wait()
                _ptx.sync_warp()
                ahead = uint32(turn + uint32(n_stages - 1))
                if ahead >= uint32(n_stages):
                    ahead = uint32(ahead - uint32(n_stages))
                fetch(
                    at(mine, uint32(ahead * uint32(stage))),
                    uint32(token + uint32((n_stages - 1) * chunk)),
                    stop,
                    lane,
                    keys,
                    values,
                    seq,
                    head,
                    k_seq,
                    k_head,
                    v_seq,
                    v_head,
                    pages,
                    page_stride,
                    page_log2,
                )
                tile = at(mine, uint32(turn * uint32(stage)))
                score(tile, key_places, key_table, key_place, q, s)
                if has_softcap:
                    cap(s, _ptx.float_from_bits(uint32(softcap)))
                if int32(uint32(token + uint32(TILE))) > hidden_from or int32(token) < hidden_to:
                    hide(s, token, lane, last, oldest)
                update(s, top, total, o)
                for i in range(TILE // 8):
                    for block_number in range(n_value_blocks):
                        offset = 8 * i * value_bytes + block_number * value_block
                        norm = _ONE
                        if is_scaled:
                            norm = _ptx.low_half(_ptx.load_shared_u16(at(tile, uint32(norms_at + uint32(offset)))))
                        norms[n_value_blocks * i + block_number] = norm
                rescale(norms, unit, o)
                weigh(0, s, norms, weights)
                add_first(tile, value_places, value_table, value_place, weights, o)
                weigh(1, s, norms, weights)
                add_second(tile, value_places, value_table, value_place, weights, o)
                turn = uint32(turn + uint32(1))
                if turn == uint32(n_stages):
                    turn = uint32(0)
                token = uint32(token + uint32(chunk))
            wait_all()
            end_of(total, o, unit)
            sync()
            merge_warps(o, top, total, area, warp, lane, sync)
            # A head that is all this block's is finished; a part waits for the others in global memory.
            head_start = uint32(unit_now - unit_of_head)
            first_block = block_of(head_start, n_units, n_blocks)
            last_block = block_of(uint32(uint32(head_start + units) - uint32(1)), n_units, n_blocks)
            n_parts = uint32(uint32(last_block - first_block) + uint32(1))
            is_mine = uint32(1)
            if n_parts == uint32(1):
                if warp == uint32(0):
                    lay(q_rows, tops, totals, o, top, total, lane)
                sync()
            else:
                slot = uint32(uint32(block << uint32(1)) + uint32(uint32(1) - is_first))
                if warp == uint32(0):
                    publish(work + uint64(slot) * uint64(part_bytes), o, top, total, lane)
                    _ptx.fence()
                    _ptx.sync_warp()
                    if lane == uint32(0):
                        counter = counters + uint64(uint32(uint32(seq * heads) + head_group)) * uint64(4)
                        arrived = _ptx.add_u32(counter, uint32(1))
                        if arrived == uint32(n_parts - uint32(1)):
                            _ptx.store_u32(counter, uint32(0))
                            _ptx.fence()
                        _ptx.store_shared_u32(flag, arrived)
                sync()
                is_mine = uint32(1 if _ptx.load_shared_u32(flag) == uint32(n_parts - uint32(1)) else 0)
                if is_mine != uint32(0):
                    own_start = first_unit(first_block, n_units, n_blocks)
                    first_slot = uint32(uint32(first_block << uint32(1)) + uint32(1 if own_start < head_start else 0))
                    second_slot = uint32(uint32(first_block + uint32(1)) << uint32(1))
                    gather(q_rows, tops, totals, area, work, first_slot, second_slot, n_parts, thread, sync)
                sync()
            if is_mine != uint32(0):
                row = warp
                while row < uint32(columns_at_once) and uint32(first_column + row) < n_used:
                    column = uint32(first_column + row)
                    of_head = uint32(column // uint32(n_rows))
                    query_row = uint32(column - uint32(of_head * uint32(n_rows)))
                    q_number = uint32(uint32(head * uint32(per_head)) + of_head)
                    gain = _ptx.float_from_bits(uint32(value_factor))
                    if has_gain:
                        gain = gain * _ptx.load_f32(gains + uint64(q_number) * uint64(4))
                    row_top = _ptx.load_shared_f32(at(tops, uint32(row * uint32(4))))
                    row_total = _ptx.load_shared_f32(at(totals, uint32(row * uint32(4))))
                    address = out + (uint64(seq) * o_seq + uint64(q_number) * o_head + uint64(query_row) * o_row)
                    finish_row(at(q_rows, uint32(row * uint32(4 * d))), row_total, gain, address, lane)
                    if lane == uint32(0):
                        number = uint64(uint64(seq) * (n_kv_heads * per_head) + uint64(q_number)) * n_rows
                        _ptx.store_f32(lse + (number + uint64(query_row)) * uint64(4), lse_of(row_top, row_total))
                    row = uint32(row + uint32(n_warps))
            sync()
            is_first = uint32(0)
            unit_now = uint32(unit_now + count)

    return attend
