"""The fast encoder of scalar codebooks that are symmetric: rotation on the tensor cores, indices without comparisons.

What it saves over encode_lanes.py: no exchange between lanes; no conversion of the input; |x|^2 is a by-product of the
tensor cores; a value's index takes three to six instructions (by_exponent.py, by_cell.py); |c|^2 follows from how often
each magnitude occurs. Values arrive in shared memory while the warp works on those before.

Sums come in another order than the CPU's, so that a value within rounding of a boundary may take the next index, and a
norm within rounding of two float16 the other one. tests/kernels/test_cuda.py bounds how often.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.fwht.lanes import BFLOAT16, CHUNK, FLOAT16, VALUE_BYTES
from turbocode.kernels.fwht.tensor_lanes import GROUPS, LANES, SIZES, pair_masks, tensor_lanes
from turbocode.kernels.scalar import gpu_steps as steps
from turbocode.kernels.scalar.by_cell import by_cell, cells
from turbocode.kernels.scalar.by_exponent import by_exponent
from turbocode.kernels.scalar.encode_lanes import EncodeVariant
from turbocode.kernels.scalar.gpu_steps import CENTROIDS_AT
from turbocode.kernels.scalar.incoming import incoming
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.scalar.tile import tile_bytes, tile_writer
from turbocode.kernels.vectors import group_address

THREADS = 128
BLOCKS_PER_MULTIPROCESSOR = 5

float32, uint32, uint64 = types.float32, types.uint32, types.uint64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def is_symmetric(centroids: NDArray[np.float32], boundaries: NDArray[np.float32]) -> bool:
    """Whether a codebook is its own mirror image, as this encoder assumes; with 4 bits, whether it has cells too."""
    is_mirrored = bool((centroids == -centroids[::-1]).all() and (boundaries == -boundaries[::-1]).all())
    return is_mirrored and (len(centroids) != 16 or cells(boundaries) is not None)


def can_encode(variant: EncodeVariant) -> bool:
    """Whether this encoder knows the variant."""
    form = variant.block_format
    return (
        form.layout in (Layout.BITSTREAM, Layout.SPLIT_PLANES)
        and form.group_size in SIZES
        and variant.value_type in (FLOAT16, BFLOAT16)
        and not variant.is_measured
        and not variant.rotation.is_identity
    )


def _rescuer(n_values: int, group_size: int) -> Any:
    """rescue(d, square) -> (factor, square): values whose squares overflow brought into range; bfloat16 only."""
    share = np.float32(2.0 / group_size)  # of the squares before the transform's last stage

    @device
    def rescue(d: Any, square: Any) -> Any:
        factor = _ONE
        is_extreme = not (square < steps.SAFE_SQUARE)
        if _ptx.any_lane(uint32(1 if is_extreme else 0)) != uint32(0):
            total = _ZERO
            for v in range(n_values):
                d[v] = d[v] * (steps.DOWN if is_extreme else _ONE)
                total = _ptx.multiply_add(d[v], d[v], total)
            total = total + _ptx.shuffle_xor_f32(total, uint32(1))
            total = total + _ptx.shuffle_xor_f32(total, uint32(2))
            if is_extreme:
                factor, square = steps.UP, total * share
        return factor, square

    return rescue


def _producer(indices: Any, n_chunks: int, half: int, root: np.float32) -> Any:
    """product(d, words, short, table): the lane's part of <u, c>, where short is 1 / |x|."""
    index = indices.index

    @device
    def one(size: Any, i: Any, table: Any, total: Any) -> Any:
        upper = i if i >= uint32(half) else uint32(uint32(2 * half - 1) - i)  # c has the sign of u
        c = _ptx.load_f32(table + uint64(uint32(4) * uint32(uint32(CENTROIDS_AT) + upper)))
        return _ptx.multiply_add(abs(size), c, total)

    def quad(number: int) -> Any:
        v = 4 * number

        @device
        def four(d: Any, words: Any, table: Any, total: Any) -> Any:
            total = one(d[v] + d[v + 2], index(words, v), table, total)
            total = one(d[v + 1] + d[v + 3], index(words, v + 1), table, total)
            total = one(d[v] - d[v + 2], index(words, v + 2), table, total)
            return one(d[v + 1] - d[v + 3], index(words, v + 3), table, total)

        return four if number < 2 * n_chunks else nothing

    @device
    def nothing(d: Any, words: Any, table: Any, total: Any) -> Any:
        return total

    q0, q1, q2, q3, q4, q5, q6, q7 = (quad(number) for number in range(8))

    @device
    def product(d: Any, words: Any, short: Any, table: Any) -> Any:
        total = q1(d, words, table, q0(d, words, table, _ZERO))
        total = q3(d, words, table, q2(d, words, table, total))
        total = q5(d, words, table, q4(d, words, table, total))
        return q7(d, words, table, q6(d, words, table, total)) * (short * root)

    return product


