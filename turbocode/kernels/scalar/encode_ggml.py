"""The kernel from float16 values to blocks of q8_0 and q4_0, where nothing is rotated or measured: the CPU's bytes.

As in encode_tensor.py a group lies in four lanes, and values arrive in shared memory while the warp works on those
before; see ggml_blocks.py for the rest.
"""

from __future__ import annotations

import functools
from typing import Any

from turbocode.formats.block_format import Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, kernel, shared_address, types
from turbocode.kernels.fwht.lanes import CHUNK, FLOAT16, VALUE_BYTES
from turbocode.kernels.fwht.tensor_lanes import GROUPS, LANES, SIZES
from turbocode.kernels.scalar.encode_lanes import EncodeVariant
from turbocode.kernels.scalar.ggml_blocks import block_filler
from turbocode.kernels.scalar.incoming import incoming
from turbocode.kernels.scalar.tile import tile_bytes, tile_writer
from turbocode.kernels.vectors import group_address

THREADS = 128
BLOCKS_PER_MULTIPROCESSOR = 8

uint32, uint64 = types.uint32, types.uint64


def can_encode(variant: EncodeVariant) -> bool:
    """Whether this encoder knows the variant."""
    form = variant.block_format
    return (
        form.layout in (Layout.Q8_0, Layout.Q4_0)
        and form.group_size in SIZES
        and form.blocks_per_group % 2 == 0  # so that it depends on a block's number alone where words of 4 bytes begin
        and variant.value_type == FLOAT16
        and not variant.is_measured
        and variant.rotation.is_identity
    )


@functools.cache
def encode_kernel(variant: EncodeVariant) -> tuple[Any, int]:
    """(kernel, -groups that a block handles at a time); arguments as those of encode_lanes.py."""
    assert can_encode(variant), variant
    form = variant.block_format
    g = form.group_size
    n_words, n_chunks = g // LANES // 2, g // LANES // CHUNK
    group_bytes = form.bytes_per_group
    tile, n_warps = tile_bytes(GROUPS * group_bytes), THREADS // 32
    arriving = incoming(n_chunks, LANES)
    slot_bytes, fetch, wait, take = arriving.slot_bytes, arriving.fetch, arriving.wait, arriving.take
    n_tiles, n_slots = tile * n_warps // 4, 2 * slot_bytes * n_warps // 4
    read_at = group_address(variant.reads_strided, g * VALUE_BYTES[FLOAT16])
    write_out = tile_writer(variant.writes_strided, group_bytes, LANES)
    spot, fill = block_filler(form, form.layout is Layout.Q8_0)

    @kernel(launch_bounds=(THREADS, BLOCKS_PER_MULTIPROCESSOR))
    def encode(
        source: Any,
        target: Any,
        table: Any,
        facts: Any,
        flags: Any,
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
        slots = cuda.shared.array(n_slots, uint32, alignment=16)
        tiles = cuda.shared.array(n_tiles, uint32, alignment=16)
        words = cuda.local.array(n_words, uint32)
        thread = _ptx.anchored(uint32(cuda.threadIdx.x))
        lane = uint32(thread & uint32(31))
        t, row = uint32(lane & uint32(3)), uint32(lane >> uint32(2))
        warp = _ptx.uniform(uint32(thread // uint32(32)))
        mine = _ptx.anchored(shared_address(tiles, uint32(warp * uint32(tile // 4))))
        slot = at(shared_address(slots, uint32(warp * uint32(2 * slot_bytes // 4))), uint32(lane * uint32(16)))
        slot = _ptx.anchored(slot)
        other = at(slot, slot_bytes)
        first = uint32(uint32(uint32(cuda.blockIdx.x) * uint32(n_warps) + warp) * uint32(GROUPS))
        last = uint32(n_groups - uint64(1))
        stride = uint32(uint32(cuda.gridDim.x) * uint32(n_warps * GROUPS))
        skip = uint64(t * uint32(16))
        near = uint32(min(uint32(first + row), last))  # lanes beyond the end go along
        fetch(slot, read_at(source, near, per_vector, n_tokens, n_heads, in_token, in_head, in_seq) + skip)
        places = spot(at(mine, uint32(row * uint32(group_bytes))), t)
        while first <= last:
            wait()
            take(slot, words)
            near = uint32(min(uint32(uint32(first + stride) + row), last))
            fetch(other, read_at(source, near, per_vector, n_tokens, n_heads, in_token, in_head, in_seq) + skip)
            slot, other = other, slot
            fill(words, lane, places)
            _ptx.sync_warp()
            write_out(
                mine,
                target,
                first,
                lane,
                n_groups,
                per_vector,
                n_tokens,
                n_heads,
                out_token,
                out_head,
                out_seq,
                capacity,
                starts,
            )
            _ptx.sync_warp()
            first = uint32(first + stride)
        wait()

    return encode, -(n_warps * GROUPS)
