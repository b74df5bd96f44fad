"""The definition of the multi-rate trellis in NumPy. n vectors, T steps (channels that have bits), D channels.

`kind` is the type in which everything is computed: float64 for the definition, float32 for the bytes of `cpu`, which
performs the same operations in the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels.multirate.side import Law, MultirateSide

Float = Any  # np.float32 or np.float64


def tree_sum(terms: NDArray[Any]) -> NDArray[Any]:
    """Sums over the last axis: the upper half is added to the lower while their count is even and above 8."""
    terms = np.array(terms)
    n = terms.shape[-1]
    while n > 8 and n % 2 == 0:
        n //= 2
        terms[..., :n] += terms[..., n : 2 * n]
    total = terms[..., 0].copy()
    for j in range(1, n):
        total += terms[..., j]
    return total


def dot(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Sums of a * b over the last axis, the halves first; see tree_sum."""
    half = a.shape[-1] // 2
    return tree_sum(a[..., :half] * b[..., :half] + a[..., half:] * b[..., half:])


def viterbi(
    u: NDArray[Any],
    weights: NDArray[Any],
    rates: NDArray[np.int64],
    tables: NDArray[Any],
    overlap: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """(states (n, T), cost (n,)): the path of least sum of weights * (u - value)^2, in the type of u (n, T).

    overlap (n,) : the L - k bits that the last state shares with the first, k of the first step; None for free ends
    Among equal costs the lowest predecessor, and the lowest last state, wins.
    """
    (n, n_steps), n_states = u.shape, tables.shape[1]
    length = n_states.bit_length() - 1
    cost = np.zeros((n, n_states), u.dtype)
    states = np.arange(n_states)
    is_open = None if overlap is None else (states >> int(rates[0])) == np.asarray(overlap)[:, None]
    if is_open is not None:
        cost[~is_open] = np.inf
    choice = []
    for t in range(n_steps):
        k = int(rates[t])
        grouped = cost.reshape(n, 1 << (length - k), 1 << k)  # state = (group << k) | branch
        choice.append(grouped.argmin(axis=2))
        distance = u[:, t, None] - tables[k]
        cost = np.tile(grouped.min(axis=2), (1, 1 << k)) + distance * distance * weights[t]
    if is_open is not None:
        cost[~is_open] = np.inf
    state, row = cost.argmin(axis=1), np.arange(n)
    total = cost[row, state]
    path = np.empty((n, n_steps), np.int64)
    for t in reversed(range(n_steps)):
        path[:, t] = state
        k = int(rates[t])
        group = state & ((1 << (length - k)) - 1)
        state = (group << k) | choice[t][row, group]
    return path, total


def ring(u: NDArray[Any], weights: NDArray[Any], side: MultirateSide) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """(states, cost) of a ring found in two passes: around the seam for the state there, then over all steps."""
    before, behind = side.approach()
    n_steps = len(side.rates)
    around = np.arange(n_steps - before, n_steps + behind) % n_steps
    tables = side.tables.astype(u.dtype)
    seam = viterbi(u[:, around], weights[around], side.rates[around], tables)[0][:, before - 1]
    return viterbi(u, weights, side.rates, tables, seam >> int(side.rates[0]))


def ring_exhaustive(
    u: NDArray[Any], weights: NDArray[Any], side: MultirateSide
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """(states, cost) of the best ring: a search for each state that the seam may have."""
    n, tables = len(u), side.tables.astype(u.dtype)
    states, best = np.zeros(u.shape, np.int64), np.full(n, np.inf, u.dtype)
    for overlap in range(1 << (side.states_log2 - int(side.rates[0]))):
        found, cost = viterbi(u, weights, side.rates, tables, np.full(n, overlap))
        is_less = cost < best
        states[is_less], best[is_less] = found[is_less], cost[is_less]
    return states, best


def affine(x: NDArray[Any], before: NDArray[Any], columns: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    """(x - before) @ columns + after, in the type of x, added up in the order of the columns' rows."""
    total = np.zeros_like(x)
    for j, column in enumerate(columns):
        total += (x[:, j] - before[j])[:, None] * column
    return total + after


def gain_bytes(gain: NDArray[Any], side: MultirateSide) -> NDArray[np.uint8]:
    """The byte of each gain (n,): the nearest one, at most 255."""
    return np.searchsorted(side.gains.boundaries.astype(gain.dtype), gain, side="right").astype(np.uint8)


def first_gain(y: NDArray[Any], side: MultirateSide) -> NDArray[Any]:
    """The gains (n,) by the side's law of vectors y (n, T) of the coded channels."""
    kind = y.dtype.type
    scale = side.scale.astype(kind)
    if side.law is Law.WHITENED:
        white = y * (kind(1) / scale)
        return np.sqrt(dot(white, white) / kind(len(scale)))
    return np.sqrt(dot(y, y) / dot(scale, scale))


def encode(y: Any, side: MultirateSide, searches: int = 1, kind: Float = np.float64) -> NDArray[np.void]:
    """Blocks (n,) of vectors y (n, D), finite, in the basis of the side.

    searches : at most so many paths are searched, each for the gain that suits the one before; the best is kept
    """
    y = np.asarray(y)[:, side.channels].astype(kind)
    n = len(y)
    scale, gains = side.scale.astype(kind), side.gains.gains.astype(kind)
    white, weights = y * (kind(1) / scale), scale * scale
    best, byte, states = np.full(n, np.inf, kind), np.zeros(n, np.uint8), np.zeros(y.shape, np.int64)
    tried = gain_bytes(first_gain(y, side), side)
    active = tried > 0
    for _ in range(searches):
        inverse = np.divide(kind(1), gains[tried], where=active, out=np.zeros(n, kind))
        found = ring(white * inverse[:, None], weights, side)[0]
        c = side.tables.astype(kind)[side.rates, found] * scale
        yc, cc = dot(y, c), dot(c, c)
        gain = np.divide(yc, cc, where=(yc > 0) & (cc > 0), out=np.zeros(n, kind))
        refit = gain_bytes(gain, side)
        wrong = y - c * gains[refit][:, None]
        error = dot(wrong, wrong)
        is_better = active & (error < best)
        best[is_better], byte[is_better], states[is_better] = error[is_better], refit[is_better], found[is_better]
        active &= (refit != tried) & (refit > 0)
        tried = refit
    states[byte == 0] = 0  # a vector of zeros has one block
    return blocks_of(byte, states, side)


def blocks_of(byte: NDArray[np.uint8], states: NDArray[np.int64], side: MultirateSide) -> NDArray[np.void]:
    """Blocks (n,) of gain bytes (n,) and paths (n, T): step t writes the k newest bits of its state."""
    digits = [
        ((states[:, t, None] >> (side.states_log2 - int(k) + np.arange(int(k)))) & 1) for t, k in enumerate(side.rates)
    ]
    blocks = np.zeros(len(states), side.block_format.dtype)
    blocks["gain"] = byte
    blocks["stream"] = np.packbits(np.concatenate(digits, axis=1).astype(np.uint8), axis=1, bitorder="little")
    return blocks


def states_of(blocks: NDArray[np.void], side: MultirateSide) -> NDArray[np.int64]:
    """States int64 (n, T) of blocks (n,): the last L bits written after each step."""
    digits = np.unpackbits(blocks["stream"], axis=1, bitorder="little").astype(np.int64)
    ends = np.cumsum(side.rates)
    window = (ends[:, None] - side.states_log2 + np.arange(side.states_log2)) % digits.shape[1]
    return np.asarray((digits[:, window] << np.arange(side.states_log2)).sum(axis=-1))


def decode(blocks: NDArray[np.void], side: MultirateSide, *, kind: Float = np.float64) -> NDArray[Any]:
    """The vectors (n, D) in the basis of the side that the blocks (n,) stand for: (value * gain) * sigma."""
    out = np.zeros((len(blocks), side.block_format.head_dim), kind)
    values = side.tables.astype(kind)[side.rates, states_of(blocks, side)]
    gain = side.gains.gains.astype(kind)[blocks["gain"]]
    out[:, side.channels] = values * gain[:, None] * side.scale.astype(kind)
    return out
