"""Cheaper searches than Viterbi's: greedy, multi-start greedy, M-algorithm. Same ends of paths as viterbi.py.

On a ring the first search, over the samples around the seam, finds the overlap; then the last symbols may only be those
that lead back to it. fixed_bits(t) of the newest k bits are already decided at step t.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.kernels._cpu import prange, strict, strict_parallel
from turbocode.kernels.trellis.search import SearchKind
from turbocode.kernels.trellis.viterbi import FREE

_INFINITY = np.float32(np.inf)
_ZERO = np.float32(0.0)
_GREEDY, _MULTISTART = np.int64(SearchKind.GREEDY), np.int64(SearchKind.MULTISTART)


@strict
def _step_bounds(t: int, g: int, overlap: int, k: int, length: int) -> Any:
    """(mask, value) of the newest bits at step t that the overlap fixes: bits k g and up of the stream are its bits."""
    if overlap == FREE:
        return 0, 0
    mask, value = 0, 0
    for bit in range(k):
        position = k * t + length - k + bit - k * g
        if position >= 0:
            mask |= 1 << bit
            value |= ((overlap >> position) & 1) << bit
    return mask, value


@strict
def _greedy_from(u: Any, table: Any, k: int, length: int, state: int, overlap: int, states: Any) -> Any:
    """Set states (g,) to the path from the state before the first step that takes the nearest value; its cost."""
    g, total = u.shape[0], _ZERO
    for t in range(g):
        mask, value = _step_bounds(t, g, overlap, k, length)
        nearest, chosen = _INFINITY, 0
        for branch in range(1 << k):
            if (branch & mask) == value:
                following = (state >> k) | (branch << (length - k))
                distance = u[t] - table[following]
                if distance * distance < nearest:
                    nearest, chosen = distance * distance, following
        state = chosen
        states[t] = state
        total += nearest
    return total


@strict
def _multistart(u: Any, table: Any, k: int, length: int, overlap: int, trial: Any, states: Any) -> None:
    """Set states (g,) to the best greedy path over all first states, of those with the overlap if there is one."""
    best = _INFINITY
    for state in range(1 << length):
        if overlap == FREE or (state >> k) == overlap:
            cost = _greedy_from(u, table, k, length, state, overlap, trial)
            if cost < best:
                best = cost
                states[:] = trial
            if overlap != FREE:
                return  # the k oldest bits of the state before the first step are never seen


@strict
def _beam(u: Any, table: Any, k: int, length: int, width: int, overlap: int, states: Any) -> None:
    """Set states (g,) to the best path that the M-algorithm finds; paths that meet in a state are merged."""
    g, n_states, size = u.shape[0], 1 << length, 1 << k
    cost, origin = np.full(n_states, _INFINITY, np.float32), np.zeros(n_states, np.int64)
    alive, alive_cost = np.zeros(n_states, np.int64), np.zeros(n_states, np.float32)
    kept_state, kept_origin = np.empty((g, width), np.int64), np.empty((g, width), np.int64)
    kept_count = np.zeros(g, np.int64)
    reached = np.empty(n_states, np.int64)
    n_alive = 1
    if overlap == FREE:
        n_alive = n_states
        for state in range(n_states):
            alive[state] = state
    else:
        alive[0] = overlap << k
    for t in range(g):
        mask, value = _step_bounds(t, g, overlap, k, length)
        n_reached = 0
        for i in range(n_alive):
            for branch in range(size):
                if (branch & mask) == value:
                    following = (alive[i] >> k) | (branch << (length - k))
                    distance = u[t] - table[following]
                    total = alive_cost[i] + distance * distance
                    if cost[following] == _INFINITY:
                        reached[n_reached] = following
                        n_reached += 1
                    if total < cost[following]:
                        cost[following] = total
                        origin[following] = i
        found = reached[:n_reached]
        totals = np.empty(n_reached, np.float32)
        for i in range(n_reached):
            totals[i] = cost[found[i]]
        order = np.argsort(totals, kind="mergesort")
        n_alive = min(width, n_reached)
        for i in range(n_alive):
            state = found[order[i]]
            kept_state[t, i] = state
            kept_origin[t, i] = origin[state]
        for i in range(n_alive):
            alive[i] = kept_state[t, i]
            alive_cost[i] = cost[alive[i]]
        kept_count[t] = n_alive
        for i in range(n_reached):
            cost[found[i]] = _INFINITY
    i = 0
    for t in range(g - 1, -1, -1):
        states[t] = kept_state[t, i]
        i = kept_origin[t, i]


@strict
def _search_path(
    u: Any, table: Any, k: int, length: int, kind: int, width: int, overlap: int, trial: Any, states: Any
) -> None:
    """Set states int64 (g,) to a path through u float32 (g,) found as SearchKind `kind` says; trial (g,) is scratch."""
    if kind == _GREEDY:
        _greedy_from(u, table, k, length, 0 if overlap == FREE else overlap << k, overlap, states)
    elif kind == _MULTISTART:
        _multistart(u, table, k, length, overlap, trial, states)
    else:
        _beam(u, table, k, length, width, overlap, states)


@strict_parallel
def search_paths(u: Any, approach: int, table: Any, k: int, length: int, kind: int, width: int, states: Any) -> None:
    """Set states int16 (n, g) to paths through u float32 (n, g).

    approach : 0 for free ends; else samples on each side of the seam of a ring, searched first for the overlap
    """
    n, g = u.shape
    for group in prange(n):
        path, trial = np.empty(max(g, 2 * approach), np.int64), np.empty(max(g, 2 * approach), np.int64)
        line = np.empty(max(g, 2 * approach), np.float32)
        overlap = FREE
        for search in range(0 if approach > 0 else 1, 2):
            start, count = (g - approach, 2 * approach) if search == 0 else (0, g)
            for i in range(count):
                line[i] = u[group, (start + i) % g]
            _search_path(line[:count], table, k, length, kind, width, overlap, trial[:count], path[:count])
            if search == 0:
                overlap = path[approach - 1] >> k
        for j in range(g):
            states[group, j] = np.int16(path[j])
