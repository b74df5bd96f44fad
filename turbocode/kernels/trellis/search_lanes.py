"""The Viterbi search on a GPU: the costs of all states in the registers of P threads, S states a thread.

Thread i of a group holds states S i to S i + S - 1: whole sets of 2**k predecessors, whose choice stays inside the
thread. The least cost of each of the 2**(L - k) sets, not those of the 2**L states, goes through shared memory to the
threads that hold the successors, which add the distance of their own states; so do the table's values, which never
leave the registers. Decisions, k bits a set, are collected over J steps and stored as one word a thread.

Arithmetic, order and ties are those of viterbi.py, so the paths are the same. search_tensor.py is faster, not exact.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.trellis.trellis import Trellis

THREADS = 128
STATES_PER_THREAD = {4: 4, 5: 4, 6: 8, 7: 8, 8: 16, 9: 16}  # by states_log2; 32 for more, and at least a set
WARP = 32

float32, uint32, uint64 = types.float32, types.uint32, types.uint64
_INFINITY = np.float32(np.inf)
_ZERO = np.float32(0.0)


class LaneSearch(NamedTuple):
    """group_threads : P; threads, per_block : threads and groups of a block; words : a group's shared memory

    search(samples, factor, weights, table, area, states, thread) -> cost of the best path, in every thread of the
    group.
    samples, weights : float32 (g,) in shared memory, samples times factor being searched; table : address in GPU memory
    area : `words` of shared memory; states : uint16 (g,) in shared memory, set to the path; thread : its number
    """

    group_threads: int
    threads: int
    per_block: int
    words: int
    search: Any


def _sync(is_one_warp: bool) -> Any:
    if is_one_warp:
        return _ptx.sync_warp

    @device
    def sync() -> None:
        cuda.syncthreads()

    return sync


def _chooser(bits: int) -> Any:
    """choose(c, first) -> (least, branch) of c[first:first + 2**bits], the lowest branch among equal costs."""

    @device
    def better(a: Any, i: Any, b: Any, j: Any) -> Any:
        is_less = b < a
        return (b if is_less else a), (j if is_less else i)

    if bits == 1:

        @device
        def choose(c: Any, first: Any) -> Any:
            return better(c[first], uint32(0), c[first + 1], uint32(1))

    elif bits == 2:

        @device
        def choose(c: Any, first: Any) -> Any:
            a, i = better(c[first], uint32(0), c[first + 1], uint32(1))
            b, j = better(c[first + 2], uint32(2), c[first + 3], uint32(3))
            return better(a, i, b, j)

    else:
        half = _chooser(bits - 1)
        n = 1 << (bits - 1)

        @device
        def choose(c: Any, first: Any) -> Any:
            a, i = half(c, first)
            b, j = half(c, first + n)
            return better(a, i, b, uint32(j + uint32(n)))

    return choose


@functools.cache
def lane_search(
    trellis: Trellis,
    g: int,
    approach: int,
    is_weighted: bool = False,
    per_thread: int = 0,
) -> LaneSearch:
    """The search of groups of g values; approach as in viterbi.py, 0 for free ends."""
    k, length = trellis.bits, trellis.states_log2
    n_held = per_thread or max(STATES_PER_THREAD.get(length, 32), 1 << k)
    n_threads = max(1, (1 << length) // n_held)
    n_sets, n_own, size = 1 << (length - k), n_held >> k, 1 << k
    assert n_held >= max(4, size) and n_sets >= 4 and n_threads <= THREADS, (trellis, n_held)
    n_steps = max(g, 2 * approach)
    step_bits = n_own * k
    per_word = 32 // step_bits
    n_buffers = 2 if length < 12 else 1
    n_words = -(-n_steps // per_word) * n_threads
    is_one_warp = n_threads <= WARP
    sync = _sync(is_one_warp)
    choose = _chooser(k)
    n_rounds = min(n_threads, WARP).bit_length() - 1
    n_warps = -(-n_threads // WARP)

    @device
    def step(c: Any, values: Any, x: Any, weight: Any, least: Any, i: Any, word: Any, shift: Any) -> Any:
        """One sample: the decisions of the thread's sets join `word`, and c becomes the costs of its states."""
        for own in range(n_own):
            cost, branch = choose(c, own * size)
            word = uint32(word | uint32(branch << uint32(uint32(shift) + uint32(own * k))))
            _ptx.store_shared_f32(at(least, uint32(uint32(i * uint32(n_own)) + uint32(own)) * uint32(4)), cost)
        sync()
        base = at(least, uint32(uint32(uint32(i * uint32(n_held)) & uint32(n_sets - 1)) * uint32(4)))
        for quad in range(n_held // 4):
            before = _ptx.load_shared_f32x4(at(base, uint32(16 * quad % (4 * n_sets))))
            for e in range(4):
                r = 4 * quad + e
                distance = _ptx.subtract(x, values[r])
                square = _ptx.multiply(distance, distance)
                if is_weighted:
                    square = _ptx.multiply(square, weight)
                c[r] = _ptx.add(before[e], square)
        return word

    @device
    def begin(c: Any, i: Any, overlap: Any, is_fixed: Any) -> None:
        for r in range(n_held):
            state = uint32(uint32(i * uint32(n_held)) + uint32(r))
            c[r] = _INFINITY if is_fixed and uint32(state >> uint32(k)) != overlap else _ZERO

    @device
    def advance(
        c: Any, values: Any, samples: Any, factor: Any, weights: Any, first: Any, count: Any, i: Any, area: Any
    ) -> None:
        """Consume `count` samples of the ring from `first` on, keeping the decisions in the area."""
        t, place, turn = uint32(first), at(area, uint32(uint32(i) * uint32(4))), uint32(0)
        word, shift = uint32(0), uint32(0)
        least = at(area, uint32(4 * n_words))
        n = uint32(0)
        while n < count:
            x = _ptx.multiply(_ptx.load_shared_f32(at(samples, uint32(t * uint32(4)))), factor)
            weight = _ZERO
            if is_weighted:
                weight = _ptx.load_shared_f32(at(weights, uint32(t * uint32(4))))
            word = step(c, values, x, weight, at(least, uint32(turn * uint32(4 * n_sets))), i, word, shift)
            if n_buffers == 2:
                turn = uint32(turn ^ uint32(1))
            else:
                sync()
            shift = uint32(shift + uint32(step_bits))
            if shift == uint32(per_word * step_bits):
                _ptx.store_shared_u32(place, word)
                place, word, shift = at(place, uint32(4 * n_threads)), uint32(0), uint32(0)
            t = uint32(t + uint32(1))
            if t == uint32(g):
                t = uint32(0)
            n = uint32(n + uint32(1))
        if shift != uint32(0):
            _ptx.store_shared_u32(place, word)

    @device
    def best(c: Any, i: Any, overlap: Any, is_fixed: Any, area: Any, thread: Any) -> Any:
        """(cost, state) of the cheapest allowed state, the lowest of equal ones, in every thread."""
        cost, state = _INFINITY, uint32(0xFFFFFFFF)
        for r in range(n_held):
            s = uint32(uint32(i * uint32(n_held)) + uint32(r))
            if (c[r] < cost or state == uint32(0xFFFFFFFF)) and (not is_fixed or uint32(s >> uint32(k)) == overlap):
                cost, state = c[r], s
        for number in range(n_rounds):
            other = _ptx.shuffle_xor_f32(cost, uint32(1 << number))
            other_state = _ptx.shuffle_xor(state, uint32(1 << number))
            if other < cost or (other == cost and other_state < state):
                cost, state = other, other_state
        if not is_one_warp:
            least = at(area, uint32(4 * n_words))
            warp = uint32(uint32(i) // uint32(WARP))
            if uint32(uint32(i) % uint32(WARP)) == uint32(0):
                _ptx.store_shared_f32(at(least, uint32(warp * uint32(8))), cost)
                _ptx.store_shared_u32(at(least, uint32(uint32(warp * uint32(8)) + uint32(4))), state)
            cuda.syncthreads()
            for other_warp in range(n_warps):
                other = _ptx.load_shared_f32(at(least, uint32(8 * other_warp)))
                other_state = _ptx.load_shared_u32(at(least, uint32(8 * other_warp + 4)))
                if other < cost or (other == cost and other_state < state):
                    cost, state = other, other_state
            cuda.syncthreads()
        return cost, state

    @device
    def trace(area: Any, state: Any, count: Any, stop: Any, states: Any, is_kept: Any) -> Any:
        """The state at step `stop`, from `state` at step count - 1 back; states on the way are stored if is_kept."""
        n = uint32(count - uint32(1))
        row = uint32(n // uint32(per_word))
        shift = uint32(uint32(n - row * uint32(per_word)) * uint32(step_bits))
        place = at(area, uint32(row * uint32(4 * n_threads)))
        while n > stop:
            if is_kept:
                _ptx.store_shared_u16(at(states, uint32(n * uint32(2))), state)
            chosen = uint32(state & uint32(n_sets - 1))
            word = _ptx.load_shared_u32(at(place, uint32(uint32(chosen // uint32(n_own)) * uint32(4))))
            position = uint32(shift + uint32(uint32(chosen % uint32(n_own)) * uint32(k)))
            branch = uint32(uint32(word >> position) & uint32(size - 1))
            state = uint32(uint32(chosen << uint32(k)) | branch)
            if shift == uint32(0):
                shift = uint32(per_word * step_bits)
                place = at(place, -4 * n_threads)
            shift = uint32(shift - uint32(step_bits))
            n = uint32(n - uint32(1))
        if is_kept:
            _ptx.store_shared_u16(at(states, uint32(n * uint32(2))), state)
        return state

    @device
    def search(samples: Any, factor: Any, weights: Any, table: Any, area: Any, states: Any, thread: Any) -> Any:
        c = cuda.local.array(n_held, float32)
        values = cuda.local.array(n_held, float32)
        i = uint32(thread & uint32(n_threads - 1))
        for r in range(n_held):
            place = uint32(uint32(uint32(i * uint32(n_held)) + uint32(r)) * uint32(4))
            values[r] = _ptx.load_f32(table + uint64(place))
        overlap = uint32(0)
        if approach > 0:
            begin(c, i, overlap, False)
            advance(c, values, samples, factor, weights, uint32((g - approach) % g), uint32(2 * approach), i, area)
            cost, state = best(c, i, overlap, False, area, thread)
            sync()
            overlap = uint32(trace(area, state, uint32(2 * approach), uint32(approach - 1), states, False) >> uint32(k))
            sync()
        begin(c, i, overlap, approach > 0)
        advance(c, values, samples, factor, weights, uint32(0), uint32(g), i, area)
        cost, state = best(c, i, overlap, approach > 0, area, thread)
        sync()
        if i == uint32(0):
            trace(area, state, uint32(g), uint32(0), states, True)
        sync()
        return cost

    block_threads = max(WARP, min(THREADS, 8 * n_threads))
    return LaneSearch(n_threads, block_threads, block_threads // n_threads, n_words + n_buffers * n_sets, search)
