"""The Viterbi algorithm for LANES groups side by side, free or around a ring. Same paths as reference.viterbi.

samples float32 (g, LANES); weights of their squared distances likewise, or None
costs float32 (2**L * LANES,), words int32 (g, n_words * LANES): scratch
tables float32 (n_phases, 2**L): the table in the order in which step t, of phase t mod n_phases, meets it
branches: k, 2**k times, as a tuple, whose length compiles the kernel for k
"""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.kernels._cpu import strict
from turbocode.kernels.trellis.add_compare_select import LANES, add_compare_select

FREE = -1  # as overlap: the ends of the path are free
_INFINITY = np.float32(np.inf)
_ZERO = np.float32(0.0)


@strict
def _place(state: Any, n_steps: int, k: int, length: int) -> Any:
    """Where the cost of a state lies after n_steps: its bits turned left by k n_steps."""
    turn = (k * n_steps) % length
    return ((state << turn) | (state >> (length - turn))) & ((1 << length) - 1)


@strict
def _advance(
    samples: Any,
    weights: Any,
    start: int,
    count: int,
    tables: Any,
    branches: Any,
    length: int,
    per_word: Any,
    costs: Any,
    words: Any,
) -> None:
    """Consume `count` samples of the ring from `start` on; words[i] holds the decisions of step i."""
    k, g, n_phases = branches[0], samples.shape[0], tables.shape[0]
    n_words, blocks_per_word = (1 << (length - k)) // per_word[0], per_word[1]
    phase, t = 0, start
    for i in range(count):
        table, word, oldest = tables[phase], words[i], k * phase % length
        if weights is None:
            add_compare_select(costs, table, samples[t], None, word, branches, length, oldest, n_words, blocks_per_word)
        else:
            add_compare_select(
                costs, table, samples[t], weights[t], word, branches, length, oldest, n_words, blocks_per_word
            )
        phase = phase + 1 if phase + 1 < n_phases else 0
        t = t + 1 if t + 1 < g else 0


@strict
def _begin(costs: Any, overlap: Any, k: int) -> None:
    """Set the costs before the first step: 0 where a path may begin, infinity elsewhere."""
    for state in range(costs.shape[0] // LANES):
        for lane in range(LANES):
            is_allowed = overlap[lane] == FREE or (state >> k) == overlap[lane]
            costs[state * LANES + lane] = _ZERO if is_allowed else _INFINITY


@strict
def _best_states(costs: Any, n_steps: int, k: int, length: int, overlap: Any, best: Any, last: Any) -> None:
    """Set last (LANES,) to the allowed state of least cost, the lowest among equal ones, and best to its cost."""
    for lane in range(LANES):
        best[lane] = _INFINITY
        last[lane] = 0
    for state in range(1 << length):
        start = _place(state, n_steps, k, length) * LANES
        row = costs[start : start + LANES]
        for lane in range(LANES):
            is_allowed = overlap[lane] == FREE or (state >> k) == overlap[lane]
            is_less = is_allowed and row[lane] < best[lane]
            best[lane] = row[lane] if is_less else best[lane]
            last[lane] = state if is_less else last[lane]


@strict
def _trace_back(words: Any, first: int, count: int, k: int, length: int, per_word: Any, last: Any, states: Any) -> None:
    """Follow the decisions from step count - 1 and `last` (LANES,) down to step `first`, whose state `last` becomes.

    states (count, LANES) : set for the steps passed
    """
    share, shift = (1 << (length - k)) - 1, 0
    while (1 << shift) < per_word[0]:
        shift += 1
    in_word, n_states = per_word[0] - 1, (1 << length) - 1
    for i in range(count - 1, first - 1, -1):
        oldest, turn = k * i % length, k * (i + 1) % length
        low_bits = oldest if oldest + k <= length else 0
        up = oldest + k if oldest + k <= length else oldest + k - length
        low_mask, row = (1 << low_bits) - 1, words[i]
        for lane in range(LANES):
            state = last[lane]
            states[i, lane] = state
            if i > first:
                place = ((state << turn) | (state >> (length - turn))) & n_states
                group = (((place >> up) << low_bits) | (place & low_mask)) & share
                word = np.int64(row[(group >> shift) * LANES + lane])
                branch = (word >> (k * (group & in_word))) & ((1 << k) - 1)
                last[lane] = ((state & share) << k) | branch


@strict
def search_tile(
    samples: Any,
    weights: Any,
    approach: int,
    tables: Any,
    branches: Any,
    length: int,
    per_word: Any,
    costs: Any,
    words: Any,
    best: Any,
    states: Any,
) -> None:
    """Set states int64 (steps, LANES) to the best paths, best float32 (LANES,) to their costs.

    approach : 0 for free ends; else samples on each side of the seam of a ring, searched first for the overlap, as
    reference.tail_biting. words and states have g steps, or 2 * approach if that is more.
    """
    k, g = branches[0], samples.shape[0]
    overlap, last = np.full(LANES, FREE), np.zeros(LANES, np.int64)
    for search in range(0 if approach > 0 else 1, 2):
        is_seam = search == 0
        start, count, stop = (g - approach, 2 * approach, approach - 1) if is_seam else (0, g, 0)
        _begin(costs, overlap, k)
        _advance(samples, weights, start % g, count, tables, branches, length, per_word, costs, words)
        _best_states(costs, count, k, length, overlap, best, last)
        _trace_back(words, stop, count, k, length, per_word, last, states)
        if is_seam:
            for lane in range(LANES):
                overlap[lane] = last[lane] >> k
