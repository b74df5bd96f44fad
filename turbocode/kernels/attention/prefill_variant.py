"""What the prefill kernel is compiled for, and how a block of it divides its shared memory."""

from __future__ import annotations

from typing import NamedTuple

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels.attention.lookup import Lookup
from turbocode.kernels.attention.word_copy import WORD

WARP = 32
WARP_ROWS = 16  # query rows of a warp: those of one product of matrices
SLACK = 2 * WORD  # behind a stage: rows may begin up to 14 bytes late, and the last word read ends beyond them
N_STAGES = 2
BOUNDS_BYTES = 16  # of a warp: which tokens some row of it sees, and which all see; those of each row follow


class PrefillVariant(NamedTuple):
    """tile : tokens that a block handles at a time; n_warps : of a block, of 16 query rows each

    shares_table : keys and values are looked up in one table
    is_late : rows begin at any even address; is_paged : they lie in pages
    """

    key_format: BlockFormat
    value_format: BlockFormat
    head_dim: int
    key_lookup: Lookup
    value_lookup: Lookup
    shares_table: bool
    tile: int
    n_warps: int
    blocks_at_once: int
    is_late: bool
    has_softcap: bool
    is_paged: bool

    @property
    def rows(self) -> int:
        """Query rows of a block."""
        return WARP_ROWS * self.n_warps

    @property
    def row_bytes(self) -> int:
        """From one float16 row in shared memory to the next: an odd number of words apart, eight rows lie in different
        banks wherever a matrix is read."""
        return 2 * self.head_dim + WORD


class PrefillLayout(NamedTuple):
    """Bytes from the beginning of a block's shared memory."""

    key_words: int
    value_words: int
    queries: int
    keys: int
    values: int
    key_stages: int
    value_stages: int
    bounds: int
    size: int


def stage_bytes(form: BlockFormat, head_dim: int, tile: int) -> int:
    """Shared memory of one tile of rows as they are stored."""
    return -(-(tile * form.bytes_per_vector(head_dim)) // WORD) * WORD + SLACK


def prefill_layout(variant: PrefillVariant) -> PrefillLayout:
    """Where what lies."""
    tile_bytes = variant.tile * variant.row_bytes
    value_words = 0 if variant.shares_table else variant.key_lookup.shared_bytes
    queries = variant.key_lookup.shared_bytes + (0 if variant.shares_table else variant.value_lookup.shared_bytes)
    queries = -(-queries // WORD) * WORD
    keys = queries + variant.rows * variant.row_bytes
    values = keys + tile_bytes
    key_stages = values + tile_bytes
    value_stages = key_stages + N_STAGES * stage_bytes(variant.key_format, variant.head_dim, variant.tile)
    bounds = value_stages + N_STAGES * stage_bytes(variant.value_format, variant.head_dim, variant.tile)
    size = bounds + (BOUNDS_BYTES + 8 * WARP_ROWS) * variant.n_warps
    return PrefillLayout(0, value_words, queries, keys, values, key_stages, value_stages, bounds, size)
