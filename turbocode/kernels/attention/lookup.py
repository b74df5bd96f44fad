"""From index bits to float16 values by one look-up in shared memory, for the fast attention kernel.

A scalar codebook's table has an entry for every pair of indices: two values a look-up. A trellis's has one for every
state. Lanes of a warp ask for entries that have nothing to do with each other, so a table lies there in up to 32
copies, entry by entry: then each lane reads its own bank and all are answered at once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types

MAX_COPIES_LOG2 = 5
_TABLE_FREE = (Layout.Q8_0, Layout.FLOAT16)
_N_SCALES = 1 << 18  # that `nearly_halves` tries

uint32, uint64 = types.uint32, types.uint64


class Lookup(NamedTuple):
    """index_bits : of a stream that a look-up consumes or sees, 0 without a table; copies_log2 : copies of the table"""

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

    @property
    def mask(self) -> int:
        return (self.entries - 1) << self.low


def lookup_for(form: BlockFormat, shared_bytes: int) -> Lookup:
    """The look-up of a format, with as many copies of the table as fit `shared_bytes`, at least one."""
    if form.layout in _TABLE_FREE:
        return Lookup(0, 0)
    index_bits = form.states_log2 if form.is_trellis else 2 * form.bits
    copies = MAX_COPIES_LOG2
    while copies > 0 and Lookup(index_bits, copies).shared_bytes > shared_bytes:
        copies -= 1
    return Lookup(index_bits, copies)


@functools.cache
def _scale_of(magnitudes: tuple[float, ...]) -> float:
    """The factor in [1, 2) by which the magnitudes come closest to float16 numbers, relatively and at worst."""
    scales = 1 + np.arange(_N_SCALES) / _N_SCALES
    scaled = scales.astype(np.float32)[:, None] * np.array(magnitudes, np.float32)
    error = np.abs(scaled.astype(np.float16).astype(np.float32) / scaled - 1).max(axis=1)
    return float(np.float32(scales[error.argmin()]))


def _unbiased_halves(table: NDArray[np.float32]) -> NDArray[np.uint32]:
    """A trellis's values as float16 bits, some rounded the other way so that their errors add up to nothing.

    States are about equally frequent. The mean error would be the same for all tokens, and so it alone would survive in
    the average over a long context, where random errors cancel.
    """
    rounded = table.astype(np.float16)
    error = rounded.astype(np.float64) - table
    other = np.nextafter(rounded, np.where(error > 0, np.float16(-np.inf), np.float16(np.inf)))
    change = other.astype(np.float64) - rounded.astype(np.float64)
    for i in np.argsort(np.abs(np.abs(error) - np.abs(change) / 2), kind="stable"):  # those that lie half way first
        if abs(error.sum() + change[i]) < abs(error.sum()):
            rounded[i] = other[i]
            error[i] += change[i]
            change[i] = 0.0
    return rounded.view(np.uint16).astype(np.uint32)


def lookup_words(form: BlockFormat, centroids: NDArray[np.float32]) -> tuple[NDArray[np.uint32], float]:
    """(words, scale): tables uint32 (n, entries) of centroids float32 (n, 2**bits), or of a trellis's values (n, 2**L).

    An entry has the first value in its low half, a pair's second one in the high half, times a scale: with few
    magnitudes there is one by which they are nearly float16 numbers, within 1e-5 for four of them.
    """
    if form.layout in _TABLE_FREE:
        return np.zeros((1, 1), np.uint32), 1.0
    if form.layout is Layout.Q4_0:
        centroids = np.arange(-8, 8, dtype=np.float32)[None]
    scale = 1.0
    if not form.is_trellis and form.layout is not Layout.Q4_0:
        magnitudes = np.unique(np.abs(centroids[centroids != 0]))
        scale = _scale_of(tuple(magnitudes.tolist())) if len(magnitudes) else 1.0
    if form.is_trellis:
        return np.stack([_unbiased_halves(table) for table in centroids]), scale
    halves = (centroids * np.float32(scale)).astype(np.float16).view(np.uint16).astype(np.uint32)
    i = np.arange(1 << 2 * form.bits)
    low, high = i & ((1 << form.bits) - 1), i >> form.bits
    if form.layout is Layout.SPLIT_PLANES:  # two low bits of each, then the third of each
        low, high = i & 3 | (i >> 4 & 1) << 2, i >> 2 & 3 | (i >> 5) << 2
    return halves[:, low] | halves[:, high] << np.uint32(16), scale


class TableFiller(NamedTuple):
    """The words at a global address, copied into shared memory by whole warps, all copies of one at once.

    begin(source, warp, lane) : the lane's word of the warp's first 32, on its way while other things are done
    fill(table, word, source, warp, lane) : that and all others to the table
    """

    begin: Any
    fill: Any


@functools.cache
def table_filler(lookup: Lookup, n_warps: int) -> TableFiller:
    """The functions for a block of n_warps."""
    entries, copies = lookup.entries, 1 << lookup.copies_log2
    at_once = 32 // copies  # words that one store of a warp writes
    most = min(entries, 32)

    @device
    def load(source: Any, first: Any, lane: Any) -> Any:
        mine = uint32(min(uint32(first + lane), uint32(entries - 1)))
        return _ptx.load_u32(source + uint64(uint32(mine * uint32(4))))

    @device
    def begin(source: Any, warp: Any, lane: Any) -> Any:
        word, first = uint32(0), uint32(warp * uint32(32))
        if first < uint32(entries):
            word = load(source, first, lane)
        return word

    @device
    def fill(table: Any, word: Any, source: Any, warp: Any, lane: Any) -> None:
        first = uint32(warp * uint32(32))
        while first < uint32(entries):
            number = uint32(0)
            while number < uint32(most):
                chosen = uint32(number + uint32(lane // uint32(copies)))
                place = uint32(uint32(uint32(first + number) * uint32(4 * copies)) + uint32(lane * uint32(4)))
                _ptx.store_shared_u32(at(table, place), _ptx.shuffle_index(word, chosen))
                number = uint32(number + uint32(at_once))
            first = uint32(first + uint32(32 * n_warps))
            if first < uint32(entries):
                word = load(source, first, lane)

    return TableFiller(begin, fill)


@functools.cache
def finder(lookup: Lookup) -> Any:
    """find(low, high, n, table, place): the entry whose index lies n bits above `lookup.low` in the 64 bits high:low.

    place : the lane's offset among the copies; n may be negative, seen modulo 32, if high is low
    """
    mask = lookup.mask

    @device
    def find(low: Any, high: Any, n: Any, table: Any, place: Any) -> Any:
        index = uint32(uint32(_ptx.shift_right_wide(low, high, n)) & uint32(mask))
        return _ptx.load_shared_u32(at(table, uint32(index | place)))

    return find


@functools.cache
def plane_finder(lookup: Lookup) -> Any:
    """find(low, n, high, m, table, place): the entry of four bits of one word and two of another, as `finder`."""
    low_mask, high_mask = 15 << lookup.low, 3 << lookup.low + 4

    @device
    def find(low: Any, n: Any, high: Any, m: Any, table: Any, place: Any) -> Any:
        index = uint32(uint32(_ptx.shift_right_wide(low, low, n)) & uint32(low_mask))
        index = uint32(index | uint32(uint32(_ptx.shift_right_wide(high, high, m)) & uint32(high_mask)))
        return _ptx.load_shared_u32(at(table, uint32(index | place)))

    return find


class Spot(NamedTuple):
    """Where bits lie in an array of words, for `find`: words low and high, shift n."""

    low: int
    high: int
    n: int


def spot_of(bit: int, width: int, lookup: Lookup) -> Spot:
    """The spot of `width` bits from `bit` on."""
    word, rest = divmod(bit, 32)
    return Spot(word, word + (rest + width > 32), (rest - lookup.low) % 32)
