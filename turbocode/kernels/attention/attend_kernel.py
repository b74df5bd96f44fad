"""The fast kernel of decode attention: packed keys and values in, tensor cores, one launch.

A block takes its share of all heads' tokens (work_split.py). For each stretch of a head it lays out the rotated
queries, then its warps go through tiles of 32 tokens, each on its own: rows arrive in shared memory ahead
(tile_copy.py), keys are decoded in registers and multiplied with the queries (key_scores.py), scores become weights
(softmax.py), values are decoded and summed (value_sums.py). Keys are one tile ahead of values, so that two streams of
instructions that do not wait for each other are in flight. Warps, then blocks, add up their partial results
(combine.py, part_results.py), and outputs are rotated back.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from turbocode.kernels import _ptx, _ptx_copies
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.attention.attend_variant import (
    COLUMNS,
    TILE,
    WARP,
    AttendVariant,
    joined,
    rated_sides,
    row_bytes,
    scores_of,
    shared_layout,
    sums_of,
)
from turbocode.kernels.attention.part_results import part_settler, row_finisher
from turbocode.kernels.attention.query_rows import query_rows
from turbocode.kernels.attention.rated_memory import rated_memory
from turbocode.kernels.attention.shared_table import lane_place, table_filler, table_holder
from turbocode.kernels.attention.softmax import softmax
from turbocode.kernels.attention.tile_copy import BARRIER_BYTES, SLACK, arrivals, row_fetch, row_size
from turbocode.kernels.attention.token_order import is_spread, token_of
from turbocode.kernels.attention.work_split import agreed, first_place, seen_by, shares, work_split

N_ARGS = 42

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_ONE, _TWO = np.float32(1.0), np.float32(2.0)
_TWO_LOG2_E = np.float32(2.0 / np.log(2.0))


@functools.cache
def attend_kernel(variant: AttendVariant) -> Any:
    """The kernel of n_warps * 32 threads. Arguments, all uint64:

    queries, out, lse : with strides in bytes of q and out by sequence, head and row; lse float32 (S, H, R)
    keys, values : rows of a head side by side, with strides in bytes by sequence (by page) and head
    key_words, value_words : tables (lookup.py), with a stride by head; last_token int32 (S, R); pages int32 (S, stride)
    work : float32, two partial results a block; counters : uint32 (S, heads), zero before and after
    image : of multirate sides, image_bytes of tables (rate_tables.py); key_row, value_row : bytes of their rows
    """
    d, n_tiles = variant.head_dim, variant.n_column_tiles
    key_format, value_format = variant.key_format, variant.value_format
    places = shared_layout(variant)
    key_table_at, value_table_at, area_at, rows_at, laid_at = places[:5]
    tops_at, totals_at, flag_at, barriers_at, tokens_at, heads_at, _ = places[5:]
    n_warps, n_stages, threads = variant.n_warps, variant.n_stages, WARP * variant.n_warps
    chunk = TILE * n_warps
    spreads = is_spread(value_format, d)
    token_in_eight = token_of(spreads)
    scores, sums = scores_of(variant), sums_of(variant)
    n_blocks_of_value = d // value_format.values_per_block
    begin, hide, rise, weigh, end_of, reach, thin = softmax(n_tiles, sums.sums, n_blocks_of_value, TILE, spreads)
    combined = joined(variant)
    split = work_split(chunk, TILE)
    rows = query_rows(
        d,
        key_format,
        variant.key_lookup,
        variant.key_rotation,
        variant.value_rotation,
        variant.query_type,
        variant.out_type,
        n_tiles,
    )
    key_bytes, value_bytes = row_bytes(key_format, d), row_bytes(value_format, d)
    key_size, value_size = row_size(key_bytes), row_size(value_bytes)
    is_paged, is_late, is_bulk = variant.is_paged, variant.is_late, variant.is_bulk
    fetch_keys, keys_late = row_fetch(key_bytes, TILE, is_paged, is_late, is_bulk)
    fetch_values, values_late = row_fetch(value_bytes, TILE, is_paged, is_late, is_bulk)
    memory_of = rated_memory(d, rated_sides(variant), n_warps, heads_at)
    behind_image, begin_image, end_image = memory_of.behind, memory_of.begin, memory_of.end
    key_memory_of, value_memory_of, settle_heads = memory_of.of_keys, memory_of.of_values, memory_of.settle
    write_key_heads, write_value_heads = memory_of.write_keys, memory_of.write_values
    begin_keys, fill_keys = table_filler(key_format, variant.key_lookup, n_warps)
    begin_values, fill_values = table_filler(value_format, variant.value_lookup, n_warps)
    hold_keys, hold_values = table_holder(variant.key_lookup), table_holder(variant.value_lookup)
    place_of_keys = lane_place(key_format, variant.key_lookup)
    place_of_values = lane_place(value_format, variant.value_lookup)
    begin_barriers, close, wait, drain, leave = arrivals(n_stages, is_bulk)
    wait_for_queries = _ptx_copies.wait_for_copies(0 if is_bulk else n_stages)
    warp_barriers = BARRIER_BYTES * n_stages
    holds_queries = scores.query_words > 0
    n_query, n_scores, n_columns = max(1, scores.query_words * n_tiles), TILE // 8 * 2 * n_tiles, 2 * n_tiles
    n_o, n_norms, n_weights = sums.sums * n_tiles, TILE // 8 * n_blocks_of_value, 4 * n_blocks_of_value * n_tiles
    n_key_places, n_value_places = scores.places, sums.places
    start_keys, score = scores.start, scores.score
    start_values, add, load_norms = sums.start, sums.add, sums.load_norms
    columns_at_once = COLUMNS * n_tiles
    shares_table, tables_per_head = variant.shares_table, variant.tables_per_head
    has_softcap, has_skips = variant.has_softcap, variant.has_skips
    survey, locate = split.survey, split.locate
    begin_row, turn_row, lay_row, clear_row, load_fragments = (
        rows.begin,
        rows.turn,
        rows.lay,
        rows.clear,
        rows.fragments,
    )
    settle = part_settler(combined)
    finish = row_finisher(rows, d, columns_at_once, n_warps, variant.has_gain)

    @device
    def sync() -> None:
        cuda.syncthreads()

    @device
    def cap(s: Any, softcap: Any) -> None:
        """softcap log2(e) tanh(x) for scores x = logit / softcap."""
        for i in range(n_scores):
            e = _ptx.power_of_two(s[i] * _TWO_LOG2_E)
            s[i] = softcap - _TWO * softcap * _ptx.reciprocal(_ONE + e)

    @device
    def number_of(c: Any, lane: Any, first_column: Any) -> Any:
        within = uint32(uint32(8 * (c // 2) + c % 2) + uint32(uint32(lane & uint32(3)) << uint32(1)))
        return uint32(first_column + within)

    @device
    def is_used(c: Any, lane: Any, first_column: Any, n_used: Any) -> Any:
        """Whether the lane's column c is a query."""
        return number_of(c, lane, first_column) < n_used

    @device
    def column_of(c: Any, lane: Any, first_column: Any, n_used: Any) -> Any:
        """The number of the query of the lane's column c; of one that is used, if that is not."""
        return uint32(min(number_of(c, lane, first_column), uint32(n_used - uint32(1))))

    @device
    def begin_queries(
        q_rows: Any, source: Any, seq: Any, head: Any, first_column: Any, shape: Any, warp: Any, lane: Any
    ) -> None:
        _, per_head, n_rows = shape
        queries, q_seq, q_head, q_row = source
        row = uint32(warp)
        while row < uint32(columns_at_once) and uint32(first_column + row) < uint32(per_head * n_rows):
            column = uint32(first_column + row)
            of_head = uint32(column // uint32(n_rows))
            query_row = uint32(column - uint32(of_head * uint32(n_rows)))
            number = uint32(uint32(head * uint32(per_head)) + of_head)
            address = queries + (uint64(seq) * q_seq + uint64(number) * q_head + uint64(query_row) * q_row)
            begin_row(address, at(q_rows, uint32(row * uint32(4 * d))), lane)
            row = uint32(row + uint32(n_warps))

    @device
    def lay_queries(q_rows: Any, laid: Any, first_column: Any, n_used: Any, factor: Any, warp: Any, lane: Any) -> None:
        row = uint32(warp)
        while row < uint32(columns_at_once):
            if uint32(first_column + row) < n_used:
                place = at(q_rows, uint32(row * uint32(4 * d)))
                turn_row(place, _ptx.float_from_bits(uint32(factor)), lane)
                lay_row(place, row, laid, lane)
            else:
                clear_row(row, laid, lane)
            row = uint32(row + uint32(n_warps))

    @kernel(launch_bounds=(threads, variant.blocks_at_once))
    def attend(
        queries: Any, out: Any, lse: Any, keys: Any, values: Any, key_words: Any, value_words: Any, last_token: Any,
        pages: Any, work: Any, counters: Any, gains: Any,
        n_seqs: Any, n_kv_heads: Any, per_head: Any, n_rows: Any, n_tokens: Any, first_token: Any, window: Any,
        q_seq: Any, q_head: Any, q_row: Any, o_seq: Any, o_head: Any, o_row: Any,
        k_seq: Any, k_head: Any, v_seq: Any, v_head: Any, page_stride: Any, page_log2: Any,
        key_words_head: Any, value_words_head: Any, query_factor: Any, softcap: Any, value_factor: Any,
        sparse_v: Any, tile_floor: Any, image: Any, image_bytes: Any, key_row: Any, value_row: Any,
    ) -> None:  # fmt: skip
        q = cuda.local.array(n_query, uint32)
        s = cuda.local.array(n_scores, float32)
        o = cuda.local.array(n_o, float32)
        top = cuda.local.array(n_columns, float32)
        total = cuda.local.array(n_columns, float32)
        norms = cuda.local.array(n_norms, float32)
        weights = cuda.local.array(n_weights, uint32)
        key_places = cuda.local.array(n_key_places, uint32)
        value_places = cuda.local.array(n_value_places, uint32)
        front = shared_address(cuda.shared.array(0, uint32), 0)
        base = behind_image(front, image_bytes)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        warp = agreed(uint32(thread >> uint32(5)))
        begin_image(front, image, image_bytes, warp, lane)
        key_side = keys, k_seq, k_head, pages, page_stride, page_log2, key_row
        value_side = values, v_seq, v_head, pages, page_stride, page_log2, value_row
        key_bytes, value_bytes = key_size(key_row), value_size(value_row)
        key_stage = uint32(uint32(key_bytes * uint32(TILE)) + uint32(SLACK))
        value_stage = uint32(uint32(value_bytes * uint32(TILE)) + uint32(SLACK))
        source, shape = (queries, q_seq, q_head, q_row), (n_kv_heads, per_head, n_rows)
        target = out, o_seq, o_head, o_row, lse, gains, value_factor
        seen = last_token, n_rows, first_token, n_tokens, window
        shared_key_table, shared_value_table = at(base, uint32(key_table_at)), at(base, uint32(value_table_at))
        area, q_rows, laid = at(base, uint32(area_at)), at(base, uint32(rows_at)), at(base, uint32(laid_at))
        memory = area, q_rows, at(base, uint32(tops_at)), at(base, uint32(totals_at)), at(base, uint32(flag_at))
        own_keys = at(area, uint32(warp * uint32(uint32(key_stage + value_stage) * uint32(n_stages))))
        own_values = at(own_keys, uint32(key_stage * uint32(n_stages)))
        barriers = at(base, uint32(uint32(barriers_at) + uint32(warp * uint32(warp_barriers))))
        begin_barriers(barriers, lane)
        phases = uint32(0)
        lane_key_place, lane_value_place = place_of_keys(lane), place_of_values(lane)
        n_used = uint32(per_head * n_rows)
        column_groups = uint32(uint32(n_used + uint32(columns_at_once - 1)) // uint32(columns_at_once))
        heads = uint32(uint32(n_kv_heads) * column_groups)
        key_word, value_word = uint32(0), uint32(0)
        if not tables_per_head:
            key_word = begin_keys(key_words, warp, lane)
            if not shares_table:
                value_word = begin_values(value_words, warp, lane)
        token_table = at(base, uint32(tokens_at))
        n_units = survey(token_table, n_seqs, heads, warp, lane, seen, sync)
        n_blocks = uint32(min(uint32(cuda.gridDim.x), n_units))
        block, place, place_stop = uint32(cuda.blockIdx.x), uint32(0), uint32(0)
        split = shares(n_units, uint32(uint32(n_seqs) * heads), n_blocks)
        if block < split[3]:
            place, place_stop = first_place(block, split), first_place(uint32(block + uint32(1)), split)
        empty = agreed(split[0])
        is_first = uint32(1)
        while place < place_stop:
            seq, places_before, seen_from, seen_to, places = locate(
                token_table, place, empty, n_seqs, heads, lane, seen
            )
            head_group = uint32(uint32(place - places_before) // places)
            head_start = uint32(places_before + uint32(head_group * places))
            head_stop = uint32(head_start + places)
            first = max(place, uint32(head_start + empty))
            place = min(head_stop, place_stop)
            if first >= place:
                continue  # nothing but empty places
            head = uint32(head_group // column_groups)
            first_column = uint32(uint32(head_group - uint32(head * column_groups)) * uint32(columns_at_once))
            unit_of_head = agreed(uint32(uint32(first - head_start) - empty))
            start = uint32(uint32(seen_from) + uint32(unit_of_head * uint32(chunk)))
            stop = uint32(min(uint32(seen_to), uint32(start + uint32(uint32(place - first) * uint32(chunk)))))
            # What is small first: tiles of the first stages keep the memory busy while queries and tables are laid out.
            head_key_words = key_words + uint64(head) * key_words_head
            head_value_words = value_words + uint64(head) * value_words_head
            if tables_per_head:
                key_word = begin_keys(head_key_words, warp, lane)
                if not shares_table:
                    value_word = begin_values(head_value_words, warp, lane)
            key_table, key_place = hold_keys(shared_key_table, lane_key_place, head_key_words)
            value_table, value_place = hold_values(shared_value_table, lane_value_place, head_value_words)
            begin_queries(q_rows, source, seq, head, first_column, shape, warp, lane)
            _ptx_copies.close_copies()
            token = uint32(start + uint32(warp * uint32(TILE)))
            fetch_keys(own_keys, token, stop, barriers, lane, seq, head, key_side)
            close(barriers, lane, 1)
            for number in range(n_stages - 1):
                barrier = at(barriers, uint32((number + 1) * BARRIER_BYTES))
                ahead, behind = uint32(token + uint32((number + 1) * chunk)), uint32(token + uint32(number * chunk))
                stage = at(own_keys, uint32(key_stage * uint32(number + 1)))
                fetch_keys(stage, ahead, stop, barrier, lane, seq, head, key_side)
                stage = at(own_values, uint32(value_stage * uint32(number)))
                fetch_values(stage, behind, stop, barrier, lane, seq, head, value_side)
                close(barrier, lane, 0)
            if tables_per_head or is_first != uint32(0):
                fill_keys(shared_key_table, key_word, head_key_words, warp, lane)
                if not shares_table:
                    fill_values(shared_value_table, value_word, head_value_words, warp, lane)
            key_memory = key_memory_of(front, base, key_table, laid, warp)
            value_memory = value_memory_of(front, base, value_table, warp)
            hidden_from, hidden_to = int32(seen_to), int32(0)  # tokens that some row does not see
            for c in range(n_columns):
                last, oldest = seen_by(uint32(column_of(c, lane, first_column, n_used) % uint32(n_rows)), seq, seen)
                hidden_from, hidden_to = min(hidden_from, int32(last + int32(1))), max(hidden_to, oldest)
            for step in range(2):
                distance = uint32(1 << step)
                hidden_from = min(hidden_from, int32(_ptx.shuffle_xor(uint32(hidden_from), distance)))
                hidden_to = max(hidden_to, int32(_ptx.shuffle_xor(uint32(hidden_to), distance)))
            hidden_from, hidden_to = int32(agreed(uint32(hidden_from))), int32(agreed(uint32(hidden_to)))
            wait_for_queries()
            _ptx.sync_warp()
            lay_queries(q_rows, laid, first_column, n_used, query_factor, warp, lane)
            sync()
            if holds_queries:
                load_fragments(laid, lane, q)
            begin(top, total, o)
            key_late, late = keys_late(seq, head, key_side), values_late(seq, head, value_side)
            start_keys(key_late, key_bytes, lane, key_places)
            start_values(late, value_bytes, lane, value_places)
            norms_at = uint32(late + uint32(token_in_eight(uint32(lane >> uint32(2))) * value_bytes))
            key_turn, value_turn = own_keys, own_values  # the stages of this tile
            turn = uint32(0)
            phases = wait(barriers, phases, turn)
            _ptx.sync_warp()
            write_key_heads(key_turn, key_late, key_bytes, key_memory, lane)
            settle_heads()
            score(key_turn, key_places, key_memory, key_place, q, s)
            while token < stop:
                if has_softcap:
                    cap(s, _ptx.float_from_bits(uint32(softcap)))
                if int32(uint32(token + uint32(TILE))) > hidden_from or int32(token) < hidden_to:
                    for c in range(n_columns):  # looked up again: it is rare, and registers are not
                        row = uint32(column_of(c, lane, first_column, n_used) % uint32(n_rows))
                        last, oldest = seen_by(row, seq, seen)
                        hide(s, c, token, lane, last, oldest)
                turn_before = uint32(n_stages - 1) if turn == uint32(0) else uint32(turn - uint32(1))
                next_turn = uint32(turn + uint32(1)) if turn != uint32(n_stages - 1) else uint32(0)
                _ptx.sync_warp()  # all lanes are done with the stages that are filled now
                ahead = uint32(token + uint32(n_stages * chunk))
                barrier = at(barriers, uint32(turn * uint32(BARRIER_BYTES)))
                stage = at(own_keys, uint32(turn * key_stage))
                fetch_keys(stage, ahead, stop, barrier, lane, seq, head, key_side)
                stage = at(own_values, uint32(turn_before * value_stage))
                fetch_values(stage, uint32(ahead - uint32(chunk)), stop, barrier, lane, seq, head, value_side)
                close(barrier, lane, 0)
                phases = wait(at(barriers, uint32(next_turn * uint32(BARRIER_BYTES))), phases, next_turn)
                _ptx.sync_warp()
                value_turn = at(own_values, uint32(turn * value_stage))
                key_turn = at(own_keys, uint32(next_turn * key_stage))
                write_key_heads(key_turn, key_late, key_bytes, key_memory, lane)
                write_value_heads(value_turn, late, value_bytes, value_memory, lane)
                settle_heads()
                load_norms(value_turn, norms_at, value_memory, lane, norms)
                if has_skips:
                    for c in range(n_columns):
                        if not is_used(c, lane, first_column, n_used):
                            hide(s, c, token, lane, int32(-1), int32(0))  # else it might keep what nobody needs
                    is_near = uint32(0)
                    if reach(s, norms, top) >= _ptx.float_from_bits(uint32(tile_floor)):
                        is_near = uint32(1)
                    if agreed(_ptx.any_lane(is_near)) != uint32(0):
                        rise(s, norms, top, total, o)
                        weigh(s, norms, top, total, weights)
                        is_left = thin(weights, _ptx.float_from_bits(uint32(sparse_v)))
                        if agreed(_ptx.any_lane(is_left)) != uint32(0):
                            add(value_turn, value_places, value_memory, value_place, weights, o)
                else:
                    rise(s, norms, top, total, o)
                    weigh(s, norms, top, total, weights)
                    add(value_turn, value_places, value_memory, value_place, weights, o)
                score(key_turn, key_places, key_memory, key_place, q, s)  # of the next tile
                turn = next_turn
                token = uint32(token + uint32(chunk))
            phases = drain(barriers, phases, turn)
            end_of(total)
            sync()
            n_columns_here = uint32(min(uint32(n_used - first_column), uint32(columns_at_once)))
            n_pairs = uint32(uint32(n_columns_here + uint32(1)) >> uint32(1))
            stretch = block, unit_of_head, uint32(head_start + empty), head_stop, n_pairs
            counter = counters + uint64(uint32(uint32(seq * heads) + head_group)) * uint64(4)
            if settle(
                o, top, total, memory, stretch, split, (work, counter), warp, lane, sync
            ) != uint32(0):  # fmt: skip
                finish(memory, seq, head, first_column, shape, target, warp, lane)
            leave()
            sync()
            is_first = uint32(0)
        end_image()

    return attend
