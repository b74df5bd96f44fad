"""The kernel of prefill: attention of a long prompt over its packed cache, which is never decoded as a whole.

A block has 16 query rows a warp, all of one KV head: rows of the same token that share it lie side by side. It goes
through the tokens that any of them sees in tiles: the stored rows of the next tile are on their way while this one's
are decoded into float16 rows in shared memory (prefill_tile.py), which all warps then multiply with their queries and
probabilities on the tensor cores (prefill_products.py). Queries come rotated, and outputs go out rotated.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from turbocode.kernels import _ptx, _ptx_copies
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.attention.prefill_products import prefill_products
from turbocode.kernels.attention.prefill_tile import tile_decoder
from turbocode.kernels.attention.prefill_variant import (
    BOUNDS_BYTES,
    WARP,
    WARP_ROWS,
    PrefillVariant,
    prefill_layout,
    stage_bytes,
)
from turbocode.kernels.attention.shared_table import table_filler
from turbocode.kernels.attention.word_copy import WORD, copy_word

N_ARGS = 37
EVERY = 1 << 30  # more tokens than there are

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_LN2, _NEVER = np.float32(np.log(2.0)), np.float32(-np.inf)


@device
def _least(value: Any) -> Any:
    """The least int32 of the lanes whose numbers differ in any bit but the two lowest."""
    for number in range(2, 5):
        value = min(value, int32(_ptx.shuffle_xor(uint32(value), uint32(1 << number))))
    return int32(_ptx.uniform(uint32(value)))


@device
def _most(value: Any) -> Any:
    return int32(-_least(int32(-value)))


@functools.cache
def prefill_kernel(variant: PrefillVariant) -> Any:
    """The kernel of n_warps * 32 threads, a block for each n_warps * 16 rows of a KV head. Arguments, all uint64:

    queries, out : float16, rotated, with strides in bytes by sequence, head and row; lse : float32 (S, H, R)
    keys, values : rows of a head side by side, with strides in bytes by sequence (by page) and head
    key_words, value_words : tables (lookup.py), with a stride by head
    last_token : int32 (S, R), if has_last; else row r is the token at first_row + r; gains : float32 (H,), if has_gains
    pages : int32 (S, stride)
    """
    d, tile, n_warps, rows = variant.head_dim, variant.tile, variant.n_warps, variant.rows
    threads, row_bytes, row_words = WARP * n_warps, variant.row_bytes, d // 8
    places = prefill_layout(variant)
    key_words_at, value_words_at, queries_at, keys_at, values_at = places[:5]
    key_stages_at, value_stages_at, bounds_at, _ = places[5:]
    key_stage = stage_bytes(variant.key_format, d, tile)
    value_stage = stage_bytes(variant.value_format, d, tile)
    sides = (variant.key_format, variant.key_lookup), (variant.value_format, variant.value_lookup)
    is_late, is_paged = variant.is_late, variant.is_paged
    key_side, value_side = (
        tile_decoder(form, d, lookup, tile, row_bytes, threads, is_late, is_paged) for form, lookup in sides
    )
    fetch_keys, begin_keys, decode_keys, n_key_places = key_side.fetch, key_side.begin, key_side.decode, key_side.places
    fetch_values, begin_values, decode_values = value_side.fetch, value_side.begin, value_side.decode
    n_value_places = value_side.places
    begin_key_words, fill_key_words = table_filler(variant.key_format, variant.key_lookup, n_warps)
    begin_value_words, fill_value_words = table_filler(variant.value_format, variant.value_lookup, n_warps)
    key_copies, value_copies = (1 << table.copies_log2 for table in (variant.key_lookup, variant.value_lookup))
    products = prefill_products(d, tile, row_bytes)
    begin, score, cap, hide, weigh, add = (
        products.begin,
        products.score,
        products.cap,
        products.hide,
        products.weigh,
        products.add,
    )
    put = products.put
    query_place, key_place = products.query_place, products.key_place
    shares_table, has_softcap = variant.shares_table, variant.has_softcap
    n_scores, n_sums, warp_words = tile // 2, d // 2, WARP_ROWS * row_words
    bounds_bytes = BOUNDS_BYTES + 8 * WARP_ROWS
    wait_all = _ptx_copies.wait_for_copies(0)

    @device
    def spot_of(number: Any, shape: Any) -> Any:
        """(query head in its group, row) of a row of a KV head."""
        per_head, _ = shape
        row = uint32(number // uint32(per_head))
        return uint32(number - uint32(row * uint32(per_head))), row

    @device
    def seen_by(number: Any, seq: Any, shape: Any, seen: Any) -> Any:
        """(last, oldest) token of a row of a KV head; (-1, EVERY) if there is no such row or it sees none."""
        last_token, n_tokens, first_token, first_row, window, has_last = seen
        per_head, n_rows = shape
        last, oldest = int32(-1), int32(0)
        if number < uint32(per_head * n_rows):
            row = spot_of(number, shape)[1]
            if has_last != uint64(0):
                place = uint64(uint32(uint32(seq * uint32(n_rows)) + row)) * uint64(4)
                last = int32(int32(_ptx.load_u32(last_token + place)) - int32(first_token))
            else:
                last = int32(int32(first_row) + int32(row))
            if window != uint64(0):
                oldest = max(int32(int32(last - int32(window)) + int32(1)), int32(0))
            last = min(last, int32(int32(n_tokens) - int32(1)))
        if last < oldest:
            last, oldest = int32(-1), int32(EVERY)
        return last, oldest

    @device
    def fetch_queries(target: Any, first: Any, seq: Any, head: Any, shape: Any, source: Any, thread: Any) -> None:
        queries, q_seq, q_head, q_row = source
        per_head, n_rows = shape
        last = uint32(uint32(per_head * n_rows) - uint32(1))
        word = uint32(thread)
        while word < uint32(rows * row_words):
            row = uint32(word // uint32(row_words))
            byte = uint32(uint32(word - uint32(row * uint32(row_words))) * uint32(WORD))
            number = uint32(first + row)
            of_head, token = spot_of(uint32(min(number, last)), shape)
            place = uint64(seq) * q_seq + uint64(uint32(uint32(head * uint32(per_head)) + of_head)) * q_head
            address = queries + (place + uint64(token) * q_row + uint64(byte))
            n_left = int32(WORD) if number <= last else int32(0)
            copy_word(at(target, uint32(uint32(row * uint32(row_bytes)) + byte)), address, n_left)
            word = uint32(word + uint32(threads))

    @device
    def finish(
        o: Any, top: Any, total: Any, mine: Any, first: Any, seq: Any, head: Any, shape: Any, target: Any,
        n_heads: Any, lane: Any,
    ) -> None:  # fmt: skip
        """The warp's rows, the first of which is `first`, to global memory, by way of its queries' place."""
        out, o_seq, o_head, o_row, lse, gains, value_factor, has_gains = target
        per_head, n_rows = shape
        g, t = uint32(lane >> uint32(2)), uint32(lane & uint32(3))
        factor = cuda.local.array(2, float32)
        for half in range(2):
            total[half] = total[half] + _ptx.shuffle_xor_f32(total[half], uint32(1))
            total[half] = total[half] + _ptx.shuffle_xor_f32(total[half], uint32(2))
            factor[half] = _ZERO
            number = uint32(uint32(first + g) + uint32(8 * half))
            of_head, row = spot_of(number, shape)
            if number < uint32(per_head * n_rows):
                q_number = uint32(uint32(head * uint32(per_head)) + of_head)
                found = _NEVER
                if total[half] > _ZERO:
                    found = (top[half] + _ptx.logarithm_of_two(total[half])) * _LN2
                    gain = _ptx.float_from_bits(uint32(value_factor))
                    if has_gains != uint64(0):
                        gain = gain * _ptx.load_f32(gains + uint64(q_number) * uint64(4))
                    factor[half] = _ptx.divide(gain, total[half])
                if t == uint32(0):
                    place = (uint64(seq) * n_heads + uint64(q_number)) * n_rows + uint64(row)
                    _ptx.store_f32(lse + place * uint64(4), found)
        _ptx.sync_warp()
        put(at(mine, uint32(uint32(g * uint32(row_bytes)) + uint32(t * uint32(4)))), factor, o)
        _ptx.sync_warp()
        word = uint32(lane)
        while word < uint32(warp_words):
            local = uint32(word // uint32(row_words))
            byte = uint32(uint32(word - uint32(local * uint32(row_words))) * uint32(WORD))
            number = uint32(first + local)
            if number < uint32(per_head * n_rows):
                of_head, row = spot_of(number, shape)
                place = uint64(seq) * o_seq + uint64(uint32(uint32(head * uint32(per_head)) + of_head)) * o_head
                a, b, c, e = _ptx.load_shared_u32x4(at(mine, uint32(uint32(local * uint32(row_bytes)) + byte)))
                _ptx.store_u32x4(out + (place + uint64(row) * o_row + uint64(byte)), a, b, c, e)
            word = uint32(word + uint32(WARP))

    @kernel(launch_bounds=(threads, variant.blocks_at_once))
    def prefill(
        queries: Any, out: Any, lse: Any, keys: Any, values: Any, key_words: Any, value_words: Any, last_token: Any,
        gains: Any, pages: Any,
        n_seqs: Any, n_kv_heads: Any, per_head: Any, n_rows: Any, n_tokens: Any, first_token: Any, first_row: Any,
        window: Any,
        q_seq: Any, q_head: Any, q_row: Any, o_seq: Any, o_head: Any, o_row: Any,
        k_seq: Any, k_head: Any, v_seq: Any, v_head: Any, key_words_head: Any, value_words_head: Any,
        score_factor: Any, softcap: Any, value_factor: Any, has_last: Any, has_gains: Any, page_stride: Any,
        page_log2: Any,
    ) -> None:  # fmt: skip
        s = cuda.local.array(n_scores, float32)
        o = cuda.local.array(n_sums, float32)
        top, total = cuda.local.array(2, float32), cuda.local.array(2, float32)
        key_places = cuda.local.array(n_key_places, uint32)
        value_places = cuda.local.array(n_value_places, uint32)
        base = shared_address(cuda.shared.array(0, uint32), 0)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        warp = _ptx.uniform(uint32(thread >> uint32(5)))
        shape, source = (per_head, n_rows), (queries, q_seq, q_head, q_row)
        seen = last_token, n_tokens, first_token, first_row, window, has_last
        target = out, o_seq, o_head, o_row, lse, gains, value_factor, has_gains
        # The rows that see most first: blocks that take longest must not be the last to start.
        heads = uint32(n_seqs * n_kv_heads)
        n_groups = uint32(uint32(uint32(per_head * n_rows) + uint32(rows - 1)) // uint32(rows))
        group = uint32(uint32(cuda.blockIdx.x) // heads)
        rest = uint32(uint32(cuda.blockIdx.x) - uint32(group * heads))
        first = uint32(uint32(uint32(n_groups - uint32(1)) - group) * uint32(rows))
        seq = uint32(rest // uint32(n_kv_heads))
        head = uint32(rest - uint32(seq * uint32(n_kv_heads)))
        key_table, value_table = at(base, uint32(key_words_at)), at(base, uint32(value_words_at))
        key_stages, value_stages = at(base, uint32(key_stages_at)), at(base, uint32(value_stages_at))
        key_rows, value_rows = keys + uint64(head) * k_head, values + uint64(head) * v_head
        entries = uint64(0)
        if is_paged:
            entries = pages + uint64(seq) * page_stride * uint64(4)
        else:
            key_rows, value_rows = key_rows + uint64(seq) * k_seq, value_rows + uint64(seq) * v_seq
        key_paging, value_paging = (entries, k_seq, page_log2), (entries, v_seq, page_log2)
        first_of_warp = uint32(first + uint32(warp * uint32(WARP_ROWS)))
        number = uint32(first_of_warp + uint32(lane >> uint32(2)))
        last, oldest = seen_by(number, seq, shape, seen)
        last_8, oldest_8 = seen_by(uint32(number + uint32(8)), seq, shape, seen)
        # Tokens that some row of the warp sees, and those that all see; then those that some row of the block sees.
        warp_from, warp_to = _least(min(oldest, oldest_8)), int32(_most(max(last, last_8)) + int32(1))
        all_from, all_to = _most(max(oldest, oldest_8)), int32(_least(min(last, last_8)) + int32(1))
        bounds = at(base, uint32(bounds_at))
        own_bounds = at(bounds, uint32(warp * uint32(bounds_bytes)))
        if lane == uint32(0):
            _ptx.store_shared_u32x4(own_bounds, uint32(warp_from), uint32(warp_to), uint32(all_from), uint32(all_to))
        if uint32(lane & uint32(3)) == uint32(0):
            spot = at(own_bounds, uint32(uint32(BOUNDS_BYTES) + uint32(lane << uint32(1))))
            _ptx.store_shared_u32x2(spot, uint32(last), uint32(oldest))
            _ptx.store_shared_u32x2(at(spot, uint32(64)), uint32(last_8), uint32(oldest_8))
        cuda.syncthreads()
        seen_from, seen_to = int32(EVERY), int32(0)
        for number in range(n_warps):
            one, other = _ptx.load_shared_u32x2(at(bounds, uint32(number * bounds_bytes)))
            seen_from, seen_to = min(seen_from, int32(one)), max(seen_to, int32(other))
        stop = uint32(seen_to)
        token = uint32(uint32(min(seen_from, seen_to)) // uint32(tile) * uint32(tile))
        fetch_queries(at(base, uint32(queries_at)), first, seq, head, shape, source, thread)
        if token < stop:
            fetch_keys(key_stages, key_rows, key_paging, token, stop, thread)
            fetch_values(value_stages, value_rows, value_paging, token, stop, thread)
        _ptx_copies.close_copies()
        words = key_words + uint64(head) * key_words_head
        fill_key_words(key_table, begin_key_words(words, warp, lane), words, warp, lane)
        if not shares_table:
            words = value_words + uint64(head) * value_words_head
            fill_value_words(value_table, begin_value_words(words, warp, lane), words, warp, lane)
        key_tile, value_tile = at(base, uint32(keys_at)), at(base, uint32(values_at))
        begin(top, total, o)
        factor = _ptx.float_from_bits(uint32(score_factor))
        turn = uint32(0)
        while token < stop:
            wait_all()
            cuda.syncthreads()  # the stage has arrived from all threads, and all warps are done with the tile before
            next_turn = uint32(turn ^ uint32(1))
            ahead = uint32(token + uint32(tile))
            # Where a thread reads and writes is worked out anew each time: registers limit how many warps there are.
            here = _ptx.anchored(thread)
            if ahead < stop:
                stage = at(key_stages, uint32(next_turn * uint32(key_stage)))
                fetch_keys(stage, key_rows, key_paging, ahead, stop, here)
                stage = at(value_stages, uint32(next_turn * uint32(value_stage)))
                fetch_values(stage, value_rows, value_paging, ahead, stop, here)
            _ptx_copies.close_copies()
            key_copy = uint32(uint32(here & uint32(key_copies - 1)) << uint32(2))
            begin_keys(key_rows, here, key_places)
            stage = at(key_stages, uint32(turn * uint32(key_stage)))
            decode_keys(stage, key_tile, key_places, key_table, key_copy)
            here = _ptx.anchored(thread)
            value_copy = uint32(uint32(here & uint32(value_copies - 1)) << uint32(2))
            begin_values(value_rows, here, value_places)
            stage = at(value_stages, uint32(turn * uint32(value_stage)))
            decode_values(stage, value_tile, value_places, value_table, value_copy)
            cuda.syncthreads()
            here = _ptx.anchored(thread)
            lane, warp = uint32(here & uint32(31)), uint32(here >> uint32(5))
            own_bounds = at(bounds, uint32(warp * uint32(bounds_bytes)))
            from_here, to_here = _ptx.load_shared_u32x2(own_bounds)
            if int32(token) < int32(to_here) and int32(ahead) > int32(from_here):
                own = at(base, uint32(uint32(queries_at) + uint32(warp * uint32(WARP_ROWS * row_bytes))))
                score(at(own, query_place(lane)), at(key_tile, key_place(lane)), s)
                scale = factor
                if has_softcap:
                    cap(s, factor, _ptx.float_from_bits(uint32(softcap)))
                    scale = _ONE
                from_here, to_here = _ptx.load_shared_u32x2(at(own_bounds, uint32(8)))
                if int32(ahead) > int32(to_here) or int32(token) < int32(from_here):
                    spot = at(own_bounds, uint32(uint32(lane >> uint32(2)) << uint32(3)))
                    for half in range(2):
                        last, oldest = _ptx.load_shared_u32x2(at(spot, uint32(BOUNDS_BYTES + 64 * half)))
                        hide(s, half, token, lane, int32(last), int32(oldest))
                weigh(s, scale, top, total, o)
                add(s, at(value_tile, query_place(lane)), o)
            turn = next_turn
            token = ahead
        wait_all()
        n_heads = uint64(n_kv_heads * per_head)
        cuda.syncthreads()  # no copy to the place of the queries is still on its way
        lane, warp = uint32(thread & uint32(31)), uint32(thread >> uint32(5))
        own = at(base, uint32(uint32(queries_at) + uint32(warp * uint32(WARP_ROWS * row_bytes))))
        first_of_warp = uint32(first + uint32(warp * uint32(WARP_ROWS)))
        finish(o, top, total, own, first_of_warp, seq, head, shape, target, n_heads, lane)

    return prefill
