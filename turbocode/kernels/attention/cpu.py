"""Decode attention on the CPU: online softmax over tiles of tokens that are decoded into L1 and forgotten.

A task is one KV head of one sequence and one stretch of its tokens; every query head and row that reads the KV head
shares the decoded tile. The stretches are merged by their log-sum-exp (flash-decoding, arXiv 2311.01282). Sums may be
reordered by the compiler: results agree with the reference to float32 rounding, not bit for bit.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from turbocode.formats import Layout, MultirateFormat
from turbocode.formats.multirate_format import MAX_RATE, MULTIRATE_STATES_LOG2
from turbocode.kernels._cpu import float32_from_bits, prange, relaxed, relaxed_parallel, strict
from turbocode.kernels.attention.packed import PackedSide
from turbocode.kernels.attention.skipping import EVERYTHING, NEVER, Skipping
from turbocode.kernels.multirate.cpu import read_block
from turbocode.kernels.scalar.steps import dequantize_group, load_float16

TILE_TOKENS = 32  # a tile of keys or values of head_dim 128 is 16 KiB
MIN_SPLIT_TOKENS = 512
TASKS_PER_THREAD = 4

_BITSTREAM, _MULTIRATE = np.int64(Layout.BITSTREAM), np.int64(Layout.MULTIRATE)
_TABLE_SHAPE = (MAX_RATE + 1, 1 << MULTIRATE_STATES_LOG2)
_N_TABLE_VALUES = _TABLE_SHAPE[0] * _TABLE_SHAPE[1]
_NEVER, _ALL = np.float32(-np.inf), np.float32(NEVER)
_ZERO, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_EXP_MIN = np.float32(-87.0)  # below it exp(x) leaves the normal float32 range
_LOG2_E = np.float32(1.0 / math.log(2.0))
_LN2_HIGH = np.float32(0.693359375)  # 355 / 512: its product with a small whole number is exact
_LN2_LOW = np.float32(math.log(2.0) - 0.693359375)
_C2, _C3, _C4, _C5, _C6 = (np.float32(1.0 / math.factorial(n)) for n in (2, 3, 4, 5, 6))
_EXPONENT_BIAS = np.int32(127)


@strict
def exp_nonpositive(x: Any) -> Any:
    """exp(x) for float32 x <= 0 within 3e-7 relative; 0 below -87. Branch-free, so that loops over it vectorise."""
    clipped = max(x, _EXP_MIN)
    whole = np.floor(clipped * _LOG2_E + _HALF)
    r = clipped - whole * _LN2_HIGH - whole * _LN2_LOW
    tail = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))
    power = float32_from_bits(np.uint32(np.int32(whole) + _EXPONENT_BIAS) << np.uint32(23))
    return (_ONE + r + r * r * tail) * power if x >= _EXP_MIN else _ZERO


@strict
def _decode_tile(
    stored: Any,
    count: int,
    layout: int,
    bits: int,
    values_per_block: int,
    g: int,
    centroids: Any,
    pairs: Any,
    indices: Any,
    tile: Any,
    tile_pairs: Any,
) -> None:
    """Set tile[:count] (T, D) to the vectors stored (count, bytes) in the basis of the blocks.

    pairs : two centroids per entry, as uint64, or the rates of a multirate side; tile_pairs : tile as uint64 (T, D / 2)
    indices : uint32 (g,) scratch
    """
    if layout == _MULTIRATE:
        tables, rates = centroids[:_N_TABLE_VALUES].reshape(_TABLE_SHAPE), pairs.view(np.int64)
        for t in range(count):
            read_block(stored[t], rates, tables, centroids[_N_TABLE_VALUES + np.int64(stored[t, 0])], tile[t])
        return
    n_groups = tile.shape[1] // g
    group_bytes = stored.shape[1] // n_groups
    for group in range(n_groups):
        first, position = group * g, group * group_bytes
        if layout == _BITSTREAM and values_per_block == g:
            _look_up_pairs(stored, count, position, bits, pairs, tile_pairs, first // 2, g // 8)
            _scale_rows(stored, count, position, tile, first, g)
        else:
            for t in range(count):
                block, out = stored[t, position : position + group_bytes], tile[t, first : first + g]
                dequantize_group(block, layout, bits, values_per_block, centroids, indices, out)


@strict
def _scale_rows(stored: Any, count: int, position: int, tile: Any, first: int, g: int) -> None:
    """Multiply the g values of row t from `first` on by the norm at stored[t, position:]."""
    for t in range(count):
        norm = load_float16(stored[t], position)
        row = tile[t, first : first + g]
        for j in range(g):
            row[j] *= norm


@strict
def _look_up_pairs(
    stored: Any, count: int, position: int, bits: int, pairs: Any, out: Any, first: int, n_words: int
) -> None:
    """Set out[t, first:] from the index bits behind each norm: a word of eight indices is four pairs of centroids."""
    step, one, two, three = np.uint32(2 * bits), np.uint64(1), np.uint64(2), np.uint64(3)
    mask = np.uint32((np.uint32(1) << step) - np.uint32(1))
    for t in range(count):
        p, j = np.uint64(position + 2), np.uint64(first)
        for _ in range(n_words):
            word = np.uint32(stored[t, p]) | (np.uint32(stored[t, p + one]) << np.uint32(8))
            if bits > 2:
                word |= np.uint32(stored[t, p + two]) << np.uint32(16)
            if bits > 3:
                word |= np.uint32(stored[t, p + three]) << np.uint32(24)
            p += np.uint64(bits)
            out[t, j] = pairs[word & mask]
            out[t, j + one] = pairs[(word >> step) & mask]
            out[t, j + two] = pairs[(word >> (np.uint32(2) * step)) & mask]
            out[t, j + three] = pairs[(word >> (np.uint32(3) * step)) & mask]
            j += np.uint64(4)


@relaxed
def _score(q: Any, tile: Any, count: int, scale: Any, out: Any) -> None:
    """Set out[r, t] = scale * <q[r], tile[t]> for t < count; four rows share each load of the tile."""
    n_rows, d = q.shape
    r = 0
    while r + 4 <= n_rows:
        q0, q1, q2, q3 = q[r], q[r + 1], q[r + 2], q[r + 3]
        for t in range(count):
            k = tile[t]
            s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
            for j in range(d):
                s0 += q0[j] * k[j]
                s1 += q1[j] * k[j]
                s2 += q2[j] * k[j]
                s3 += q3[j] * k[j]
            out[r, t], out[r + 1, t], out[r + 2, t], out[r + 3, t] = s0 * scale, s1 * scale, s2 * scale, s3 * scale
        r += 4
    while r < n_rows:
        q0 = q[r]
        for t in range(count):
            k = tile[t]
            s0 = _ZERO
            for j in range(d):
                s0 += q0[j] * k[j]
            out[r, t] = s0 * scale
        r += 1


@relaxed
def _accumulate(p: Any, tile: Any, count: int, o: Any) -> None:
    """Add sum over t < count of p[t] * tile[t] to o; count is padded to a multiple of four with p = 0 by the caller."""
    for t in range(0, count, 4):
        p0, p1, p2, p3 = p[t], p[t + 1], p[t + 2], p[t + 3]
        v0, v1, v2, v3 = tile[t], tile[t + 1], tile[t + 2], tile[t + 3]
        for j in range(o.shape[0]):
            o[j] += p0 * v0[j] + p1 * v1[j] + p2 * v2[j] + p3 * v3[j]


@strict
def _softmax_step(s: Any, count: int, m: Any, total: Any, o: Any) -> Any:
    """Turn logits s[:count] into weights relative to the running maximum; rescale o; the new (maximum, sum)."""
    top = m
    for t in range(count):
        top = max(top, s[t])
    if top == _NEVER:
        for t in range(count):
            s[t] = _ZERO
        return m, total
    if top > m:
        shrink = exp_nonpositive(m - top) if m > _NEVER else _ZERO
        total *= shrink
        for j in range(o.shape[0]):
            o[j] *= shrink
    added = _ZERO
    for t in range(count):
        s[t] = exp_nonpositive(s[t] - top)
        added += s[t]
    return top, total + added


@strict
def _thin(p: Any, count: int, least: Any) -> Any:
    """Set weights p[:count] below `least` to 0; whether any other is left."""
    is_left = False
    for t in range(count):
        if p[t] < least:
            p[t] = _ZERO
        elif p[t] > _ZERO:
            is_left = True
    return is_left


@relaxed_parallel
def _attend(
    queries: Any,
    offsets: Any,
    last_token: Any,
    k_blocks: Any,
    k_layout: int,
    k_bits: int,
    k_values: int,
    k_group: int,
    k_centroids: Any,
    k_pairs: Any,
    v_blocks: Any,
    v_layout: int,
    v_bits: int,
    v_values: int,
    v_group: int,
    v_centroids: Any,
    v_pairs: Any,
    scale: Any,
    window: int,
    softcap: Any,
    sparse_v: Any,
    tile_floor: Any,
    n_splits: int,
    out: Any,
    tops: Any,
    totals: Any,
) -> None:
    """queries (S, J, G * R, D), offsets (S, J, G * R), and partial results (n_splits, S, J, G * R, ...).

    Row i of a head is query row i % R.
    """
    n_seqs, n_kv_heads, n_queries, d = queries.shape
    n_rows = last_token.shape[1]
    for task in prange(n_seqs * n_kv_heads * n_splits):
        split = task % n_splits
        head = (task // n_splits) % n_kv_heads
        seq = task // (n_splits * n_kv_heads)
        end, begin = 0, k_blocks.shape[2]
        for r in range(n_rows):
            end = max(end, last_token[seq, r] + 1)
            begin = min(begin, max(0, last_token[seq, r] + 1 - window) if window > 0 else 0)
        end = min(end, k_blocks.shape[2])
        length = (max(0, end - begin) + n_splits - 1) // n_splits
        first = begin + split * length
        stop = min(end, first + length)

        q = queries[seq, head]
        o, m, total = out[split, seq, head], tops[split, seq, head], totals[split, seq, head]
        o[:] = _ZERO
        m[:] = _NEVER
        total[:] = _ZERO
        tile = np.empty((TILE_TOKENS, d), np.float32)
        tile_pairs = tile.view(np.uint64)
        s = np.empty((n_queries, TILE_TOKENS), np.float32)
        indices = np.empty(max(k_group, v_group), np.uint32)
        k_table, v_table = head % k_centroids.shape[0], head % v_centroids.shape[0]
        for start in range(first, stop, TILE_TOKENS):
            count = min(TILE_TOKENS, stop - start)
            padded = (count + 3) // 4 * 4
            _decode_tile(
                k_blocks[seq, head, start : start + count],
                count,
                k_layout,
                k_bits,
                k_values,
                k_group,
                k_centroids[k_table],
                k_pairs[k_table],
                indices[:k_group],
                tile,
                tile_pairs,
            )
            _score(q, tile, count, scale, s)
            is_needed = False
            for r in range(n_queries):
                last = last_token[seq, r % n_rows]
                oldest = last + 1 - window if window > 0 else 0
                row = s[r]
                if softcap > _ZERO:
                    for t in range(count):
                        row[t] = softcap * np.tanh((row[t] + offsets[seq, head, r]) / softcap)
                if start + count - 1 > last or start < oldest:
                    for t in range(count):
                        if start + t > last or start + t < oldest:
                            row[t] = _NEVER
                if tile_floor > _ALL and m[r] > _NEVER and row[:count].max() - m[r] < tile_floor:
                    row[:padded] = _ZERO
                    continue
                m[r], total[r] = _softmax_step(row, count, m[r], total[r], o[r])
                if _thin(row, count, sparse_v):
                    is_needed = True
                for t in range(count, padded):
                    row[t] = _ZERO
            if not is_needed:
                continue
            _decode_tile(
                v_blocks[seq, head, start : start + count],
                count,
                v_layout,
                v_bits,
                v_values,
                v_group,
                v_centroids[v_table],
                v_pairs[v_table],
                indices[:v_group],
                tile,
                tile_pairs,
            )
            for t in range(count, padded):
                tile[t] = _ZERO
            for r in range(n_queries):
                _accumulate(s[r], tile, padded, o[r])


def _pairs(side: PackedSide) -> NDArray[np.uint64]:
    """Per table, entry i: centroids i % 2**bits and i >> bits side by side, as the uint64 that holds both.

    Of a multirate side: the rates of its runs.
    """
    if isinstance(side.block_format, MultirateFormat):
        return np.tile(np.array(side.block_format.rates, np.uint64), (len(side.centroids), 1))
    if side.block_format.layout is not Layout.BITSTREAM:
        return np.zeros((len(side.centroids), 1), np.uint64)
    low, high = np.meshgrid(np.arange(side.centroids.shape[1]), np.arange(side.centroids.shape[1]))
    both = np.stack((side.centroids[:, low.ravel()], side.centroids[:, high.ravel()]), axis=-1)
    return np.ascontiguousarray(both, dtype=np.float32).view(np.uint64)[..., 0]


def split_count(n_tasks: int, n_tokens: int) -> int:
    """Into how many stretches the tokens are cut, so that every thread has work: 1 and up."""
    wanted = math.ceil(TASKS_PER_THREAD * numba.get_num_threads() / max(1, n_tasks))
    return max(1, min(wanted, n_tokens // MIN_SPLIT_TOKENS))


def decode_attention(
    queries: NDArray[np.float32],
    keys: PackedSide,
    values: PackedSide,
    last_token: NDArray[np.int64],
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    offsets: NDArray[np.float32] | None = None,
    n_splits: int | None = None,
    skipping: Skipping = EVERYTHING,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(output, lse): float32 (S, H, R, D), (S, H, R), of queries (S, H, R, D) in the basis of the key blocks.

    The output is in the basis of the value blocks. last_token int64 (S, R); below 0 a row sees nothing and gives 0 and
    -inf, tokens behind the blocks are not counted. window counts tokens (0: all); softcap 0 is none; n_splits is chosen
    from the threads if None. offsets (S, H, R), before the scale, are added to the logits of a query under a softcap;
    without one they would only be added to lse, which is left to the caller.
    """
    n_seqs, n_heads, n_rows, d = queries.shape
    n_kv_heads, n_tokens = keys.blocks.shape[1:3]
    shape = (n_seqs, n_kv_heads, n_heads // n_kv_heads * n_rows)
    splits = n_splits or split_count(n_seqs * n_kv_heads, n_tokens)
    out = np.empty((splits, *shape, d), np.float32)
    tops, totals = np.empty((splits, *shape), np.float32), np.empty((splits, *shape), np.float32)
    sides = []
    for side in (keys, values):
        layout = side.block_format
        sides += [side.blocks, int(layout.layout), layout.bits, layout.values_per_block, layout.group_size]
        sides += [np.ascontiguousarray(side.centroids), _pairs(side)]
    _attend(
        np.ascontiguousarray(queries, dtype=np.float32).reshape(*shape, d),
        np.zeros(shape, np.float32) if offsets is None else (np.float32(scale) * offsets).reshape(shape),
        np.ascontiguousarray(last_token, dtype=np.int64),
        *sides,
        np.float32(scale),
        int(window),
        np.float32(softcap),
        np.float32(skipping.sparse_v),
        np.float32(skipping.tile_floor),
        splits,
        out,
        tops,
        totals,
    )
    merged, lse = merge_partials(out, tops, totals)
    return merged.reshape(queries.shape), lse.reshape(queries.shape[:3])


def merge_partials(
    out: NDArray[np.float32], tops: NDArray[np.float32], totals: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(output, lse) of partial results over the leading axis: sums out relative to maxima tops, weights totals."""
    top = tops.max(axis=0)
    shift = np.where(np.isfinite(top), top, 0)
    factors = np.exp(tops - shift)
    total = (totals * factors).sum(axis=0)
    merged = (out * factors[..., None]).sum(axis=0)
    np.divide(merged, total[..., None], out=merged, where=total[..., None] > 0)
    with np.errstate(divide="ignore"):
        lse = shift + np.log(total)
    return merged, lse.astype(np.float32)
