"""Decode attention on a GPU, arrays in GPU memory in and out: what a call needs beyond pointers, worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from turbocode.errors import OptionError
from turbocode.formats import MultirateFormat
from turbocode.kernels import _launch
from turbocode.kernels._cuda import compute_capability, has_bulk_copies, multiprocessors, shared_limits
from turbocode.kernels._launch import device_array, look, stream_for
from turbocode.kernels.attention.attend_kernel import N_ARGS, attend_kernel
from turbocode.kernels.attention.attend_variant import (
    COLUMNS,
    WARP,
    AttendVariant,
    area_bytes,
    is_direct,
    part_floats,
    rated_sides,
    shared_layout,
)
from turbocode.kernels.attention.gpu_arrays import LOG2_E, Side, check_arrays, compiled_format, float_bits
from turbocode.kernels.attention.key_scores import LANES as KEY_LANES
from turbocode.kernels.attention.lookup import (
    NO_TABLE,
    Lookup,
    TableKind,
    is_possible,
    lookup_of_kind,
    lookup_words,
    table_scale,
)
from turbocode.kernels.attention.rated_arrays import RatedArrays
from turbocode.kernels.attention.skipping import EVERYTHING
from turbocode.kernels.attention.value_sums import LANES as VALUE_LANES
from turbocode.kernels.gpu_call import VALUE_TYPES, WORD

RESERVED = 1 << 10  # bytes of shared memory that the driver takes of each block
MAX_WIDE_SUMS = 32  # accumulators of a lane beyond which a thread needs more than 128 registers


class Shape(NamedTuple):
    """How a kernel is laid out: warps of a block, blocks of a multiprocessor, stages of a warp."""

    n_warps: int
    blocks_at_once: int
    n_stages: int


# The first that fits the shared memory, with tables as large as possible. Scalar codebooks are read nearly as fast from
# small tables, so that two blocks of a multiprocessor, one of which works while the other begins or ends, come first;
# but short caches are divided among as few blocks as possible.
SHAPES = (
    Shape(8, 2, 2),
    Shape(16, 1, 3),
    Shape(16, 1, 2),
    Shape(8, 1, 2),
    Shape(4, 1, 2),
    Shape(1, 1, 2),
)
WIDE_SHAPES = (Shape(8, 1, 2), Shape(4, 1, 2), Shape(1, 1, 2))
# For look-ups that take more registers than shared memory's do, multirate sides, whose tables take what is left, and
# GPUs other than Hopper, whose code takes more registers.
ROOMY_SHAPES = (Shape(12, 1, 2), *WIDE_SHAPES)
HOPPER = (9, 0)
ENOUGH_WARPS = 8  # fewer only where tables of no size leave room for them
RATED_ROOM = 1 << 15  # bytes that should be left for them
RATED_TABLE_BYTES = (1 << 15, 1 << 13, 1 << 11, 0)  # at most, of the table of the other side
TABLE_BYTES = (1 << 17, 1 << 16, 1 << 15, 1 << 13, 1 << 11, 0)  # at most, of one table
SHORT = 4096  # keys a multiprocessor
FULL_PAIRS = 128  # times the number of pairs of indices: bytes of a table of pairs that has a copy for each lane


@dataclass(frozen=True)
class _Call:
    kernel: Any
    grid: int
    threads: int
    shared_bytes: int
    key_words: Any
    value_words: Any
    counts: tuple[Any, ...]
    n_work: int
    n_counters: int


class DecodeAttention:
    """Attention of a few new tokens over a cache of one pair of formats.

    attention(queries, keys, values, last_token, scale=...) -> (output, lse); see codecs/gpu_attention.py
    shape : the layout of the kernel; is_bulk : one lane copies whole tiles; both chosen from the device by default
    tables : the kind of look-ups, of keys and of values where it is possible; by default the fastest
    """

    def __init__(self, keys: Side, values: Side, head_dim: int, shape: Shape | None = None) -> None:
        self.keys, self.values, self.head_dim, self.shape = keys, values, head_dim, shape
        self.is_bulk: bool | None = None
        self.skipping = EVERYTHING
        self.tables: TableKind | None = None
        for side in (keys, values):
            if not is_direct(side.block_format):
                raise OptionError(f"{side.block_format.name} has no fast attention kernel")
        self._scales = [table_scale(side.block_format, side.centroids) for side in (keys, values)]
        self._rated = None
        if any(isinstance(side.block_format, MultirateFormat) for side in (keys, values)):
            self._rated = RatedArrays(keys, values)
        self._shares_table = (
            self._rated is None
            and keys.block_format == values.block_format
            and np.array_equal(keys.centroids, values.centroids)
        )
        self._tables: dict[tuple[int, int, Lookup], Any] = {}  # by device, side
        self._calls: dict[Any, _Call] = {}
        self._rooms: dict[tuple[int, int], _Room] = {}

    def __call__(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        last_token: Any,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        first_token: int = 0,
        pages: Any = None,
        gains: Any = None,
        n_blocks: int | None = None,
        out: Any = None,
        lse: Any = None,
        stream: Any = None,
    ) -> tuple[Any, Any]:
        q_key, q, device = look(queries)
        if out is None or lse is None:
            like = device_array(queries)
            out = _launch.empty(like, like.shape, like.dtype) if out is None else out
            lse = _launch.empty(like, like.shape[:-1], "float32") if lse is None else lse
        k_key, k, _ = look(keys)
        v_key, v, _ = look(values)
        last_key, last, _ = look(last_token)
        out_key, target, _ = look(out)
        lse_key, lse_target, _ = look(lse)
        page_key, page_table = (None, 0) if pages is None else look(pages)[:2]
        gain_key, gain_table = (None, 0) if gains is None else look(gains)[:2]
        options = scale, window, softcap, first_token, n_blocks
        key = q_key, k_key, v_key, last_key, out_key, lse_key, page_key, gain_key, options
        call = self._calls.get(key)
        if call is None:
            given = queries, keys, values, last_token, out, lse, pages, gains
            arrays = [None if array is None else device_array(array) for array in given]
            call = self._calls[key] = self._prepare(arrays, *options)
        handle = stream_for(stream, queries, device)
        room = self._room(device, handle, call)
        pointers: tuple[Any, ...] = (
            q,
            target,
            lse_target,
            k,
            v,
            call.key_words.pointer,
            call.value_words.pointer,
            last,
            page_table,
        )
        pointers += (room.work, room.counters, gain_table)
        if call.grid:
            args = pointers + call.counts
            _launch.launch(call.kernel, call.grid, call.threads, device, handle, args, False, call.shared_bytes)
        return out, lse

    def _room(self, device: int, stream: int, call: _Call) -> _Room:
        found = self._rooms.get((device, stream))
        if found is None or found.n_work < call.n_work or found.n_counters < call.n_counters:
            before = found or _Room(0, 0, 0, 0, ())
            n_work = max(call.n_work, before.n_work)
            n_counters = max(call.n_counters, before.n_counters)
            work = _launch.upload(np.zeros(n_work, np.float32), device)
            counters = _launch.upload(np.zeros(n_counters, np.uint32), device)
            owners = (work, counters, before.owners)  # what runs still may use the smaller ones
            found = self._rooms[device, stream] = _Room(work.pointer, counters.pointer, n_work, n_counters, owners)
        return found

    def _prepare(
        self, arrays: list[Any], scale: float, window: int, softcap: float, first_token: int, n_blocks: int | None
    ) -> _Call:
        queries, keys, values, _, out, _, pages, gains = arrays
        n_seqs, n_heads, n_rows = check_arrays(arrays, self.keys, self.values, self.head_dim)
        n_kv_heads, d = keys.shape[1], self.head_dim
        per_head = n_heads // n_kv_heads
        if window < 0 or softcap < 0 or first_token < 0 or (n_blocks is not None and n_blocks < 1):
            raise OptionError(
                f"window {window}, softcap {softcap}, first_token {first_token}, n_blocks {n_blocks}: "
                "allowed are numbers from 0 on, blocks from 1 on"
            )
        is_paged = pages is not None
        page_tokens = keys.shape[2] if is_paged else 1
        n_tokens = pages.shape[1] * page_tokens if is_paged else keys.shape[2]
        starts = [side.pointer for side in (keys, values)]
        gaps = [
            stride
            for side in (keys, values)
            for stride, n in zip(side.strides[:2], side.shape[:2], strict=True)
            if n > 1
        ]
        is_late = any(_launch.number_of(start) % WORD for start in starts) or any(gap % WORD for gap in gaps)
        if is_paged and (is_late or page_tokens % 16 or page_tokens & (page_tokens - 1)):
            raise OptionError(
                f"pages of {page_tokens} tokens whose rows begin at strides {gaps}: allowed are 16, 32, 64, ... tokens "
                "and multiples of 16 bytes"
            )
        columns = per_head * n_rows
        sums = d // 8 * 2
        n_tiles = 2 if columns > COLUMNS and sums <= MAX_WIDE_SUMS else 1
        variant = AttendVariant(
            compiled_format(self.keys.block_format),
            compiled_format(self.values.block_format),
            self.keys.rotation,
            self.values.rotation,
            d,
            NO_TABLE,
            NO_TABLE,
            False,
            len(self.keys.centroids) > 1 or len(self.values.centroids) > 1,
            n_tiles,
            1,
            2,
            1,
            VALUE_TYPES[queries.dtype],
            VALUE_TYPES[out.dtype],
            is_paged,
            is_late,
            has_bulk_copies(queries.device) if self.is_bulk is None else self.is_bulk,
            softcap > 0,
            gains is not None,
            self.skipping.is_on,
        )
        n_vectors = n_seqs * n_kv_heads * n_tokens
        variant = self._fitted(variant, queries.device, sums * n_tiles > MAX_WIDE_SUMS, n_vectors)
        kernel, threads = attend_kernel(variant), WARP * variant.n_warps
        shared_bytes, rated = self._used_bytes(variant), None
        if self._rated is not None:
            room = _shared_room(queries.device, variant.blocks_at_once)
            rated, shared_bytes = self._rated.on_device(queries.device, room - shared_bytes), room
        groups = -(-columns // (COLUMNS * n_tiles))
        grid = n_blocks or _launch.resident(kernel, N_ARGS, threads, queries.device, shared_bytes)
        lookups = variant.key_lookup, variant.value_lookup
        tables = [
            rated.words[number] if rated and lookup.side_words else self._table(queries.device, number, lookup)
            for number, lookup in enumerate(lookups)
        ]
        gaps_of_tables = [
            4 * lookup.words if len(side.centroids) > 1 else 0
            for side, lookup in zip((self.keys, self.values), lookups, strict=True)
        ]
        factor = (scale / softcap if softcap else scale * LOG2_E) / self._scales[0]
        counts = (
            *(n_seqs, n_kv_heads, per_head, n_rows, n_tokens, first_token, window),
            *(queries.strides[0], queries.strides[1], queries.strides[2]),
            *(out.strides[0], out.strides[1], out.strides[2]),
            *(keys.strides[0], keys.strides[1], values.strides[0], values.strides[1]),
            *(pages.strides[0] // 4 if is_paged else 0, page_tokens.bit_length() - 1),
            *gaps_of_tables,
            *(float_bits(factor), float_bits(softcap * LOG2_E), float_bits(1 / self._scales[1])),
            *(float_bits(self.skipping.sparse_v), float_bits(self.skipping.tile_floor * LOG2_E)),
            *((rated.image.pointer, 4 * rated.image.shape[0]) if rated else (0, 0)),
            *(side.block_format.bytes_per_vector(d) for side in (self.keys, self.values)),
        )
        assert len(counts) + 12 == N_ARGS
        is_empty = 0 in (n_seqs, n_heads, n_rows)
        return _Call(
            kernel,
            0 if is_empty else grid,
            threads,
            shared_bytes,
            tables[0],
            tables[1],
            counts,
            2 * grid * part_floats(variant),
            max(1, n_seqs * n_kv_heads * groups),
        )

    def _table_kinds(self) -> list[TableKind]:
        """Of keys and of values. Raises OptionError if neither can be looked up as wanted."""
        sides = (self.keys, KEY_LANES), (self.values, VALUE_LANES)

        def allows(kind: TableKind) -> list[bool]:
            return [is_possible(side.block_format, lanes, kind, side.centroids) for side, lanes in sides]

        kinds = [TableKind.REGISTERS if allows(TableKind.REGISTERS)[0] else TableKind.SHARED, TableKind.SHARED]
        if self.tables is not None:
            fits = allows(self.tables)
            if not any(fits):
                names = ", ".join(kind.value for kind in TableKind if any(allows(kind)))
                raise OptionError(
                    f"neither {self.keys.block_format.name} nor {self.values.block_format.name} has tables of the kind "
                    f"{self.tables.value}; allowed: {names}"
                )
            kinds = [self.tables if fit else kind for fit, kind in zip(fits, kinds, strict=True)]
        return kinds

    def _table(self, device: int, number: int, lookup: Lookup) -> Any:
        """The words of the keys' (0) or the values' (1) table in the GPU's memory."""
        key = device, number, lookup
        if key not in self._tables:
            side = (self.keys, self.values)[number]
            self._tables[key] = _launch.upload(lookup_words(side.block_format, side.centroids, lookup), device)
        return self._tables[key]

    def _used_bytes(self, variant: AttendVariant) -> int:
        """Shared memory of a block, but for the image of multirate sides."""
        size = shared_layout(variant).size
        if any(rated_sides(variant)):
            size += area_bytes(
                variant, *(side.block_format.bytes_per_vector(self.head_dim) for side in (self.keys, self.values))
            )
        return size

    def _fitted(self, variant: AttendVariant, device: int, is_wide: bool, n_vectors: int) -> AttendVariant:
        """The variant with the layout and the copies of tables that the device's shared memory holds."""
        sides, kinds = (self.keys, self.values), self._table_kinds()
        is_hopper = compute_capability(device) == HOPPER
        is_trellis = variant.key_format.is_trellis or variant.value_format.is_trellis
        is_roomy = not is_hopper or self.tables in (TableKind.REGISTERS, TableKind.CACHED, TableKind.CONSTANT)
        shapes: tuple[Shape, ...] = ROOMY_SHAPES if is_roomy else SHAPES
        if is_wide or (is_trellis and not is_hopper):
            shapes = WIDE_SHAPES
        sizes: Sequence[int] = TABLE_BYTES
        image = 0
        if self._rated is not None:
            shapes = WIDE_SHAPES if is_wide else ROOMY_SHAPES
            sizes, image = RATED_TABLE_BYTES, self._rated.least_bytes
        if self.shape:
            shapes = (self.shape,)
        pairs = [(shape, most) for most in sizes for shape in shapes]
        pairs.sort(key=lambda pair: -min(pair[0].n_warps, ENOUGH_WARPS))
        if not is_trellis and (is_wide or n_vectors > SHORT * multiprocessors()):
            full = FULL_PAIRS << 2 * max(variant.key_format.bits, variant.value_format.bits)
            sizes = (full,) if is_wide else [most for most in TABLE_BYTES if most >= full]
            pairs = [(shapes[0], most) for most in sizes] + pairs
        elif not is_trellis:
            pairs = [pair for pair in pairs if pair[0].blocks_at_once == 1] or pairs
        tried = [(image, *pair) for pair in pairs]
        if image:
            roomy = [(max(image, RATED_ROOM), *pair) for pair in pairs if pair[0].n_warps >= ENOUGH_WARPS]
            tried = roomy + tried
        for left, shape, most in tried:
            keys, values = (
                lookup_of_kind(side.block_format, kind, side.centroids, most)
                for side, kind in zip(sides, kinds, strict=True)
            )
            found = replace_shape(variant, shape, keys, values)
            found = found._replace(shares_table=self._shares_table and keys == values)
            if self._used_bytes(found) + left <= _shared_room(device, shape.blocks_at_once):
                return found
        raise OptionError(
            f"{variant.key_format.name} and {variant.value_format.name} need {self._used_bytes(found) + image} bytes "
            f"of shared memory; this GPU has {_shared_room(device, 1)} a block"
        )


@dataclass(frozen=True, eq=False)
class _Room:
    """What the calls in one stream share: partial results, and counters that are zero between calls."""

    work: Any
    counters: Any
    n_work: int
    n_counters: int
    owners: Any


def _shared_room(device: int, blocks_at_once: int) -> int:
    """Shared memory that a block may ask for where so many share a multiprocessor."""
    per_block, per_multiprocessor = shared_limits(device)
    return min(per_block, per_multiprocessor // blocks_at_once - RESERVED)


def replace_shape(variant: AttendVariant, shape: Shape, key_lookup: Lookup, value_lookup: Lookup) -> AttendVariant:
    """The variant with another layout and other look-ups."""
    return variant._replace(
        key_lookup=key_lookup,
        value_lookup=value_lookup,
        n_warps=shape.n_warps,
        n_stages=shape.n_stages,
        blocks_at_once=shape.blocks_at_once,
    )
