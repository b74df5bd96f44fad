"""From blocks to values for groups of a power of two, trellises too: the way of encode_lanes.py backwards."""

from __future__ import annotations

import enum
import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.fwht.hadamard import Rotation
from turbocode.kernels.fwht.lanes import CHUNK, VALUE_BYTES, lanes_for, storer
from turbocode.kernels.scalar.gpu_steps import CENTROIDS_AT
from turbocode.kernels.scalar.tile import tile_bytes, tile_reader
from turbocode.kernels.vectors import N_GEOMETRY_ARGS, group_address

THREADS = 128
N_ARGS = 3 + N_GEOMETRY_ARGS

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_ZERO = np.float32(0.0)


class Placement(enum.IntEnum):
    """Where a decoding kernel reads a trellis's table: measured in docs/benchmarks/gpu.md."""

    SHARED = 0  # each block copies it to shared memory
    CACHED = 1  # where it lies, through the first cache
    CONSTANT = 2  # compiled into the kernel, which is then one codebook's


class DecodeVariant(NamedTuple):
    """What a decoding kernel is compiled for; out_type is of lanes.py, a rotation that is the identity is left out."""

    block_format: BlockFormat
    rotation: Rotation
    out_type: int
    reads_strided: bool
    writes_strided: bool
    placement: Placement = Placement.SHARED


