"""What the fast attention kernel is compiled for, and how a block of it divides its shared memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels.attention.combine import Combiner, combiner
from turbocode.kernels.attention.key_scores import HALF_TILE
from turbocode.kernels.attention.lookup import Lookup
from turbocode.kernels.attention.tile_copy import BARRIER_BYTES, stage_bytes
from turbocode.kernels.attention.token_order import is_spread
from turbocode.kernels.attention.value_sums import sum_channel, value_sums
from turbocode.kernels.attention.word_copy import WORD
from turbocode.kernels.attention.work_split import TABLE_BYTES
from turbocode.kernels.fwht.hadamard import Rotation

TILE = 32  # tokens that a warp handles at a time
WARP = 32
COLUMNS = 8  # of a column tile: query heads of a KV head, times rows


class AttendVariant(NamedTuple):
    """Types are of fwht/lanes.py.

    shares_table : keys and values are looked up in one table; tables_per_head : each head has tables of its own
    n_column_tiles : of eight query columns that a block handles at once; n_warps, n_stages : of a block, of a warp
    has_skips : what hardly counts may be left out (skipping.py)
    is_paged : rows lie in pages; is_late : rows begin at any even address; is_bulk : one lane copies whole tiles
    """

    key_format: BlockFormat
    value_format: BlockFormat
    key_rotation: Rotation
    value_rotation: Rotation
    head_dim: int
    key_lookup: Lookup
    value_lookup: Lookup
    shares_table: bool
    tables_per_head: bool
    n_column_tiles: int
    n_warps: int
    n_stages: int
    blocks_at_once: int
    query_type: int
    out_type: int
    is_paged: bool
    is_late: bool
    is_bulk: bool
    has_softcap: bool
    has_gain: bool
    has_skips: bool = False


class SharedLayout(NamedTuple):
    """Bytes from the beginning of a block's shared memory."""

    key_table: int
    value_table: int
    area: int
    rows: int
    fragments: int
    tops: int
    totals: int
    flag: int
    barriers: int
    tokens: int
    size: int


def is_direct(form: BlockFormat) -> bool:
    """Whether the kernel knows the format: blocks are shared out among lanes that take multiples of four values."""
    return form.values_per_block % HALF_TILE == 0


def stage_sizes(variant: AttendVariant) -> tuple[int, int]:
    """Bytes of a warp's stage of keys, and of values."""
    forms = variant.key_format, variant.value_format
    keys, values = (stage_bytes(form.bytes_per_vector(variant.head_dim), TILE) for form in forms)
    return keys, values


@functools.cache
def shared_layout(variant: AttendVariant) -> SharedLayout:
    """Where what lies; the area holds the stages, and afterwards partial results."""
    d, columns = variant.head_dim, COLUMNS * variant.n_column_tiles
    stages = sum(stage_sizes(variant)) * variant.n_stages * variant.n_warps
    value_table = variant.key_lookup.shared_bytes
    area = value_table + (0 if variant.shares_table else variant.value_lookup.shared_bytes)
    rows = area + max(stages, joined(variant).area_bytes)
    fragments = rows + 4 * columns * d
    tops = fragments + 2 * columns * d
    totals = tops + 4 * columns
    flag = totals + 4 * columns
    first_table = 0 if variant.shares_table else value_table
    barriers = flag + WORD
    tokens = barriers + (BARRIER_BYTES * variant.n_stages * variant.n_warps if variant.is_bulk else 0)
    size = tokens + TABLE_BYTES
    return SharedLayout(0, first_table, area, rows, fragments, tops, totals, flag, barriers, tokens, size)


def part_floats(variant: AttendVariant) -> int:
    """float32 numbers of a partial result in global memory."""
    return int(joined(variant).part_floats)


def joined(variant: AttendVariant) -> Combiner:
    """What adds up partial results."""
    d, n_tiles = variant.head_dim, variant.n_column_tiles
    n_sums = value_sums(
        variant.value_format, d, variant.value_lookup, n_tiles, TILE, is_spread(variant.value_format, d)
    ).sums
    channel_of = sum_channel(d, variant.value_format, variant.value_lookup)
    return combiner(channel_of, d, n_sums, n_tiles, variant.n_warps)
