"""The plain decoder for groups of any size: a warp a group, the group in shared memory."""

from __future__ import annotations

import functools
from typing import Any

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.fwht.in_shared import WARP, in_shared, sign_words, signed, write
from turbocode.kernels.fwht.lanes import VALUE_BYTES
from turbocode.kernels.scalar.decode_lanes import DecodeVariant
from turbocode.kernels.scalar.gpu_steps import CENTROIDS_AT
from turbocode.kernels.scalar.tile import row_address, row_loader, tile_bytes
from turbocode.kernels.vectors import group_address

THREADS = 128
WARPS = THREADS // WARP

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64


@functools.cache
def decode_kernel(variant: DecodeVariant) -> tuple[Any, int]:
    """(kernel, groups a block handles); arguments as those of decode_lanes.py."""
    form, rotation = variant.block_format, variant.rotation
    g, group_bytes = form.group_size, form.bytes_per_group
    spot = in_shared(rotation, variant.out_type, is_inverse=True)
    store, transform = spot.store, spot.transform
    signs = sign_words(rotation.signs_after)
    take = _taker(form)
    place, load_row = row_address(variant.reads_strided, group_bytes), row_loader(group_bytes, WARP)
    write_at = group_address(variant.writes_strided, g * VALUE_BYTES[variant.out_type])
    per_lane = -(-g // WARP)
    n_words = g + tile_bytes(group_bytes) // 4
    n_scratch = n_words * WARPS

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
        scratch = cuda.shared.array(n_scratch, float32)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        group = uint32(uint32(cuda.blockIdx.x) * uint32(WARPS) + thread // uint32(WARP))
        y = shared_address(scratch, uint32(thread // uint32(WARP) * uint32(n_words)))
        block = at(y, uint32(4 * g))
        if group < n_groups:  # the same for a whole warp
            origin = place(source, group, per_vector, n_tokens, n_heads, in_token, in_head, in_seq, capacity, starts)
            load_row(origin, block, lane)
            _ptx.sync_warp()
            first = cuda.const.array_like(signs)
            for m in range(per_lane):
                j = uint32(lane + uint32(m * WARP))
                if j < uint32(g):
                    write(y, j, signed(take(block, table, j), first[m], lane))
            _ptx.sync_warp()
            transform(y, lane)
            store(write_at(target, group, per_vector, n_tokens, n_heads, out_token, out_head, out_seq), y, lane)

    return decode, WARPS


def _taker(form: BlockFormat) -> Any:
    """take(block, table, j): the rotated value j of the group whose blocks lie in shared memory."""
    bits, block_bytes, layout = form.bits, form.bytes_per_block, form.layout
    n_stream, mask = form.bytes_per_block - 2, (1 << form.states_log2) - 1
    is_ring = form.is_tail_biting
    window_bytes = -(-(7 + form.states_log2) // 8)
    assert layout is not Layout.SPLIT_PLANES and (form.blocks_per_group == 1 or not form.has_codebook)

    if layout is Layout.FLOAT16:

        @device
        def take(block: Any, table: Any, j: Any) -> Any:
            return _ptx.low_half(_ptx.load_shared_u16(at(block, uint32(j * uint32(2)))))

    elif layout is Layout.Q8_0:

        @device
        def take(block: Any, table: Any, j: Any) -> Any:
            start = at(block, uint32(uint32(j // uint32(32)) * uint32(block_bytes)))
            byte = _ptx.load_shared_u8(at(start, uint32(uint32(2) + uint32(j % uint32(32)))))
            level = int32(int32(uint32(byte ^ uint32(128))) - int32(128))
            return _ptx.multiply(_ptx.from_int(level), _ptx.low_half(_ptx.load_shared_u16(start)))

    elif layout is Layout.Q4_0:

        @device
        def take(block: Any, table: Any, j: Any) -> Any:
            start = at(block, uint32(uint32(j // uint32(32)) * uint32(block_bytes)))
            byte = _ptx.load_shared_u8(at(start, uint32(uint32(2) + uint32(j % uint32(16)))))
            shift = uint32(uint32(j % uint32(32)) // uint32(16) * uint32(4))
            level = int32(int32(uint32(uint32(byte >> shift) & uint32(15))) - int32(8))
            return _ptx.multiply(_ptx.from_int(level), _ptx.low_half(_ptx.load_shared_u16(start)))

    elif form.is_trellis:

        @device
        def take(block: Any, table: Any, j: Any) -> Any:
            bit = uint32(j * uint32(bits))
            window = uint32(0)
            for byte in range(window_bytes):
                place = uint32(uint32(bit // uint32(8)) + uint32(byte))
                if is_ring:
                    while place >= uint32(n_stream):
                        place = uint32(place - uint32(n_stream))
                value = _ptx.load_shared_u8(at(block, uint32(uint32(2) + place)))
                window = uint32(window | uint32(value << uint32(8 * byte)))
            state = uint32(uint32(window >> uint32(bit % uint32(8))) & uint32(mask))
            value = _ptx.load_f32(table + uint64(uint32(state * uint32(4))))
            return _ptx.multiply(value, _ptx.low_half(_ptx.load_shared_u16(block)))

    else:

        @device
        def take(block: Any, table: Any, j: Any) -> Any:
            place = at(block, uint32(uint32(2) + uint32(uint32(j // uint32(8)) * uint32(bits))))
            word = uint32(0)
            for byte in range(bits):
                value = _ptx.load_shared_u8(at(place, uint32(byte)))
                word = uint32(word | uint32(value << uint32(8 * byte)))
            i = uint32(uint32(word >> uint32(uint32(j % uint32(8)) * uint32(bits))) & uint32((1 << bits) - 1))
            centroid = _ptx.load_f32(table + uint64(uint32(4) * uint32(uint32(CENTROIDS_AT) + i)))
            return _ptx.multiply(centroid, _ptx.low_half(_ptx.load_shared_u16(block)))

    return take
