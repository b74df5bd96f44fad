"""The fast decoder of scalar codebooks: rotation back on the tensor cores. See encode_tensor.py.

A centroid is the sum of two float16 numbers, which the lanes of a warp keep for one another, so that the products are
as good as float32; the norm and the rotation's scale are one factor at the end. The last bit may differ from the CPU's.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.fwht.lanes import CHUNK, FLOAT16, FLOAT32, VALUE_BYTES, lanes_for, storer
from turbocode.kernels.fwht.tensor_lanes import GROUPS, LANES, SIZES, pair_masks, tensor_lanes
from turbocode.kernels.scalar.decode_lanes import DecodeVariant
from turbocode.kernels.scalar.gpu_steps import CENTROIDS_AT
from turbocode.kernels.scalar.tile import WORD, tile_bytes, tile_reader
from turbocode.kernels.vectors import group_address

THREADS = 128
BLOCKS_PER_MULTIPROCESSOR = 4

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_ZERO = np.float32(0.0)


def can_decode(variant: DecodeVariant) -> bool:
    """Whether this decoder knows the variant."""
    form = variant.block_format
    is_known = form.layout in (Layout.BITSTREAM, Layout.SPLIT_PLANES) and form.group_size in SIZES
    return is_known and not variant.rotation.is_identity


@functools.cache
def decode_kernel(variant: DecodeVariant) -> tuple[Any, int]:
    """(kernel, -groups that a block handles at a time); arguments as those of decode_lanes.py."""
    assert can_decode(variant), variant
    form, rotation, out_type = variant.block_format, variant.rotation, variant.out_type
    g, bits = form.group_size, form.bits
    lanes = tensor_lanes(g, FLOAT16)
    n_values, n_words, n_chunks = lanes.values, lanes.words, lanes.values // CHUNK
    plain = lanes_for(g)
    assert plain.lanes == LANES
    flips, signs = pair_masks(rotation.signs_after), plain.masks(rotation.signs_before)
    out_flips = pair_masks(rotation.signs_before)
    is_signed = bool(flips.any() or signs.any())
    store, flip, turn_scale = storer(out_type, LANES, n_values), plain.flip, rotation.scale
    is_wide = out_type == FLOAT32
    pack = _ptx.pack_halves if out_type == FLOAT16 else _ptx.pack_bfloats
    group_bytes, value_bytes = form.bytes_per_group, VALUE_BYTES[out_type]
    tile = tile_bytes(GROUPS * group_bytes)
    n_tiles = tile * (THREADS // 32) // 4
    n_levels = 1 << bits
    read_in = tile_reader(variant.reads_strided, group_bytes, LANES)
    write_at = group_address(variant.writes_strided, g * value_bytes)
    indices = _index_reader(form)
    hadamard, transform_sum = lanes.hadamard, lanes.transform_sum

    @device
    def store_flipped(address: Any, r: Any, masks: Any) -> None:
        for chunk in range(n_chunks):
            v, w = CHUNK * chunk, 4 * chunk
            _ptx.store_u32x4(
                address + uint64(chunk * 16 * LANES),
                uint32(pack(r[v], r[v + 1]) ^ masks[w]),
                uint32(pack(r[v + 2], r[v + 3]) ^ masks[w + 1]),
                uint32(pack(r[v + 4], r[v + 5]) ^ masks[w + 2]),
                uint32(pack(r[v + 6], r[v + 7]) ^ masks[w + 3]),
            )

    n_bytes = GROUPS * group_bytes
    is_ahead = not variant.reads_strided and n_bytes % WORD == 0
    n_loads = -(-n_bytes // (32 * WORD))
    n_ahead = 4 * n_loads

    @device
    def fetch(ahead: Any, source: Any, first: Any, lane: Any, n_groups: Any) -> None:
        """Load the blocks of the warp's groups from `first` on into registers, if they are all there."""
        if is_ahead and uint64(first) + uint64(GROUPS) <= n_groups:
            for number in range(n_loads):
                byte = uint32(uint32(lane * uint32(WORD)) + uint32(number * 32 * WORD))
                if byte < uint32(n_bytes):
                    words = _ptx.stream_u32x4(source + (uint64(first) * uint64(group_bytes) + uint64(byte)))
                    for e in range(4):
                        ahead[4 * number + e] = words[e]

    @device
    def keep(ahead: Any, tile: Any, lane: Any) -> None:
        """Put what `fetch` loaded into the warp's shared memory."""
        for number in range(n_loads):
            byte = uint32(uint32(lane * uint32(WORD)) + uint32(number * 32 * WORD))
            if byte < uint32(n_bytes):
                n = 4 * number
                _ptx.store_shared_u32x4(at(tile, byte), ahead[n], ahead[n + 1], ahead[n + 2], ahead[n + 3])

    @kernel(launch_bounds=(THREADS, BLOCKS_PER_MULTIPROCESSOR))
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
        words = cuda.local.array(n_words, uint32)
        rest = cuda.local.array(n_words, uint32)
        masks = cuda.local.array(n_words, uint32)
        out_masks = cuda.local.array(n_words, uint32)
        columns = cuda.local.array(8, uint32)
        ahead = cuda.local.array(n_ahead, uint32)
        r = cuda.local.array(n_values, float32)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        t, row = uint32(lane & uint32(3)), uint32(lane >> uint32(2))
        mine = shared_address(tiles, uint32(thread // uint32(32) * uint32(tile // 4)))
        hadamard(lane, columns)
        for w in range(n_words):
            masks[w], out_masks[w] = uint32(0), uint32(0)
        if is_signed:
            for w in range(n_words):
                masks[w] = cuda.const.array_like(flips)[t, w]
            if not is_wide:
                for w in range(n_words):
                    out_masks[w] = cuda.const.array_like(out_flips)[t, w]
        own = uint32(lane & uint32(n_levels - 1))  # a lane's number may have anything above the bits of an index
        centroid = _ptx.load_f32(table + uint64(uint32(4) * uint32(uint32(CENTROIDS_AT) + own)))
        high = _ptx.low_half(_ptx.pack_halves(centroid, _ZERO))
        halves = _ptx.pack_halves(centroid, centroid - high)
        first = uint32(uint32(uint32(cuda.blockIdx.x) * uint32(THREADS // 32) + thread // uint32(32)) * uint32(GROUPS))
        last = uint32(n_groups - uint64(1))
        stride = uint32(uint32(cuda.gridDim.x) * uint32(THREADS // 32 * GROUPS))
        fetch(ahead, source, first, lane, n_groups)
        while first <= last:
            if is_ahead and uint64(first) + uint64(GROUPS) <= n_groups:
                keep(ahead, mine, lane)
            else:
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
            _ptx.sync_warp()
            fetch(ahead, source, uint32(first + stride), lane, n_groups)
            block = at(mine, uint32(row * uint32(group_bytes)))
            factor = _ptx.low_half(_ptx.load_shared_u16(block)) * turn_scale
            for chunk in range(n_chunks):
                word = indices(block, chunk, t)
                for pair in range(CHUNK // 2):
                    a = _ptx.shuffle_index(halves, uint32(word >> uint32(2 * pair * bits)))
                    b = _ptx.shuffle_index(halves, uint32(word >> uint32((2 * pair + 1) * bits)))
                    w = 4 * chunk + pair
                    words[w] = _ptx.select_bytes(a, b, uint32(0x5410))
                    rest[w] = _ptx.select_bytes(a, b, uint32(0x7632))
                    if is_signed:
                        words[w] = uint32(words[w] ^ masks[w])
                        rest[w] = uint32(rest[w] ^ masks[w])
            _ptx.sync_warp()
            transform_sum(words, rest, columns, r)
            for v in range(n_values):
                r[v] = r[v] * factor
            group = uint32(first + row)
            if group <= last:
                address = write_at(target, group, per_vector, n_tokens, n_heads, out_token, out_head, out_seq)
                address = address + uint64(t * uint32(CHUNK * value_bytes))
                if is_wide:
                    if is_signed:
                        flip(r, cuda.const.array_like(signs)[t])
                    store(address, r)
                else:
                    store_flipped(address, r, out_masks)
            first = uint32(first + stride)

    return decode, -(THREADS // 32 * GROUPS)


def _index_reader(form: BlockFormat) -> Any:
    """indices(block, chunk, t) -> the lane's eight indices in fields of `bits` bits."""
    bits, is_split = form.bits, form.layout is Layout.SPLIT_PLANES
    block_bytes, per_block = form.bytes_per_block, form.values_per_block
    low_bytes = per_block // 4

    @device
    def indices(block: Any, chunk: Any, t: Any) -> Any:
        position = uint32(uint32(chunk * CHUNK * LANES) + uint32(t * uint32(CHUNK)))
        number = uint32(position // uint32(per_block))
        within = uint32(position - uint32(number * uint32(per_block)))
        start = at(block, uint32(number * uint32(block_bytes)))
        word = uint32(0)
        if is_split:
            low = _ptx.load_shared_u16(at(start, uint32(uint32(2) + uint32(within // uint32(4)))))
            high = _ptx.load_shared_u8(at(start, uint32(uint32(2 + low_bytes) + uint32(within // uint32(8)))))
            for e in range(CHUNK):
                word = uint32(word | uint32(uint32(uint32(low >> uint32(2 * e)) & uint32(3)) << uint32(3 * e)))
                word = uint32(word | uint32(uint32(uint32(high >> uint32(e)) & uint32(1)) << uint32(3 * e + 2)))
        elif bits == 3:
            place = at(start, uint32(uint32(2) + uint32(uint32(within // uint32(CHUNK)) * uint32(3))))
            for byte in range(3):
                word = uint32(word | uint32(_ptx.load_shared_u8(at(place, uint32(byte))) << uint32(8 * byte)))
        else:
            place = at(start, uint32(uint32(2) + uint32(uint32(within // uint32(CHUNK)) * uint32(bits))))
            word = _ptx.load_shared_u16(place)
            if bits == 4:
                word = uint32(word | uint32(_ptx.load_shared_u16(at(place, uint32(2))) << uint32(16)))
        return word

    return indices