@functools.cache
def decode_kernel(variant: DecodeVariant, values: bytes = b"") -> tuple[Any, int]:
    """(kernel, groups a block handles); values : the table, float32, that Placement.CONSTANT compiles in."""
    form, rotation = variant.block_format, variant.rotation
    g = form.group_size
    lanes = lanes_for(g)
    n_lanes, n_values = lanes.lanes, lanes.values
    store = storer(variant.out_type, n_lanes, n_values)
    is_rotated = not rotation.is_identity
    first_masks, last_masks = lanes.masks(rotation.signs_after), lanes.masks(rotation.signs_before)
    is_signed, turn_scale = bool(first_masks.any() or last_masks.any()), rotation.scale
    group_bytes, value_bytes = form.bytes_per_group, VALUE_BYTES[variant.out_type]
    per_warp, per_block = 32 // n_lanes, THREADS // n_lanes
    tile = tile_bytes(per_warp * group_bytes)
    n_tiles = tile * (THREADS // 32) // 4
    is_trellis, has_table = form.is_trellis, form.has_codebook and not form.is_trellis
    keeps_table = is_trellis and variant.placement is Placement.SHARED
    n_kept = 1 << form.states_log2 if keeps_table else 1
    read_in = tile_reader(variant.reads_strided, group_bytes, n_lanes)
    write_at = group_address(variant.writes_strided, g * value_bytes)
    take = _taker(form, _looker(variant.placement, values))
    butterflies, flip, scale = lanes.butterflies, lanes.flip, lanes.scale

    @kernel(launch_bounds=(THREADS, 4))
    def decode(
        source: Any,
        target: Any,
        table: Any,
        n_groups: Any,
        per_vector: Any,
        n_tokens: Any,
        n_heads: Any,
        in_token: Any,
        in_head: Any,
        in_seq: Any,
        out_token: Any,
        out_head: Any,
        out_seq: Any,
        capacity: Any,
        starts: Any,
    ) -> None:
        tiles = cuda.shared.array(n_tiles, uint32)
        kept = cuda.shared.array(n_kept, float32)
        r = cuda.local.array(n_values, float32)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        t = uint32(lane & uint32(n_lanes - 1))
        mine = shared_address(tiles, uint32(thread // uint32(32) * uint32(tile // 4)))
        first = uint32(uint32(cuda.blockIdx.x) * uint32(per_block) + thread // uint32(32) * uint32(per_warp))
        group = uint32(first + lane // uint32(n_lanes))
        read_in(
            mine,
            source,
            first,
            lane,
            n_groups,
            per_vector,
            n_tokens,
            n_heads,
            in_token,
            in_head,
            in_seq,
            capacity,
            starts,
        )
        centroid = _ZERO
        if has_table:
            centroid = _ptx.load_f32(
                table + uint64(uint32(4) * uint32(uint32(CENTROIDS_AT) + uint32(lane & uint32(15))))
            )
        if keeps_table:
            i = thread
            while i < uint32(n_kept):
                kept[i] = _ptx.load_f32(table + uint64(i) * uint64(4))
                i = uint32(i + uint32(THREADS))
            cuda.syncthreads()
        _ptx.sync_warp()
        take(r, at(mine, uint32(lane // uint32(n_lanes)) * uint32(group_bytes)), centroid, table, kept, t)
        if is_rotated:
            if is_signed:
                flip(r, cuda.const.array_like(first_masks)[t])
            butterflies(r, t)
            scale(r, turn_scale)
            if is_signed:
                flip(r, cuda.const.array_like(last_masks)[t])
        if group < n_groups:
            store(
                write_at(target, group, per_vector, n_tokens, n_heads, out_token, out_head, out_seq)
                + uint64(t * uint32(CHUNK * value_bytes)),
                r,
            )

    return decode, per_block


def _looker(placement: Placement, values: bytes) -> Any:
    """look_up(state, table, kept) -> the value of a state."""
    if placement is Placement.CONSTANT:
        constants = np.frombuffer(values, np.float32)

        @device
        def look_up_constant(state: Any, table: Any, kept: Any) -> Any:
            return cuda.const.array_like(constants)[state]

        return look_up_constant
    is_shared = placement is Placement.SHARED

    @device
    def look_up(state: Any, table: Any, kept: Any) -> Any:
        return kept[state] if is_shared else _ptx.load_f32(table + uint64(uint32(state * uint32(4))))

    return look_up


def _taker(form: BlockFormat, look_up: Any) -> Any:
    """take(r, block, centroid, table, kept, t): the lane's rotated values from the group's blocks in shared memory."""
    lanes = lanes_for(form.group_size)
    n_lanes, n_chunks = lanes.lanes, lanes.values // CHUNK
    bits, block_bytes, per_block = form.bits, form.bytes_per_block, form.values_per_block
    n_stream = form.bytes_per_block - 2
    low_bytes, mask = per_block // 4, (1 << form.states_log2) - 1
    is_ring = form.is_tail_biting
    window_bytes = min(-(-(7 * bits + form.states_log2) // 8), 8)

    if form.layout is Layout.FLOAT16:

        @device
        def take(r: Any, block: Any, centroid: Any, table: Any, kept: Any, t: Any) -> None:
            for chunk in range(n_chunks):
                for e in range(CHUNK):
                    place = uint32(uint32(chunk * CHUNK * n_lanes + e) + t * uint32(CHUNK))
                    r[CHUNK * chunk + e] = _ptx.low_half(_ptx.load_shared_u16(at(block, place * uint32(2))))

    elif form.layout is Layout.Q8_0:

        @device
        def take(r: Any, block: Any, centroid: Any, table: Any, kept: Any, t: Any) -> None:
            for chunk in range(n_chunks):
                start = at(block, uint32(chunk * block_bytes))
                step = _ptx.low_half(_ptx.load_shared_u16(start))
                for e in range(CHUNK):
                    byte = _ptx.load_shared_u8(at(start, uint32(2 + e) + t * uint32(CHUNK)))
                    level = int32(int32(uint32(byte ^ uint32(128))) - int32(128))
                    r[CHUNK * chunk + e] = _ptx.multiply(_ptx.from_int(level), step)

    elif form.layout is Layout.Q4_0:

        @device
        def take(r: Any, block: Any, centroid: Any, table: Any, kept: Any, t: Any) -> None:
            shift = uint32(4) if t >= uint32(2) else uint32(0)
            for chunk in range(n_chunks):
                start = at(block, uint32(chunk * block_bytes))
                step = _ptx.low_half(_ptx.load_shared_u16(start))
                for e in range(CHUNK):
                    byte = _ptx.load_shared_u8(at(start, uint32(2 + e) + uint32(t & uint32(1)) * uint32(CHUNK)))
                    level = int32(int32(uint32(uint32(byte >> shift) & uint32(15))) - int32(8))
                    r[CHUNK * chunk + e] = _ptx.multiply(_ptx.from_int(level), step)

    elif form.is_trellis:

        @device
        def take(r: Any, block: Any, centroid: Any, table: Any, kept: Any, t: Any) -> None:
            norm = _ptx.low_half(_ptx.load_shared_u16(block))
            for chunk in range(n_chunks):
                number = uint32(uint32(chunk * n_lanes) + t)
                window = uint64(0)
                for byte in range(window_bytes):
                    place = uint32(number * uint32(bits) + uint32(byte))
                    if is_ring:
                        while place >= uint32(n_stream):
                            place = uint32(place - uint32(n_stream))
                    value = _ptx.load_shared_u8(at(block, uint32(2) + place))
                    window = uint64(window | uint64(uint64(value) << uint64(8 * byte)))
                for e in range(CHUNK):
                    state = uint32(uint32(uint64(window >> uint64(bits * e))) & uint32(mask))
                    r[CHUNK * chunk + e] = _ptx.multiply(look_up(state, table, kept), norm)

    else:
        is_split = form.layout is Layout.SPLIT_PLANES

        @device
        def take(r: Any, block: Any, centroid: Any, table: Any, kept: Any, t: Any) -> None:
            norm = _ptx.low_half(_ptx.load_shared_u16(block))
            for chunk in range(n_chunks):
                position = uint32(uint32(chunk * CHUNK * n_lanes) + t * uint32(CHUNK))
                number = uint32(position // uint32(per_block))
                within = uint32(position - number * uint32(per_block))
                start = at(block, number * uint32(block_bytes))
                word, high = uint32(0), uint32(0)
                if is_split:
                    word = _ptx.load_shared_u16(at(start, uint32(2) + within // uint32(4)))
                    high = _ptx.load_shared_u8(at(start, uint32(2 + low_bytes) + within // uint32(8)))
                else:
                    place = at(start, uint32(2) + uint32(within // uint32(CHUNK)) * uint32(bits))
                    for byte in range(bits):
                        value = _ptx.load_shared_u8(at(place, uint32(byte)))
                        word = uint32(word | uint32(value << uint32(8 * byte)))
                for e in range(CHUNK):
                    if is_split:
                        i = uint32(uint32(word >> uint32(2 * e)) & uint32(3))
                        i = uint32(i | uint32(uint32(uint32(high >> uint32(e)) & uint32(1)) << uint32(2)))
                    else:
                        i = uint32(uint32(word >> uint32(bits * e)) & uint32((1 << bits) - 1))
                    r[CHUNK * chunk + e] = _ptx.multiply(_ptx.shuffle_index_f32(centroid, i), norm)

    return take
