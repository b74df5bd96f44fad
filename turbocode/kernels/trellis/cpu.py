"""Trellis-coded quantization on the CPU: prepare groups, search their paths, write blocks; chunk by chunk.

The three loops are compiled on their own, since only the search is compiled again for every number of bits.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels._cpu import GROUPS_PER_TASK, prange, strict_parallel
from turbocode.kernels.fwht import Rotation
from turbocode.kernels.fwht.cpu import RADIX
from turbocode.kernels.group import EncodedGroups, codebook_moments, prepare
from turbocode.kernels.scalar import steps
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.scalar.steps import dot
from turbocode.kernels.trellis.add_compare_select import DECISIONS_PER_WORD, LANES, UNROLL_LOG2, visiting_order
from turbocode.kernels.trellis.search import GAINS, VITERBI, Search, SearchKind
from turbocode.kernels.trellis.trellis import Trellis
from turbocode.kernels.trellis.viterbi import search_tile

MIN_EXTRA_BITS = 3  # the written-out groups of add_compare_select need states_log2 >= bits + this
_CHUNK_GROUPS = 8192  # whose intermediate values stay in cache
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_visiting_order = functools.cache(visiting_order)


@strict_parallel
def _prepare_all(
    values: Any,
    is_rotated: bool,
    width: int,
    base: Any,
    first: Any,
    last: Any,
    lanes: int,
    y: Any,
    u: Any,
    facts: Any,
    flags: Any,
) -> None:
    """Set y (n, g) to the rotated groups / factor, u to y / |y|, facts (n, 2) to |y| and factor, flags."""
    n_groups, g = values.shape
    for task in prange((n_groups + GROUPS_PER_TASK - 1) // GROUPS_PER_TASK):
        mixed, terms = np.empty(g, np.float32), np.empty(g, np.float32)
        for group in range(task * GROUPS_PER_TASK, min(n_groups, (task + 1) * GROUPS_PER_TASK)):
            row, unit = y[group], u[group]
            factor, square, flags[group] = prepare(
                values[group], first, is_rotated, width, base, last, lanes, row, mixed, terms
            )
            norm = np.sqrt(square)
            inverse = _ONE / norm if norm * factor >= steps._F16_TINY else _ZERO
            for j in range(g):
                unit[j] = row[j] * inverse
            facts[group, 0], facts[group, 1] = norm, factor


@strict_parallel
def _search_all(
    u: Any,
    gain: Any,
    weights: Any,
    tables: Any,
    branches: Any,
    length: int,
    per_word: Any,
    approach: int,
    states: Any,
    costs: Any,
) -> None:
    """Set states int16 (n, g) to the best paths through u * gain, costs (n,) to their squared distances."""
    n_groups, g = u.shape
    k = branches[0]
    n_decided = max(g, 2 * approach)
    for tile in prange((n_groups + LANES - 1) // LANES):
        samples, found = np.zeros((g, LANES), np.float32), np.empty((n_decided, LANES), np.int64)
        scratch, best = np.empty((1 << length) * LANES, np.float32), np.empty(LANES, np.float32)
        words = np.empty((n_decided, (1 << (length - k)) // per_word[0] * LANES), np.int32)
        n_lanes = min(LANES, n_groups - tile * LANES)
        for lane in range(n_lanes):
            for j in range(g):
                samples[j, lane] = u[tile * LANES + lane, j] * gain
        if weights is None:
            search_tile(samples, None, approach, tables, branches, length, per_word, scratch, words, best, found)
        else:
            factors = np.zeros((g, LANES), np.float32)
            for lane in range(n_lanes):
                for j in range(g):
                    factors[j, lane] = weights[tile * LANES + lane, j]
            search_tile(samples, factors, approach, tables, branches, length, per_word, scratch, words, best, found)
        for lane in range(n_lanes):
            costs[tile * LANES + lane] = best[lane]
            for j in range(g):
                states[tile * LANES + lane, j] = np.int16(found[j, lane])


@strict_parallel
def _keep_better(u: Any, table: Any, found: Any, states: Any, scores: Any) -> None:
    """Take over the paths `found` whose score <u, c>^2 / |c|^2 is above the best so far."""
    n_groups, g = u.shape
    for task in prange((n_groups + GROUPS_PER_TASK - 1) // GROUPS_PER_TASK):
        c, terms = np.empty(g, np.float32), np.empty(g, np.float32)
        for group in range(task * GROUPS_PER_TASK, min(n_groups, (task + 1) * GROUPS_PER_TASK)):
            for j in range(g):
                c[j] = table[found[group, j]]
            uc, cc = dot(u[group], c, terms), dot(c, c, terms)
            score = uc * (uc / cc) if uc > _ZERO else _ZERO
            if score > scores[group]:
                scores[group] = score
                for j in range(g):
                    states[group, j] = found[group, j]


@strict_parallel
def _write_all(
    y: Any, u: Any, facts: Any, states: Any, table: Any, k: int, mode: int, out: Any, moments: Any, flags: Any
) -> None:
    """Write the blocks of paths, and what the coding cost."""
    n_groups, g = u.shape
    for task in prange((n_groups + GROUPS_PER_TASK - 1) // GROUPS_PER_TASK):
        c, terms, indices = np.empty(g, np.float32), np.empty(g, np.float32), np.empty(g, np.uint32)
        for group in range(task * GROUPS_PER_TASK, min(n_groups, (task + 1) * GROUPS_PER_TASK)):
            norm, factor = facts[group, 0], facts[group, 1]
            if not (norm * factor >= steps._F16_TINY):
                states[group, :] = 0  # all paths are alike: the one of which every byte is zero
            for j in range(g):
                state = np.int64(states[group, j])
                c[j] = table[state]
                indices[j] = np.uint32(state & ((1 << k) - 1))
            uc, cc = dot(u[group], c, terms), dot(c, c, terms)
            block = out[group]
            if steps.store_float16(steps.corrected_norm(norm * factor, uc, cc, mode), block, 0):
                flags[group] |= steps.SATURATED
            steps.pack(indices, k, block, 2, 0, g)
            rest = np.int64(states[group, g - 1]) >> k
            for position in range(2 + g * k // 8, block.shape[0]):
                block[position] = np.uint8(rest & 0xFF)
                rest >>= 8
            stored = steps.load_float16(block, 0)
            codebook_moments(y[group], c, norm, stored, uc, cc, factor, terms, moments[group])


def encode(
    values: NDArray[np.float16] | NDArray[np.float32],
    block_format: BlockFormat,
    rotation: Rotation,
    table: NDArray[np.float32],
    mode: NormMode,
    search: Search = VITERBI,
    n_gains: int = 1,
) -> EncodedGroups:
    """Blocks of the groups `values` (n, group_size), C-contiguous float16 or float32, with what the coding cost.

    table : float32 (2**states_log2,) in units of the norm of a group
    n_gains : how many scales of the group are searched, of which the one with the least error is kept; see GAINS
    """
    trellis, n, g = Trellis.of_format(block_format), len(values), block_format.group_size
    out = np.empty((n, block_format.bytes_per_group), np.uint8)
    moments, flags = np.empty((n, 4)), np.empty(n, np.uint8)
    stored = values.view(np.uint16) if values.dtype == np.float16 else values
    turn = (not rotation.is_identity, rotation.width, rotation.base)
    scaled = rotation.signs_after * rotation.scale
    for start in range(0, n, _CHUNK_GROUPS):
        part = slice(start, min(n, start + _CHUNK_GROUPS))
        shape = (part.stop - start, g)
        y, u, facts = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty((shape[0], 2), np.float32)
        _prepare_all(stored[part], *turn, rotation.signs_before, scaled, RADIX, y, u, facts, flags[part])
        states = _best_of_gains(u, table, trellis, search, n_gains)
        _write_all(y, u, facts, states, table, trellis.bits, int(mode), out[part], moments[part], flags[part])
    return EncodedGroups(out, moments, flags)


def _best_of_gains(
    u: NDArray[np.float32], table: NDArray[np.float32], trellis: Trellis, search: Search, n_gains: int
) -> NDArray[np.int16]:
    """States (n, g) of the paths found at the gain with the least error."""
    if n_gains == 1:
        return _paths(u, GAINS[0], table, trellis, search)
    states, scores = np.empty(u.shape, np.int16), np.full(len(u), -1.0, np.float32)
    for gain in GAINS[:n_gains]:
        _keep_better(u, table, _paths(u, gain, table, trellis, search), states, scores)
    return states


def _paths(
    u: NDArray[np.float32], gain: np.float32, table: NDArray[np.float32], trellis: Trellis, search: Search
) -> NDArray[np.int16]:
    """States (n, g) of the paths through u * gain that `search` finds."""
    states = np.empty(u.shape, np.int16)
    approach = trellis.approach(u.shape[1]) if trellis.is_tail_biting else 0
    if search.kind is SearchKind.VITERBI:
        costs = np.empty(len(u), np.float32)
        _search_all(u, gain, None, *_viterbi_arguments(table, trellis), approach, states, costs)
    else:
        from turbocode.kernels.trellis.paths import search_paths  # compiled only for those who compare searches

        kind, width = int(search.kind), search.width
        search_paths(u * gain, approach, table, trellis.bits, trellis.states_log2, kind, width, states)
    return states


def _viterbi_arguments(table: NDArray[np.float32], trellis: Trellis) -> tuple[Any, ...]:
    """(tables, branches, states_log2, (decisions a word, blocks a word)) as viterbi.py takes them."""
    k, length = trellis.bits, trellis.states_log2
    assert length >= k + MIN_EXTRA_BITS, (k, length)
    per_word = min(DECISIONS_PER_WORD[k], 1 << trellis.overlap_bits)
    tables = np.ascontiguousarray(table[_visiting_order(k, length)], dtype=np.float32)
    return tables, (k,) * (1 << k), length, (per_word, per_word >> UNROLL_LOG2[k])


def viterbi(
    u: NDArray[np.float32],
    table: NDArray[np.float32],
    trellis: Trellis,
    *,
    weights: NDArray[np.float32] | None = None,
    approach: int | None = None,
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """(states (n, g), costs (n,)) of the best paths through u (n, g); around the ring if the trellis is tail-biting.

    weights : (n, g), factors of the squared distances; None for one
    approach : samples on each side of the seam, Trellis.approach by default; g makes the first pass see the whole ring
    """
    u = np.ascontiguousarray(u, dtype=np.float32)
    n, g = u.shape
    states, costs = np.empty((n, g), np.int16), np.empty(n, np.float32)
    taken = (approach or trellis.approach(g)) if trellis.is_tail_biting else 0
    if weights is not None:
        weights = np.ascontiguousarray(weights, dtype=np.float32)
    _search_all(u, GAINS[0], weights, *_viterbi_arguments(table, trellis), taken, states, costs)
    return states, costs
