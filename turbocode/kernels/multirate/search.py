"""The best ring for LANES vectors side by side. Same paths as reference.ring in float32.

samples float32 (T, LANES); weights float32 (T, 1); rates int64 (T,), none of them 0; tables float32 (9, 2**10)
costs float32 (2, 2**10 * LANES), words int32 (T, MAX_WORDS * LANES): scratch, at least before + behind rows
"""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.formats.multirate_format import MULTIRATE_STATES_LOG2
from turbocode.kernels._cpu import strict
from turbocode.kernels.multirate.step import GROUPS_PER_WORD_LOG2, LANES, N_STATES, multirate_step

_FREE = -1  # as overlap: the ends of the path are free
_INFINITY = np.float32(np.inf)
_ZERO = np.float32(0.0)
_L = MULTIRATE_STATES_LOG2


@strict
def _begin(costs: Any, overlap: Any, k: int) -> None:
    """Set the costs before the first step: 0 where a path may begin, infinity elsewhere."""
    for state in range(N_STATES):
        for lane in range(LANES):
            is_allowed = overlap[lane] == _FREE or (state >> k) == overlap[lane]
            costs[state * LANES + lane] = _ZERO if is_allowed else _INFINITY


@strict
def _advance(
    samples: Any, weights: Any, rates: Any, tables: Any, start: int, count: int, costs: Any, words: Any
) -> Any:
    """Consume `count` samples of the ring from `start` on; words[i] holds the decisions of step i; where costs are."""
    t, now = start, 0
    for i in range(count):
        k = rates[t]
        multirate_step(costs[now], costs[1 - now], tables[k], samples[t], weights[t], words[i], k)
        now = 1 - now
        t = t + 1 if t + 1 < samples.shape[0] else 0
    return now


@strict
def _best_states(costs: Any, k: int, overlap: Any, last: Any) -> None:
    """Set last (LANES,) to the allowed state of least cost, the lowest among equal ones."""
    best = np.full(LANES, _INFINITY, np.float32)
    for lane in range(LANES):
        last[lane] = 0 if overlap[lane] == _FREE else overlap[lane] << k
    for state in range(N_STATES):
        for lane in range(LANES):
            cost = costs[state * LANES + lane]
            is_allowed = overlap[lane] == _FREE or (state >> k) == overlap[lane]
            is_less = is_allowed and cost < best[lane]
            best[lane] = cost if is_less else best[lane]
            last[lane] = state if is_less else last[lane]


@strict
def _trace_back(words: Any, rates: Any, start: int, first: int, count: int, last: Any, states: Any) -> None:
    """Follow the decisions from step count - 1 and `last` (LANES,) down to step `first`, whose state `last` becomes."""
    for i in range(count - 1, first - 1, -1):
        k = rates[(start + i) % rates.shape[0]]
        shared, word = GROUPS_PER_WORD_LOG2[k], words[i]
        rest, in_word, branches = (1 << (_L - k)) - 1, (1 << shared) - 1, (1 << k) - 1
        for lane in range(LANES):
            states[i, lane] = last[lane]
            if i > first:
                group = last[lane] & rest
                decisions = np.uint32(word[(group >> shared) * LANES + lane])
                branch = np.int64(decisions >> np.uint32(k * (group & in_word))) & branches
                last[lane] = (group << k) | branch


@strict
def search_ring(
    samples: Any, weights: Any, rates: Any, tables: Any, before: int, behind: int, costs: Any, words: Any, states: Any
) -> None:
    """Set states int64 (steps, LANES) to the best rings; before, behind : MultirateSide.approach."""
    n_steps, k = samples.shape[0], rates[0]
    overlap, last = np.full(LANES, _FREE), np.zeros(LANES, np.int64)
    for search in range(2):
        is_seam = search == 0
        start, count, stop = (n_steps - before, before + behind, before - 1) if is_seam else (0, n_steps, 0)
        _begin(costs[0], overlap, k)
        now = _advance(samples, weights, rates, tables, start % n_steps, count, costs, words)
        _best_states(costs[now], k, overlap, last)
        _trace_back(words, rates, start, stop, count, last, states)
        if is_seam:
            for lane in range(LANES):
                overlap[lane] = last[lane] >> k
