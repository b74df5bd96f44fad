"""From index bits to float16 values by look-ups, for the fast attention kernel.

Lanes of a warp ask for entries that have nothing to do with each other, so a table lies in shared memory in up to 32
copies, entry by entry: then each lane reads its own bank and all are answered at once. What a look-up gives:

- scalar codebooks, a byte of the stored bits: four values of two bits; two of three bits, whether they begin at the
  byte's first or third bit; two of four bits. An entry is 256 bytes long, so that the byte is the second one of its
  offset and one instruction makes an address of it.
- scalar codebooks where that does not fit, or runs of values are no whole bytes: a pair of values.
- trellises: a pair of values for two states in a row if all of these fit, else the value of one state.

Keys of two bits need no table: see run_in_registers.py. Values keep theirs, so that neither shared memory nor the
arithmetic units wait for the other. Other kinds of tables are there to be compared: docs/log.md.
"""

from __future__ import annotations

import enum
import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbocode.formats import BlockFormat, MultirateFormat
from turbocode.formats.block_format import Layout
from turbocode.kernels.attention.rate_tables import side_word_count
from turbocode.kernels.attention.unbiased_halves import unbiased_halves

MAX_COPIES_LOG2 = 5
BYTE_ROW = 256  # bytes of an entry that a byte chooses
WHOLE_BYTES = 32  # values of a block whose eighth is whole bytes for 2, 3 and 4 bits
REGISTER_VALUES = 16  # of two bits in a word
_TABLE_FREE = (Layout.Q8_0, Layout.FLOAT16)
_N_SCALES = 1 << 18  # that `_scale_of` tries


class TableKind(enum.Enum):
    """Where look-ups go: of all formats, of two bits, of symmetric codebooks, and twice of trellises."""

    SHARED = "shared"
    REGISTERS = "registers"
    MAGNITUDES = "magnitudes"  # in shared memory, half as many entries of a value; the sign is put in afterwards
    CACHED = "cached"  # where the table lies, through the first cache
    CONSTANT = "constant"  # compiled into the kernel, which is then one codebook's


class Lookup(NamedTuple):
    """index_bits : of a stream that a look-up consumes or sees, 0 without a table; copies_log2 : copies of the table

    is_by_byte : entries are two words, 32 times, 256 bytes in all; else one word
    side_words : of a multirate side (rate_tables.py), which lie in shared memory instead of a table
    constants : the words of TableKind.CONSTANT
    """

    index_bits: int
    copies_log2: int
    is_by_byte: bool = False
    kind: TableKind = TableKind.SHARED
    constants: bytes = b""
    side_words: int = 0

    @property
    def entries(self) -> int:
        return 1 << self.index_bits if self.index_bits else 0

    @property
    def in_shared(self) -> bool:
        """Whether there is a table in shared memory."""
        return (self.index_bits > 0 or self.side_words > 0) and self.kind in (TableKind.SHARED, TableKind.MAGNITUDES)

    @property
    def shared_bytes(self) -> int:
        if self.side_words:
            return 4 * self.side_words
        if not self.in_shared:
            return 0
        return self.entries * BYTE_ROW if self.is_by_byte else self.entries * 4 << self.copies_log2

    @property
    def words(self) -> int:
        """Of all entries in global memory."""
        n = 2 if self.kind is TableKind.REGISTERS else max(1, self.entries * (2 if self.is_by_byte else 1))
        return self.side_words or n

    @property
    def low(self) -> int:
        """The bit at which an index has to lie to be the offset of its entry."""
        return 2 + self.copies_log2

    @property
    def mask(self) -> int:
        return (self.entries - 1) << self.low


NO_TABLE = Lookup(0, 0)
IN_REGISTERS = Lookup(0, 0, kind=TableKind.REGISTERS)


def is_joint(form: BlockFormat) -> bool:
    """Whether the two words of an entry lie side by side, read by one look-up, and not 128 bytes apart."""
    return form.bits == 2


def lookup_for(form: BlockFormat | MultirateFormat, shared_bytes: int) -> Lookup:
    """The look-up of a format whose table is best for `shared_bytes`; the smallest has one copy and any size."""
    if isinstance(form, MultirateFormat):
        return Lookup(0, 0, side_words=side_word_count(form.head_dim))
    if form.layout in _TABLE_FREE:
        return NO_TABLE
    if form.is_trellis:
        pairs = Lookup(form.states_log2 + form.bits, MAX_COPIES_LOG2)
        if pairs.shared_bytes <= shared_bytes:
            return pairs
    elif form.layout is not Layout.SPLIT_PLANES and form.bits in (2, 3, 4) and form.values_per_block % WHOLE_BYTES == 0:
        by_byte = Lookup(8, MAX_COPIES_LOG2, True)
        if by_byte.shared_bytes <= shared_bytes:
            return by_byte
    index_bits = form.states_log2 if form.is_trellis else 2 * form.bits
    copies = MAX_COPIES_LOG2
    while copies > 0 and Lookup(index_bits, copies).shared_bytes > shared_bytes:
        copies -= 1
    return Lookup(index_bits, copies)


