"""Multi-rate trellis coding on the CPU: the blocks of reference.encode in float32, and what they decode to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError
from turbocode.formats.multirate_format import MAX_RATE, MULTIRATE_STATES_LOG2
from turbocode.kernels._cpu import GROUPS_PER_TASK, prange, strict, strict_parallel
from turbocode.kernels.multirate.search import search_ring
from turbocode.kernels.multirate.side import Law, MultirateSide
from turbocode.kernels.multirate.step import LANES, MAX_WORDS, N_STATES
from turbocode.kernels.scalar.steps import dot, squared_error

MAX_SEARCHES = 4
_WHITENED = np.int64(Law.WHITENED)
_L, _MASK = np.uint32(MULTIRATE_STATES_LOG2), np.uint32(N_STATES - 1)
_ZERO, _ONE, _INFINITY = np.float32(0.0), np.float32(1.0), np.float32(np.inf)


@strict
def gain_byte(gain: Any, boundaries: Any) -> Any:
    """The number of boundaries (255,), ascending, that are not above the gain."""
    low, high = 0, boundaries.shape[0]
    while low < high:
        middle = (low + high) // 2
        if boundaries[middle] <= gain:
            low = middle + 1
        else:
            high = middle
    return low


@strict
def write_block(byte: int, states: Any, rates: Any, out: Any) -> None:
    """Set a block from its gain and its path (T,): step t writes the k newest bits of its state."""
    out[0] = np.uint8(byte)
    if byte == 0:
        out[1:] = np.uint8(0)
        return
    position, held, n_held = 1, np.uint32(0), np.uint32(0)
    for t in range(states.shape[0]):
        k = np.uint32(rates[t])
        held |= np.uint32(np.uint32(states[t]) >> (_L - k)) << n_held
        n_held += k
        while n_held >= np.uint32(8):
            out[position] = np.uint8(held & np.uint32(0xFF))
            held >>= np.uint32(8)
            n_held -= np.uint32(8)
            position += 1


@strict
def _fit(
    y: Any, scale: Any, rates: Any, tables: Any, states: Any, gains: Any, boundaries: Any, c: Any, terms: Any
) -> Any:
    """(byte, squared error) of the gain that suits the path `states` (T,) best."""
    for t in range(y.shape[0]):
        c[t] = tables[rates[t], states[t]] * scale[t]
    yc, cc = dot(y, c, terms), dot(c, c, terms)
    byte = gain_byte(yc / cc if yc > _ZERO and cc > _ZERO else _ZERO, boundaries)
    return byte, squared_error(y, c, gains[byte], terms)


@strict_parallel
def _encode_all(
    values: Any,
    channels: Any,
    rates: Any,
    scale: Any,
    law: int,
    tables: Any,
    gains: Any,
    boundaries: Any,
    before: int,
    behind: int,
    searches: int,
    out: Any,
) -> None:
    """Set out uint8 (n, bytes) to the blocks of values float32 (n, D)."""
    n, n_steps = values.shape[0], channels.shape[0]
    n_decided = max(n_steps, before + behind)
    for tile in prange((n + LANES - 1) // LANES):
        y, white = np.zeros((LANES, n_steps), np.float32), np.zeros((LANES, n_steps), np.float32)
        c, terms = np.empty(n_steps, np.float32), np.empty(n_steps, np.float32)
        samples, weights = np.zeros((n_steps, LANES), np.float32), np.empty((n_steps, 1), np.float32)
        costs, words = np.empty((2, N_STATES * LANES), np.float32), np.empty((n_decided, MAX_WORDS * LANES), np.int32)
        found, path = np.empty((n_decided, LANES), np.int64), np.empty(n_steps, np.int64)
        tried, best = np.zeros(LANES, np.int64), np.full(LANES, _INFINITY, np.float32)
        first, n_lanes = tile * LANES, min(LANES, n - tile * LANES)
        for t in range(n_steps):
            weights[t, 0] = scale[t] * scale[t]
        square = dot(scale, scale, terms)
        for lane in range(n_lanes):
            for t in range(n_steps):
                y[lane, t] = values[first + lane, channels[t]]
                white[lane, t] = y[lane, t] * (_ONE / scale[t])
            if law == _WHITENED:
                gain = np.sqrt(dot(white[lane], white[lane], terms) / np.float32(n_steps))
            else:
                gain = np.sqrt(dot(y[lane], y[lane], terms) / square)
            tried[lane] = gain_byte(gain, boundaries)
            out[first + lane, :] = np.uint8(0)
        for _ in range(searches):
            is_active = False
            for lane in range(n_lanes):
                inverse = _ONE / gains[tried[lane]] if tried[lane] > 0 else _ZERO
                is_active = is_active or tried[lane] > 0
                for t in range(n_steps):
                    samples[t, lane] = white[lane, t] * inverse
            if not is_active:
                break
            search_ring(samples, weights, rates, tables, before, behind, costs, words, found)
            for lane in range(n_lanes):
                if tried[lane] > 0:
                    for t in range(n_steps):
                        path[t] = found[t, lane]
                    byte, error = _fit(y[lane], scale, rates, tables, path, gains, boundaries, c, terms)
                    if error < best[lane]:
                        best[lane] = error
                        write_block(byte, path, rates, out[first + lane])
                    tried[lane] = byte if byte != tried[lane] else 0


@strict_parallel
def _affine_all(x: Any, before: Any, columns: Any, after: Any, out: Any) -> None:
    """Set out (n, D) to the sum over j, in turn, of (x_j - before_j) * columns[j], plus after."""
    n, d = x.shape
    for task in prange((n + GROUPS_PER_TASK - 1) // GROUPS_PER_TASK):
        for i in range(task * GROUPS_PER_TASK, min(n, (task + 1) * GROUPS_PER_TASK)):
            row = out[i]
            for channel in range(d):
                row[channel] = _ZERO
            for j in range(d):
                factor, column = x[i, j] - before[j], columns[j]
                for channel in range(d):
                    row[channel] += factor * column[channel]
            for channel in range(d):
                row[channel] += after[channel]


@strict_parallel
def _search_all(u: Any, weights: Any, rates: Any, tables: Any, before: int, behind: int, states: Any) -> None:
    """Set states int16 (n, T) to the best rings through u float32 (n, T)."""
    n, n_steps = u.shape
    n_decided = max(n_steps, before + behind)
    for tile in prange((n + LANES - 1) // LANES):
        samples, found = np.zeros((n_steps, LANES), np.float32), np.empty((n_decided, LANES), np.int64)
        costs, words = np.empty((2, N_STATES * LANES), np.float32), np.empty((n_decided, MAX_WORDS * LANES), np.int32)
        n_lanes = min(LANES, n - tile * LANES)
        for lane in range(n_lanes):
            for t in range(n_steps):
                samples[t, lane] = u[tile * LANES + lane, t]
        search_ring(samples, weights, rates, tables, before, behind, costs, words, found)
        for lane in range(n_lanes):
            for t in range(n_steps):
                states[tile * LANES + lane, t] = np.int16(found[t, lane])


@strict
def read_block(block: Any, run_rates: Any, tables: Any, gain: Any, out: Any) -> None:
    """Set out (D,) to the table values times gain that a block stands for; channels without bits are 0."""
    n_bytes = block.shape[0] - 1
    state = (np.uint32(block[n_bytes]) << np.uint32(2)) | (np.uint32(block[n_bytes - 1]) >> np.uint32(6))
    position = 1
    for run in range(run_rates.shape[0]):
        k = int(run_rates[run])
        start = 8 * run
        if k == 0:
            for j in range(8):
                out[start + j] = _ZERO
            continue
        word = np.uint64(0)
        for byte in range(k):
            word |= np.uint64(block[position + byte]) << np.uint64(8 * byte)
        position += k
        bits, up, table = np.uint32(k), _L - np.uint32(k), tables[k]
        mask = np.uint64((1 << k) - 1)
        for j in range(8):
            newest = np.uint32((word >> np.uint64(k * j)) & mask)
            state = np.uint32((state >> bits) | (newest << up))
            out[start + j] = table[np.int64(state)] * gain


@strict_parallel
def _decode_all(blocks: Any, run_rates: Any, sigma: Any, tables: Any, gains: Any, out: Any) -> None:
    """Set out float32 (n, D) to what blocks uint8 (n, bytes) stand for."""
    n = blocks.shape[0]
    for task in prange((n + GROUPS_PER_TASK - 1) // GROUPS_PER_TASK):
        for i in range(task * GROUPS_PER_TASK, min(n, (task + 1) * GROUPS_PER_TASK)):
            row = out[i]
            read_block(blocks[i], run_rates, tables, gains[np.int64(blocks[i, 0])], row)
            for j in range(row.shape[0]):
                row[j] *= sigma[j]


def _tables(side: MultirateSide) -> NDArray[np.float32]:
    assert side.tables.shape == (MAX_RATE + 1, N_STATES)
    return np.ascontiguousarray(side.tables)


def affine(
    x: NDArray[np.float32], before: NDArray[np.float32], columns: NDArray[np.float32], after: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(x - before) @ columns + after, float32 (n, D), added up in the order of the columns' rows."""
    out = np.empty(x.shape, np.float32)
    _affine_all(np.ascontiguousarray(x), before, columns, after, out)
    return out


