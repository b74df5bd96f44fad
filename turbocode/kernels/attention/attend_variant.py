"""What the fast attention kernel is compiled for, and how a block of it divides its shared memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

from turbocode.formats import BlockFormat, MultirateFormat
from turbocode.kernels.attention.combine import Combiner, combiner
from turbocode.kernels.attention.key_scores import HALF_TILE, KeyScores, key_scores
from turbocode.kernels.attention.lookup import Lookup
from turbocode.kernels.attention.rated_scores import rated_scores
from turbocode.kernels.attention.rated_sums import CHANNELS as RATED_CHANNELS
from turbocode.kernels.attention.rated_sums import rated_channel, rated_sums
from turbocode.kernels.attention.ring_heads import HEADS_BYTES
from turbocode.kernels.attention.tile_copy import BARRIER_BYTES, stage_bytes
from turbocode.kernels.attention.token_order import is_spread
from turbocode.kernels.attention.value_sums import ValueSums, sum_channel, value_sums
from turbocode.kernels.attention.word_copy import WORD
from turbocode.kernels.attention.work_split import TABLE_BYTES
from turbocode.kernels.fwht.hadamard import Rotation

TILE = 32  # tokens that a warp handles at a time
WARP = 32
COLUMNS = 8  # of a column tile: query heads of a KV head, times rows


class AttendVariant(NamedTuple):
    """Types are of fwht/lanes.py. Multirate formats are `any_schedule`, whose rows may have any size.

    shares_table : keys and values are looked up in one table; tables_per_head : each head has tables of its own
    n_column_tiles : of eight query columns that a block handles at once; n_warps, n_stages : of a block, of a warp
    has_skips : what hardly counts may be left out (skipping.py)
    is_paged : rows lie in pages; is_late : rows begin at any even address; is_bulk : one lane copies whole tiles
    """

    key_format: BlockFormat | MultirateFormat
    value_format: BlockFormat | MultirateFormat
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
    """Bytes from the beginning of a block's shared memory; with a multirate side, from the end of its image of tables.

    heads : of a warp, for each multirate side (ring_heads.py)
    """

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
    heads: int
    size: int


def is_direct(form: BlockFormat | MultirateFormat) -> bool:
    """Whether the kernel knows the format: blocks are shared out among lanes that take multiples of four values."""
    return form.values_per_block % (RATED_CHANNELS if isinstance(form, MultirateFormat) else HALF_TILE) == 0


def row_bytes(form: BlockFormat | MultirateFormat, head_dim: int) -> int:
    """Bytes of a row that the kernel is compiled for, 0 for any."""
    return 0 if isinstance(form, MultirateFormat) else form.bytes_per_vector(head_dim)


def rated_sides(variant: AttendVariant) -> tuple[bool, bool]:
    """Whether keys are multirate blocks, and values."""
    keys, values = (isinstance(form, MultirateFormat) for form in (variant.key_format, variant.value_format))
    return keys, values


def area_bytes(variant: AttendVariant, key_bytes: int, value_bytes: int) -> int:
    """Shared memory of the stages, for rows of so many bytes, and afterwards of partial results."""
    stages = stage_bytes(key_bytes, TILE) + stage_bytes(value_bytes, TILE)
    return max(stages * variant.n_stages * variant.n_warps, joined(variant).area_bytes)


@functools.cache
def shared_layout(variant: AttendVariant) -> SharedLayout:
    """Where what lies. The area is last if its size is not known before a call; it is not part of `size` then."""
    d, columns = variant.head_dim, COLUMNS * variant.n_column_tiles
    n_rated = sum(rated_sides(variant))
    value_table = variant.key_lookup.shared_bytes
    area = value_table + (0 if variant.shares_table else variant.value_lookup.shared_bytes)
    rows = area
    if not n_rated:
        rows += area_bytes(variant, *(row_bytes(form, d) for form in (variant.key_format, variant.value_format)))
    fragments = rows + 4 * columns * d
    tops = fragments + 2 * columns * d
    totals = tops + 4 * columns
    flag = totals + 4 * columns
    first_table = 0 if variant.shares_table else value_table
    barriers = flag + WORD
    tokens = barriers + (BARRIER_BYTES * variant.n_stages * variant.n_warps if variant.is_bulk else 0)
    heads = -(-(tokens + TABLE_BYTES) // WORD) * WORD
    size = heads + HEADS_BYTES * n_rated * variant.n_warps
    if n_rated:
        area = size
    return SharedLayout(0, first_table, area, rows, fragments, tops, totals, flag, barriers, tokens, heads, size)


def scores_of(variant: AttendVariant) -> KeyScores:
    """What scores keys."""
    d, n_tiles, spreads = variant.head_dim, variant.n_column_tiles, is_spread(variant.value_format, variant.head_dim)
    if isinstance(variant.key_format, MultirateFormat):
        return rated_scores(d, n_tiles, TILE, spreads)
    return key_scores(variant.key_format, d, variant.key_lookup, n_tiles, TILE, spreads)


def sums_of(variant: AttendVariant) -> ValueSums:
    """What sums values up."""
    d, n_tiles, spreads = variant.head_dim, variant.n_column_tiles, is_spread(variant.value_format, variant.head_dim)
    if isinstance(variant.value_format, MultirateFormat):
        return rated_sums(d, n_tiles, TILE, spreads)
    return value_sums(variant.value_format, d, variant.value_lookup, n_tiles, TILE, spreads)


def part_floats(variant: AttendVariant) -> int:
    """float32 numbers of a partial result in global memory."""
    return int(joined(variant).part_floats)


def joined(variant: AttendVariant) -> Combiner:
    """What adds up partial results."""
    d, form = variant.head_dim, variant.value_format
    channel_of = rated_channel() if isinstance(form, MultirateFormat) else sum_channel(d, form, variant.value_lookup)
    return combiner(channel_of, d, sums_of(variant).sums, variant.n_column_tiles, variant.n_warps)
