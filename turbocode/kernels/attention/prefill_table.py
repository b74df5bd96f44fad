"""The tables that prefill looks values up in: what is in them, and how they get into shared memory.

A scalar codebook's table has a word for every pair of indices, a trellis's one for every state. Words lie there in up
to 32 copies, entry by entry, so that every lane of a warp finds any entry in a bank of its own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.scalar.half_scale import half_scale

MAX_COPIES_LOG2 = 5
WARP = 32
_TOP = np.float32(1 / 32)  # brings half_scale's products, below 16, to below 0.5: a norm times one is a float16
_N_SCALES = 256

uint32, uint64 = types.uint32, types.uint64


class PrefillTable(NamedTuple):
    """index_bits : of the stored bits that one look-up sees, 0 without a table; copies_log2 : copies of the table"""

    index_bits: int
    copies_log2: int

    @property
    def entries(self) -> int:
        return 1 << self.index_bits if self.index_bits else 0

    @property
    def shared_bytes(self) -> int:
        return self.entries * 4 << self.copies_log2

    @property
    def low(self) -> int:
        """The bit at which an index has to lie to be the offset of its entry."""
        return 2 + self.copies_log2


def table_for(form: BlockFormat, max_bytes: int) -> PrefillTable:
    """The table of a format with as many copies as fit max_bytes, at least one."""
    index_bits = 0
    if form.is_trellis:
        index_bits = form.states_log2
    elif form.layout not in (Layout.Q8_0, Layout.FLOAT16):
        index_bits = 2 * form.bits
    copies = MAX_COPIES_LOG2 if index_bits else 0
    while copies and PrefillTable(index_bits, copies).shared_bytes > max_bytes:
        copies -= 1
    return PrefillTable(index_bits, copies)


def _scale_of_states(values: NDArray[np.float32]) -> float:
    """The factor in [1, 2) after which the float16 errors of a trellis's values add up to the least.

    States are about equally frequent: a mean error is the same for all tokens, and so survives their average.
    """
    scales = (1 + np.arange(_N_SCALES) / _N_SCALES).astype(np.float32)
    scaled = values.reshape(-1) * scales[:, None]
    error = (scaled.astype(np.float16).astype(np.float64) - scaled).sum(axis=1) / scales
    return float(scales[np.abs(error).argmin()])


def table_words(form: BlockFormat, centroids: NDArray[np.float32]) -> tuple[NDArray[np.uint32], float]:
    """(words, scale): tables uint32 (n, entries) of centroids float32 (n, 2**bits), or of a trellis's values (n, 2**L).

    Values are float16 and times the scale, a pair's first one in the low half of its word.
    """
    table = table_for(form, 0)
    if not table.entries:
        return np.zeros((1, 1), np.uint32), 1.0
    if form.is_trellis:
        scale = _scale_of_states(centroids)
        return (centroids * np.float32(scale)).astype(np.float16).view(np.uint16).astype(np.uint32), scale
    scale = 1.0
    if form.layout is Layout.Q4_0:
        centroids = np.arange(-8, 8, dtype=np.float32)[None]
    elif np.any(centroids):
        scale = float(half_scale(centroids) * _TOP)
    halves = (centroids * np.float32(scale)).astype(np.float16).view(np.uint16).astype(np.uint32)
    i, bits = np.arange(table.entries), form.bits
    low, high = i & ((1 << bits) - 1), i >> bits
    if form.layout is Layout.SPLIT_PLANES:  # two low bits of each, then the third of each
        low, high = i & 3 | (i >> 4 & 1) << 2, i >> 2 & 3 | (i >> 5) << 2
    return halves[:, low] | halves[:, high] << np.uint32(16), scale


@functools.cache
def table_filler(table: PrefillTable, n_warps: int) -> Any:
    """fill(target, source, warp, lane): the words at a global address into shared memory, by a block of n_warps."""
    entries, copies = table.entries, 1 << table.copies_log2
    at_once = WARP // copies  # words that one store of a warp writes
    most = min(entries, WARP)

    @device
    def fill(target: Any, source: Any, warp: Any, lane: Any) -> None:
        first = uint32(warp * uint32(WARP))
        while first < uint32(entries):
            mine = uint32(min(uint32(first + lane), uint32(entries - 1)))
            word = _ptx.load_u32(source + uint64(uint32(mine * uint32(4))))
            number = uint32(0)
            while number < uint32(most):
                chosen = uint32(number + uint32(lane // uint32(copies)))
                place = uint32(uint32(uint32(first + number) * uint32(4 * copies)) + uint32(lane * uint32(4)))
                _ptx.store_shared_u32(at(target, place), _ptx.shuffle_index(word, chosen))
                number = uint32(number + uint32(at_once))
            first = uint32(first + uint32(WARP * n_warps))

    return fill