def ring(u: NDArray[np.float32], side: MultirateSide) -> NDArray[np.int16]:
    """States (n, T) of the best rings through u (n, T), coded channels in standard deviations at gain 1."""
    u = np.ascontiguousarray(u, dtype=np.float32)
    states = np.empty(u.shape, np.int16)
    weights = (side.scale * side.scale)[:, None]
    _search_all(u, weights, side.rates, _tables(side), *side.approach(), states)
    return states


def encode(y: NDArray[np.float32], side: MultirateSide, searches: int = 1) -> NDArray[np.uint8]:
    """Blocks uint8 (n, bytes) of vectors y float32 (n, D) in the basis of the side, whose squares float32 can sum.

    searches : 1 to 4: at most so many paths are searched, each for the gain that suits the one before; the best is kept
    """
    if not 1 <= searches <= MAX_SEARCHES:
        raise OptionError(f"{searches} searches are not possible; 1 to {MAX_SEARCHES} are")
    y = np.ascontiguousarray(y, dtype=np.float32)
    out = np.empty((len(y), side.block_format.bytes_per_block), np.uint8)
    _encode_all(
        y,
        side.channels,
        side.rates,
        side.scale,
        int(side.law),
        _tables(side),
        side.gains.gains,
        side.gains.boundaries,
        *side.approach(),
        searches,
        out,
    )
    return out


def decode(blocks: NDArray[np.uint8], side: MultirateSide, *, is_scaled: bool = True) -> NDArray[np.float32]:
    """Vectors float32 (n, D) in the basis of the side of blocks uint8 (n, bytes).

    is_scaled=False leaves the channels' sigma out, as attention reads blocks: it is a factor of queries and outputs.
    """
    blocks = np.ascontiguousarray(blocks)
    out = np.empty((len(blocks), side.block_format.head_dim), np.float32)
    sigma = side.sigma if is_scaled else np.ones_like(side.sigma)
    _decode_all(blocks, np.array(side.block_format.rates), sigma, _tables(side), side.gains.gains, out)
    return out