def is_possible(
    form: BlockFormat | MultirateFormat, parts: int, kind: TableKind, centroids: NDArray[np.float32]
) -> bool:
    """Whether a format's centroids (n, entries) can be looked up so, where `parts` lanes share a block."""
    if isinstance(form, MultirateFormat):
        return kind is TableKind.SHARED
    if kind is TableKind.REGISTERS:
        return (
            form.layout is Layout.BITSTREAM
            and form.bits == 2
            and form.values_per_block % (parts * REGISTER_VALUES) == 0
        )
    if kind is TableKind.MAGNITUDES:
        is_packed = form.layout is Layout.BITSTREAM and not form.is_trellis and form.bits in (2, 3, 4)
        return is_packed and bool((centroids == -centroids[:, ::-1]).all())
    if kind is TableKind.CONSTANT:
        return form.is_trellis and len(centroids) == 1
    return kind is TableKind.SHARED or form.is_trellis


def lookup_of_kind(form: BlockFormat, kind: TableKind, centroids: NDArray[np.float32], shared_bytes: int) -> Lookup:
    """The look-up of a kind that is possible."""
    if kind is TableKind.REGISTERS:
        return IN_REGISTERS
    if kind is TableKind.MAGNITUDES:
        return Lookup(2 * form.bits - 1, MAX_COPIES_LOG2, kind=kind)
    if kind is TableKind.SHARED:
        return lookup_for(form, shared_bytes)
    found = Lookup(form.states_log2, 0, kind=kind)
    if kind is TableKind.CONSTANT:
        return found._replace(constants=lookup_words(form, centroids, found).tobytes())
    return found


@functools.cache
def _scale_of(magnitudes: tuple[float, ...]) -> float:
    """The factor in [1, 2) by which the magnitudes come closest to float16 numbers, relatively and at worst."""
    scales = 1 + np.arange(_N_SCALES) / _N_SCALES
    scaled = scales.astype(np.float32)[:, None] * np.array(magnitudes, np.float32)
    error = np.abs(scaled.astype(np.float16).astype(np.float32) / scaled - 1).max(axis=1)
    return float(np.float32(scales[error.argmin()]))


def table_scale(form: BlockFormat | MultirateFormat, centroids: NDArray[np.float32]) -> float:
    """What a table's values are multiplied by: with few magnitudes there is a scale by which they are nearly float16
    numbers, within 1e-5 for four of them."""
    if form.layout in _TABLE_FREE or form.is_trellis or form.layout is Layout.Q4_0:
        return 1.0
    magnitudes = np.unique(np.abs(centroids[centroids != 0]))
    return _scale_of(tuple(magnitudes.tolist())) if len(magnitudes) else 1.0


def lookup_words(form: BlockFormat, centroids: NDArray[np.float32], lookup: Lookup) -> NDArray[np.uint32]:
    """Tables uint32 (n, lookup.words) of centroids float32 (n, 2**bits), or of a trellis's values (n, 2**L).

    A pair has its first value in the low half of a word, as float16 and times `table_scale`.
    """
    if form.layout in _TABLE_FREE:
        return np.zeros((1, 1), np.uint32)
    i = np.arange(lookup.entries)
    if form.is_trellis:
        halves = np.stack([unbiased_halves(table) for table in centroids])
        if lookup.index_bits == form.states_log2:
            return halves
        states = (1 << form.states_log2) - 1
        return _pairs(halves, i & states, i >> form.bits & states)
    if form.layout is Layout.Q4_0:
        centroids = np.arange(-8, 8, dtype=np.float32)[None]
    scaled = (centroids * np.float32(table_scale(form, centroids))).astype(np.float16)
    halves, bits = scaled.view(np.uint16).astype(np.uint32), form.bits
    index = (1 << bits) - 1
    if lookup.kind is TableKind.REGISTERS:
        return _bytes_apart(halves)
    if lookup.kind is TableKind.MAGNITUDES:  # the bit between those of two magnitudes is a sign's, and not looked at
        half = 1 << bits - 1
        return _pairs(halves[:, half:], i & half - 1, i >> bits)
    if lookup.is_by_byte:
        further = (8 - 2 * bits) if bits == 3 else 2 * bits % 8  # the bit at which the second pair begins
        pairs = [_pairs(halves, i >> n & index, i >> n + bits & index) for n in (0, further)]
        return np.stack(pairs, axis=-1).reshape(len(halves), -1)
    if form.layout is Layout.SPLIT_PLANES:  # two low bits of each, then the third of each
        return _pairs(halves, i & 3 | (i >> 4 & 1) << 2, i >> 2 & 3 | (i >> 5) << 2)
    return _pairs(halves, i & index, i >> bits)


def _bytes_apart(halves: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(n, 2): the low bytes of four float16, and the high bytes."""
    places = np.arange(0, 32, 8, dtype=np.uint32)
    parts = [((halves >> np.uint32(shift) & np.uint32(255)) << places).sum(axis=1) for shift in (0, 8)]
    return np.stack(parts, axis=-1).astype(np.uint32)


def _pairs(halves: NDArray[np.uint32], low: NDArray[np.intp], high: NDArray[np.intp]) -> NDArray[np.uint32]:
    return halves[:, low] | halves[:, high] << np.uint32(16)