@functools.cache
def encode_kernel(variant: EncodeVariant) -> tuple[Any, int]:
    """(kernel, -groups that a block handles at a time); arguments as those of encode_lanes.py."""
    assert can_encode(variant), variant
    form, rotation = variant.block_format, variant.rotation
    g = form.group_size
    lanes = tensor_lanes(g, variant.value_type)
    n_values, n_words, n_chunks = lanes.values, lanes.words, lanes.values // CHUNK
    root = np.float32(1.0 / np.sqrt(g))
    find_by = by_cell if form.bits == 4 else by_exponent
    indices = find_by(form, float(root), rotation.signs_after.astype(np.float32).tobytes())
    n_found, n_constants = indices.words, indices.constants
    flips, mirrors, zeros = pair_masks(rotation.signs_before), indices.mirrors, np.array(indices.zeros, np.uint32)
    is_signed = bool(flips.any() or mirrors.any())
    corrected = steps.fast_norm_corrector(variant.mode)
    needs_product = variant.mode in (NormMode.MSE, NormMode.UNBIASED)
    may_be_extreme = variant.value_type == BFLOAT16  # the squares of 128 float16 numbers are no trouble
    group_bytes, value_bytes = form.bytes_per_group, VALUE_BYTES[variant.value_type]
    tile = tile_bytes(GROUPS * group_bytes)
    arriving = incoming(n_chunks, LANES)
    slot_bytes = arriving.slot_bytes
    n_warps = THREADS // 32
    n_tiles, n_slots, n_masks = tile * n_warps // 4, 2 * slot_bytes * n_warps // 4, LANES * n_words
    read_at = group_address(variant.reads_strided, g * value_bytes)
    write_out = tile_writer(variant.writes_strided, group_bytes, LANES)
    hadamard, transform, square_of = lanes.hadamard, lanes.transform, lanes.square
    fetch, wait, take = arriving.fetch, arriving.wait, arriving.take
    prepare, find, spot, put = indices.prepare, indices.find, indices.spot, indices.put
    n_blocks, block_bytes = form.blocks_per_group, form.bytes_per_block
    rescue = _rescuer(n_values, g)
    product = _producer(indices, n_chunks, 1 << (form.bits - 1), root)

    @device
    def over_lanes(value: Any) -> Any:
        value = value + _ptx.shuffle_xor_f32(value, uint32(1))
        return value + _ptx.shuffle_xor_f32(value, uint32(2))

    @device
    def flip(words: Any, masks: Any) -> None:
        for chunk in range(n_chunks):
            mask = _ptx.load_shared_u32x4(at(masks, 16 * chunk))
            for e in range(4):
                words[4 * chunk + e] = uint32(words[4 * chunk + e] ^ mask[e])

    @device
    def finish(
        d: Any, square: Any, kept: Any, constants: Any, mirror: Any, table: Any, t: Any, places: Any, norm_place: Any
    ) -> None:
        """The blocks of the lane's group, of which d are the values before the last stage and square is |x|^2."""
        found = cuda.local.array(n_found, uint32)
        factor = _ONE
        if may_be_extreme:
            factor, square = rescue(d, square)
        short = _ptx.inverse_root(square)
        full = short * square * factor
        cc = over_lanes(find(d, short * constants[0], kept, constants, mirror, found))
        uc = _ZERO
        if needs_product:
            uc = over_lanes(product(d, found, short, table))
        is_coded = full >= steps.TINY  # not if it is NaN: |x|^2 was 0, infinite or NaN
        wanted = corrected(full, uc, cc)
        if _ptx.any_lane(uint32(0 if is_coded else 1)) != uint32(0):
            _ptx.sync_warp()  # makes this a jump, which is seldom taken, instead of a selection for each word
            if not is_coded:
                wanted = _ZERO
                for w in range(n_found):
                    found[w] = uint32(zeros[w])
        put(places, found)
        if t < uint32(n_blocks):
            _ptx.store_shared_u16(norm_place, _ptx.pack_halves(_ptx.minimum(wanted, steps.F16_MAX), _ZERO))

    @kernel(launch_bounds=(THREADS, 4 if needs_product else BLOCKS_PER_MULTIPROCESSOR))
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
        masks = cuda.shared.array(n_masks, uint32, alignment=16)
        words = cuda.local.array(n_words, uint32)
        mirror = cuda.local.array(n_found, uint32)
        columns = cuda.local.array(8, uint32)
        constants = cuda.local.array(n_constants, float32)
        d = cuda.local.array(n_values, float32)
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
        hadamard(lane, columns)
        kept = prepare(table, lane, constants)
        for w in range(n_found):
            mirror[w] = uint32(0)
        if is_signed:
            for w in range(n_found):
                mirror[w] = cuda.const.array_like(mirrors)[t, w]
            if thread < uint32(n_masks):
                masks[thread] = cuda.const.array_like(flips)[thread // uint32(n_words), thread % uint32(n_words)]
            cuda.syncthreads()
        flipping = _ptx.anchored(at(shared_address(masks, 0), uint32(t * uint32(4 * n_words))))
        block = at(mine, uint32(row * uint32(group_bytes)))
        norm_place = _ptx.anchored(at(block, uint32(t * uint32(block_bytes))))
        places = spot(block, t)
        while first <= last:
            wait()
            take(slot, words)
            near = uint32(min(uint32(uint32(first + stride) + row), last))
            fetch(other, read_at(source, near, per_vector, n_tokens, n_heads, in_token, in_head, in_seq) + skip)
            slot, other = other, slot
            if is_signed:
                flip(words, flipping)
            square = square_of(words, lane)
            transform(words, columns, d)
            finish(d, square, kept, constants, mirror, table, t, places, norm_place)
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
