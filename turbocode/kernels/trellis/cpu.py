"""Trellis-coded quantization on the CPU: one pass over the values, LANES groups side by side, tiles in parallel."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels._cpu import prange, strict, strict_parallel
from turbocode.kernels.fwht import Rotation
from turbocode.kernels.fwht.cpu import RADIX
from turbocode.kernels.group import EncodedGroups, codebook_moments, prepare
from turbocode.kernels.scalar import steps
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.scalar.steps import dot
from turbocode.kernels.trellis.add_compare_select import DECISIONS_PER_WORD, LANES, UNROLL_LOG2, visiting_order
from turbocode.kernels.trellis.paths import FREE, search_path, search_path_ring
from turbocode.kernels.trellis.search import VITERBI, Search, SearchKind
from turbocode.kernels.trellis.trellis import Trellis
from turbocode.kernels.trellis.viterbi import search_free, search_ring

_VITERBI = np.int64(SearchKind.VITERBI)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
MIN_EXTRA_BITS = 3  # the written-out groups of add_compare_select need states_log2 >= bits + this
# Scales of a unit vector that are tried in this order; measured in docs/log.md. The stored norm undoes the one taken.
GAINS = np.array([1.0, 0.97, 1.03, 0.94, 1.06], np.float32)
_visiting_order = functools.cache(visiting_order)


@strict
def _search_tile(
    samples: Any,
    factors: Any,
    approach: int,
    tables: Any,
    branches: Any,
    length: int,
    per_word: Any,
    costs: Any,
    words: Any,
    best: Any,
    ends: Any,
    found: Any,
) -> None:
    """Search a tile around the ring if there is an approach, else with free ends."""
    if approach > 0:
        search_ring(samples, factors, approach, tables, branches, length, per_word, costs, words, best, ends, found)
    else:
        search_free(samples, factors, tables, branches, length, per_word, costs, words, best, ends, found)


@strict_parallel
def _encode_all(
    values: Any,
    out: Any,
    moments: Any,
    flags: Any,
    table: Any,
    tables: Any,
    branches: Any,
    length: int,
    per_word: Any,
    approach: int,
    kind: int,
    beam: int,
    gains: Any,
    mode: int,
    is_rotated: bool,
    width: int,
    base: Any,
    first: Any,
    last: Any,
    lanes: int,
) -> None:
    n_groups, g = values.shape
    k = branches[0]
    n_decided = max(g, 2 * approach)
    for tile in prange((n_groups + LANES - 1) // LANES):
        y, mixed, terms = np.empty((LANES, g), np.float32), np.empty(g, np.float32), np.empty(g, np.float32)
        u, c, indices = np.empty((LANES, g), np.float32), np.empty(g, np.float32), np.empty(g, np.uint32)
        factors, squares = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        products, energies = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        samples, line = np.zeros((g, LANES), np.float32), np.empty(g, np.float32)
        found, states = np.empty((n_decided, LANES), np.int64), np.empty((LANES, g), np.int64)
        n_lanes = min(LANES, n_groups - tile * LANES)
        for lane in range(n_lanes):
            group = tile * LANES + lane
            factors[lane], squares[lane], flags[group] = prepare(
                values[group], first, is_rotated, width, base, last, lanes, y[lane], mixed, terms
            )
            norm = np.sqrt(squares[lane])
            inverse = _ONE / norm if norm * factors[lane] >= steps._F16_TINY else _ZERO
            for j in range(g):
                u[lane, j] = y[lane, j] * inverse
        costs = np.empty((1 << length) * LANES, np.float32)
        words = np.empty((n_decided, (1 << (length - k)) // per_word[0] * LANES), np.int32)
        best, ends = np.empty(LANES, np.float32), np.empty(LANES, np.int64)
        path, trial, scores = np.empty(g, np.int64), np.empty(g, np.int64), np.full(LANES, -_ONE, np.float32)
        for attempt in range(gains.shape[0]):
            for j in range(g):
                for lane in range(n_lanes):
                    samples[j, lane] = u[lane, j] * gains[attempt]
            if kind != _VITERBI:
                for lane in range(n_lanes):
                    for j in range(g):
                        line[j] = samples[j, lane]
                    if approach > 0:
                        search_path_ring(line, approach, table, k, length, kind, beam, trial, path)
                    else:
                        search_path(line, table, k, length, kind, beam, FREE, trial, path)
                    for j in range(g):
                        found[j, lane] = path[j]
            else:
                _search_tile(
                    samples, None, approach, tables, branches, length, per_word, costs, words, best, ends, found
                )
            for lane in range(n_lanes):
                for j in range(g):
                    c[j] = table[found[j, lane]]
                uc, cc = dot(u[lane], c, terms), dot(c, c, terms)
                score = uc * (uc / cc) if uc > _ZERO else _ZERO
                if score > scores[lane]:
                    scores[lane], products[lane], energies[lane] = score, uc, cc
                    for j in range(g):
                        states[lane, j] = found[j, lane]
        for lane in range(n_lanes):
            group = tile * LANES + lane
            for j in range(g):
                c[j] = table[states[lane, j]]
                indices[j] = np.uint32(states[lane, j] & ((1 << k) - 1))
            norm, factor, uc, cc = np.sqrt(squares[lane]), factors[lane], products[lane], energies[lane]
            stored = steps.corrected_norm(norm * factor, uc, cc, mode)
            if steps.store_float16(stored, out[group], 0):
                flags[group] |= steps.SATURATED
            steps.pack(indices, k, out[group], 2, 0, g)
            rest = states[lane, g - 1] >> k
            for position in range(2 + g * k // 8, out.shape[1]):
                out[group, position] = np.uint8(rest & 0xFF)
                rest >>= 8
            stored = steps.load_float16(out[group], 0)
            codebook_moments(y[lane], c, norm, stored, uc, cc, factor, terms, moments[group])


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
    trellis = Trellis.of_format(block_format)
    n = len(values)
    out = np.empty((n, block_format.bytes_per_group), np.uint8)
    moments, flags = np.empty((n, 4)), np.empty(n, np.uint8)
    _encode_all(
        values.view(np.uint16) if values.dtype == np.float16 else values,
        out,
        moments,
        flags,
        table,
        *_viterbi_arguments(table, trellis),
        trellis.approach(block_format.group_size) if trellis.is_tail_biting else 0,
        int(search.kind),
        search.width,
        GAINS[:n_gains],
        int(mode),
        not rotation.is_identity,
        rotation.width,
        rotation.base,
        rotation.signs_before,
        rotation.signs_after * rotation.scale,
        RADIX,
    )
    return EncodedGroups(out, moments, flags)


def _viterbi_arguments(table: NDArray[np.float32], trellis: Trellis) -> tuple[Any, ...]:
    """(tables, branches, states_log2, (decisions a word, blocks a word)) as viterbi.py takes them."""
    k, length = trellis.bits, trellis.states_log2
    assert length >= k + MIN_EXTRA_BITS, (k, length)
    per_word = min(DECISIONS_PER_WORD[k], 1 << trellis.overlap_bits)
    tables = np.ascontiguousarray(table[_visiting_order(k, length)], dtype=np.float32)
    return tables, (k,) * (1 << k), length, (per_word, per_word >> UNROLL_LOG2[k])


@strict_parallel
def _search_all(
    u: Any, weights: Any, tables: Any, branches: Any, length: int, per_word: Any, approach: int, states: Any, costs: Any
) -> None:
    n_groups, g = u.shape
    k = branches[0]
    n_decided = max(g, 2 * approach)
    for tile in prange((n_groups + LANES - 1) // LANES):
        samples, found = np.zeros((g, LANES), np.float32), np.empty((n_decided, LANES), np.int64)
        scratch = np.empty((1 << length) * LANES, np.float32)
        words = np.empty((n_decided, (1 << (length - k)) // per_word[0] * LANES), np.int32)
        best, ends = np.empty(LANES, np.float32), np.empty(LANES, np.int64)
        n_lanes = min(LANES, n_groups - tile * LANES)
        for lane in range(n_lanes):
            for j in range(g):
                samples[j, lane] = u[tile * LANES + lane, j]
        if weights is None:
            _search_tile(samples, None, approach, tables, branches, length, per_word, scratch, words, best, ends, found)
        else:
            factors = np.zeros((g, LANES), np.float32)
            for lane in range(n_lanes):
                for j in range(g):
                    factors[j, lane] = weights[tile * LANES + lane, j]
            _search_tile(
                samples, factors, approach, tables, branches, length, per_word, scratch, words, best, ends, found
            )
        for lane in range(n_lanes):
            costs[tile * LANES + lane] = best[lane]
            for j in range(g):
                states[tile * LANES + lane, j] = np.int32(found[j, lane])


def viterbi(
    u: NDArray[np.float32],
    table: NDArray[np.float32],
    trellis: Trellis,
    *,
    weights: NDArray[np.float32] | None = None,
    approach: int | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(states (n, g), costs (n,)) of the best paths through u (n, g); around the ring if the trellis is tail-biting.

    weights : (n, g), factors of the squared distances; None for one
    approach : samples on each side of the seam, Trellis.approach by default; g makes the first pass see the whole ring
    """
    u = np.ascontiguousarray(u, dtype=np.float32)
    n, g = u.shape
    states, costs = np.empty((n, g), np.int32), np.empty(n, np.float32)
    taken = (approach or trellis.approach(g)) if trellis.is_tail_biting else 0
    if weights is not None:
        weights = np.ascontiguousarray(weights, dtype=np.float32)
    _search_all(u, weights, *_viterbi_arguments(table, trellis), taken, states, costs)
    return states, costs
