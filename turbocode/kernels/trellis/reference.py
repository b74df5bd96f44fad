"""The definition of trellis-coded quantization in NumPy float64. n groups, g values a group; see trellis.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import FLOAT16_TINY, BlockFormat
from turbocode.formats.packing import pack_path, unpack_path
from turbocode.kernels.fwht import Rotation
from turbocode.kernels.fwht import reference as fwht
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.scalar.reference import saturate_float16, stored_norm
from turbocode.kernels.trellis.trellis import Trellis


def viterbi(
    u: NDArray[Any],
    table: NDArray[Any],
    trellis: Trellis,
    overlap: NDArray[np.int64] | None = None,
    weights: NDArray[Any] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(states (n, g), cost (n,)): the path whose table values have the least squared distance from u (n, g).

    overlap (n,) : the L - k bits that the first and the last state share; None leaves both ends free
    weights (n, g) : factors of the squared distances; None for one
    Among equal costs the lowest predecessor, and the lowest last state, wins (Forney, Proc. IEEE 61, 1973).
    """
    u, table = np.asarray(u, dtype=np.float64), np.asarray(table, dtype=np.float64)
    n, g = u.shape
    k, rest = trellis.bits, trellis.overlap_bits
    cost = np.zeros((n, 1 << rest, 1 << k))  # state = (group << k) | branch
    if overlap is not None:
        cost[np.arange(1 << rest) != np.asarray(overlap)[:, None]] = np.inf
    choice = np.empty((g, n, 1 << rest), np.int64)
    for t in range(g):
        choice[t] = cost.argmin(axis=2)
        arrived = np.tile(cost.min(axis=2), (1, 1 << k))  # state s comes from group s mod 2**(L - k)
        square = (u[:, t, None] - table) ** 2
        if weights is not None:
            square *= np.asarray(weights)[:, t, None]
        cost = (arrived + square).reshape(n, 1 << rest, 1 << k)
    if overlap is not None:
        cost[np.arange(1 << rest) != np.asarray(overlap)[:, None]] = np.inf
    flat, row = cost.reshape(n, -1), np.arange(n)
    state = flat.argmin(axis=1)
    total = flat[row, state]
    states = np.empty((n, g), np.int64)
    for t in reversed(range(g)):
        states[:, t] = state
        group = state & ((1 << rest) - 1)
        state = (group << k) | choice[t, row, group]
    return states, total


def tail_biting(
    u: NDArray[Any], table: NDArray[Any], trellis: Trellis, approach: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(states, cost) of a ring found in two passes (QTIP, arXiv 2406.11235, algorithm 4).

    The first runs freely over the last and the first samples and reads the overlap in their middle; the second runs
    over the whole group between that overlap and itself. `tail_biting_exhaustive` is never worse.
    approach : samples on each side of the seam, Trellis.approach by default
    """
    g = np.shape(u)[1]
    approach = approach or trellis.approach(g)
    around = np.asarray(u)[:, np.arange(g - approach, g + approach) % g]
    seam = viterbi(around, table, trellis)[0][:, approach - 1]
    return viterbi(u, table, trellis, seam >> trellis.bits)


def tail_biting_exhaustive(
    u: NDArray[Any], table: NDArray[Any], trellis: Trellis
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(states, cost) of the best ring: a search for each of the 2**(L - k) overlaps."""
    n = len(u)
    states, best = np.zeros(np.shape(u), np.int64), np.full(n, np.inf)
    for overlap in range(1 << trellis.overlap_bits):
        found, cost = viterbi(u, table, trellis, np.full(n, overlap))
        is_less = cost < best
        states[is_less], best[is_less] = found[is_less], cost[is_less]
    return states, best


def encode(
    x: NDArray[Any], block_format: BlockFormat, rotation: Rotation, table: NDArray[Any], mode: NormMode
) -> NDArray[np.void]:
    """Blocks (n,) of the groups x (n, g), finite; table (2**L,) in units of the norm of a group."""
    x, trellis = np.asarray(x, dtype=np.float64), Trellis.of_format(block_format)
    norm = np.sqrt((x * x).sum(-1))
    u = fwht.rotate(np.divide(x, norm[:, None], where=norm[:, None] > 0, out=np.zeros_like(x)), rotation)
    u[norm < FLOAT16_TINY] = 0.0
    states = (tail_biting if trellis.is_tail_biting else viterbi)(u, table, trellis)[0]
    states[norm < FLOAT16_TINY] = 0  # all paths are alike: the one of which every byte is zero
    c = np.asarray(table, dtype=np.float64)[states]
    blocks = np.zeros(len(x), dtype=block_format.dtype)
    blocks["norm"] = saturate_float16(stored_norm(norm, u, c, mode))
    blocks["stream"] = pack_path(states, trellis.bits, trellis.states_log2, is_ring=trellis.is_tail_biting)
    return blocks


def dequantize(blocks: NDArray[np.void], block_format: BlockFormat, table: NDArray[Any]) -> NDArray[np.float64]:
    """The rotated values (n, g) that the blocks (n,) hold."""
    trellis = Trellis.of_format(block_format)
    states = unpack_path(
        blocks["stream"],
        block_format.group_size,
        trellis.bits,
        trellis.states_log2,
        is_ring=trellis.is_tail_biting,
    )
    return np.asarray(table, dtype=np.float64)[states] * blocks["norm"].astype(np.float64)[:, None]


def decode(
    blocks: NDArray[np.void], block_format: BlockFormat, rotation: Rotation, table: NDArray[Any]
) -> NDArray[np.float64]:
    """The values (n, g) that the blocks (n,) stand for."""
    return fwht.unrotate(dequantize(blocks, block_format, table), rotation)
