"""The fast decoder of scalar codebooks that are symmetric: rotation back on the tensor cores. See encode_tensor.py.

Centroids come in pairs from a table (pair_table.py); signs after the rotation turn indices around, those before it are
flipped in the packed output; the norm, the rotation's scale and that of the centroids are one factor at the end.

Scaled centroids are rounded to float16, to 1e-6 of their size with 2 bits, 2.2e-5 with 3 and 8.3e-5 with 4 for the
codebooks of groups of 128: less than the 2e-4 (root mean square) of rounding the decoded values to float16.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx, _ptx_copies
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.fwht.lanes import CHUNK, FLOAT16, FLOAT32, VALUE_BYTES, lanes_for, storer
from turbocode.kernels.fwht.tensor_lanes import GROUPS, LANES, SIZES, pair_masks, tensor_lanes
from turbocode.kernels.scalar.decode_lanes import DecodeVariant
from turbocode.kernels.scalar.gpu_steps import HALF_SCALE_AT
from turbocode.kernels.scalar.pair_table import pair_table
from turbocode.kernels.scalar.tensor_indices import chunk_signs
from turbocode.kernels.scalar.tile import WORD, tile_bytes, tile_reader
from turbocode.kernels.vectors import group_address

THREADS = 256
BLOCKS_PER_MULTIPROCESSOR = 3

float32, uint32, uint64 = types.float32, types.uint32, types.uint64


def can_decode(variant: DecodeVariant) -> bool:
    """Whether this decoder knows the variant, if its codebook is symmetric."""
    form = variant.block_format
    is_known = form.layout in (Layout.BITSTREAM, Layout.SPLIT_PLANES) and form.group_size in SIZES
    return is_known and form.bits in (2, 3, 4) and not variant.rotation.is_identity


def _mirrors(form: BlockFormat, signs: NDArray[np.float32]) -> NDArray[np.uint32]:
    """(4, chunks): what turns the indices of lane t's chunk around where the sign is negative.

    Of split planes, the low one in the lower half, the high one in the upper.
    """
    negative, e = chunk_signs(signs).astype(np.uint64), np.arange(CHUNK, dtype=np.uint64)
    if form.layout is Layout.SPLIT_PLANES:
        words = ((negative * 3 << 2 * e) | negative << e + 16).sum(axis=-1)
    else:
        words = (negative * ((1 << form.bits) - 1) << form.bits * e).sum(axis=-1)
    return np.ascontiguousarray(words.astype(np.uint32))


def _storer(out_type: int, n_values: int) -> Any:
    """store(address, d, factor, masks): the last stage, times the factor, with flipped signs, in 16 bits a value."""
    pack = _ptx.pack_halves if out_type == FLOAT16 else _ptx.pack_bfloats
    n_chunks = n_values // CHUNK

    @device
    def four(d: Any, v: Any, factor: Any) -> Any:
        first, second = d[v + 2] * factor, d[v + 3] * factor
        low = pack(_ptx.multiply_add(d[v], factor, first), _ptx.multiply_add(d[v + 1], factor, second))
        high = pack(_ptx.multiply_add(d[v], factor, -first), _ptx.multiply_add(d[v + 1], factor, -second))
        return low, high

    @device
    def store(address: Any, d: Any, factor: Any, masks: Any) -> None:
        for chunk in range(n_chunks):
            a, b = four(d, CHUNK * chunk, factor)
            c, e = four(d, CHUNK * chunk + 4, factor)
            w = 4 * chunk
            _ptx.store_u32x4(
                address + uint64(chunk * 16 * LANES),
                uint32(a ^ masks[w]),
                uint32(b ^ masks[w + 1]),
                uint32(c ^ masks[w + 2]),
                uint32(e ^ masks[w + 3]),
            )

    return store


def _wide_storer(n_values: int, group_size: int) -> Any:
    """store(address, d, factor, mask): the same in float32; bit v of the mask flips value v."""
    flip, put = lanes_for(group_size).flip, storer(FLOAT32, LANES, n_values)

    @device
    def two(d: Any, v: Any, factor: Any) -> None:
        low, high = d[v], d[v + 2] * factor
        d[v], d[v + 2] = _ptx.multiply_add(low, factor, high), _ptx.multiply_add(low, factor, -high)

    @device
    def store(address: Any, d: Any, factor: Any, mask: Any) -> None:
        for quad in range(n_values // 4):
            two(d, 4 * quad, factor)
            two(d, 4 * quad + 1, factor)
        flip(d, mask)
        put(address, d)

    return store


@functools.cache
def decode_kernel(variant: DecodeVariant) -> tuple[Any, int]:
    """(kernel, -groups that a block handles at a time); arguments as those of decode_lanes.py."""
    assert can_decode(variant), variant
    form, rotation, out_type = variant.block_format, variant.rotation, variant.out_type
    g = form.group_size
    lanes = tensor_lanes(g, FLOAT16)
    n_values, n_words, n_chunks = lanes.values, lanes.words, lanes.values // CHUNK
    plain = lanes_for(g)
    assert plain.lanes == LANES
    mirrors, signs = _mirrors(form, rotation.signs_after), plain.masks(rotation.signs_before)
    flips = pair_masks(rotation.signs_before)
    is_signed = bool(mirrors.any() or signs.any())
    is_wide = out_type == FLOAT32
    store_wide, store_packed = _wide_storer(n_values, g), _storer(out_type, n_values)
    turn_scale = rotation.scale
    group_bytes, value_bytes = form.bytes_per_group, VALUE_BYTES[out_type]
    pairs_of = pair_table(form)
    n_pairs = pairs_of.words
    n_bytes = GROUPS * group_bytes
    tile = tile_bytes(n_bytes + pairs_of.margin)
    n_warps = THREADS // 32
    n_tiles, n_masks = 2 * tile * n_warps // 4, LANES * n_words
    read_in = tile_reader(variant.reads_strided, group_bytes, LANES)
    write_at = group_address(variant.writes_strided, g * value_bytes)
    hadamard, transform = lanes.hadamard, lanes.transform
    fill, spot, read = pairs_of.fill, pairs_of.spot, pairs_of.read
    is_ahead = not variant.reads_strided and n_bytes % WORD == 0
    n_loads, wait = -(-n_bytes // (32 * WORD)), _ptx_copies.wait_for_copies(0)

    @device
    def is_whole(first: Any, n_groups: Any) -> Any:
        return is_ahead and uint32(first + uint32(GROUPS)) <= uint32(n_groups)

    @device
    def fetch(tile: Any, source: Any, first: Any, lane: Any, n_groups: Any) -> None:
        """Start to copy the blocks of the warp's groups from `first` on, if they are all there."""
        if is_whole(first, n_groups):
            start = source + uint64(first) * uint64(group_bytes)
            for number in range(n_loads):
                byte = uint32(uint32(lane * uint32(WORD)) + uint32(number * 32 * WORD))
                if byte < uint32(n_bytes):
                    _ptx_copies.copy_async_whole(at(tile, byte), start + uint64(byte))
            _ptx_copies.close_copies()

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
        pairs = cuda.shared.array(n_pairs, uint32, alignment=16)
        tiles = cuda.shared.array(n_tiles, uint32, alignment=16)
        kept_masks = cuda.shared.array(n_masks, uint32, alignment=16)
        words = cuda.local.array(n_words, uint32)
        masks = cuda.local.array(n_words, uint32)
        mirror = cuda.local.array(n_chunks, uint32)
        columns = cuda.local.array(8, uint32)
        d = cuda.local.array(n_values, float32)
        thread = _ptx.anchored(uint32(cuda.threadIdx.x))
        lane = uint32(thread & uint32(31))
        t, row = uint32(lane & uint32(3)), uint32(lane >> uint32(2))
        warp = _ptx.uniform(uint32(thread // uint32(32)))
        mine = _ptx.anchored(shared_address(tiles, uint32(warp * uint32(2 * tile // 4))))
        first = uint32(uint32(uint32(cuda.blockIdx.x) * uint32(n_warps) + warp) * uint32(GROUPS))
        last = uint32(n_groups - uint64(1))
        stride = uint32(uint32(cuda.gridDim.x) * uint32(n_warps * GROUPS))
        fetch(mine, source, first, lane, n_groups)
        hadamard(lane, columns)
        lookups, lane_bytes = shared_address(pairs, 0), uint32(lane * uint32(4))
        fill(lookups, table, thread, THREADS)
        scale = _ptx.divide(turn_scale, _ptx.load_f32(table + uint64(4 * HALF_SCALE_AT)))
        wide_mask = uint32(0)
        for w in range(n_words):
            masks[w] = uint32(0)
        for chunk in range(n_chunks):
            mirror[chunk] = uint32(0)
        if is_signed:
            wide_mask = cuda.const.array_like(signs)[t]
            for chunk in range(n_chunks):
                mirror[chunk] = cuda.const.array_like(mirrors)[t, chunk]
            if thread < uint32(n_masks):
                kept_masks[thread] = cuda.const.array_like(flips)[thread // uint32(n_words), thread % uint32(n_words)]
        cuda.syncthreads()
        flipping = _ptx.anchored(at(shared_address(kept_masks, 0), uint32(t * uint32(4 * n_words))))
        offset = uint32(row * uint32(group_bytes))
        here = spot(mine, offset, t), _ptx.anchored(at(mine, offset))
        there = spot(at(mine, tile), offset, t), _ptx.anchored(at(mine, uint32(offset + uint32(tile))))
        slot, other = mine, at(mine, tile)
        while first <= last:
            if is_whole(first, n_groups):
                wait()
            else:
                read_in(
                    slot,
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
            fetch(other, source, uint32(first + stride), lane, n_groups)
            places, norm_place = here
            factor = _ptx.low_half(_ptx.load_shared_u16(norm_place)) * scale
            for chunk in range(n_chunks):
                read(places, chunk, lookups, lane_bytes, mirror[chunk], words)
            here, there = there, here
            slot, other = other, slot
            transform(words, columns, d)
            group = uint32(first + row)
            if group <= last:
                address = write_at(target, group, per_vector, n_tokens, n_heads, out_token, out_head, out_seq)
                address = address + uint64(t * uint32(CHUNK * value_bytes))
                if is_wide:
                    store_wide(address, d, factor, wide_mask)
                else:
                    if is_signed:
                        for chunk in range(n_chunks):
                            mask = _ptx.load_shared_u32x4(at(flipping, 16 * chunk))
                            for e in range(4):
                                masks[4 * chunk + e] = mask[e]
                    store_packed(address, d, factor, masks)
            first = uint32(first + stride)

    return decode, -(n_warps * GROUPS)
