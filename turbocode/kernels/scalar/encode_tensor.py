"""The fast encoder of scalar codebooks that are symmetric: rotation on the tensor cores, indices from magnitudes.

What it saves over encode_lanes.py: no exchange between lanes; no conversion of the input; signs after the rotation flip
the index, not the value, because index(-u) = 2**bits - 1 - index(u); |c|^2 follows from how often each magnitude
occurs. A GPU adds and multiplies twice as fast as it compares and selects, so comparisons are multiply-adds cut to 0
and 1, and indices are collected as digits of a float32. With 4 bits a magnitude first finds its cell of 32, whose
boundary and index a lane of the warp keeps.

Sums come in another order than the CPU's, so that a value within rounding of a boundary may take the next index, and a
norm within rounding of two float16 the other one. tests/kernels/test_cuda.py bounds how often.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.fwht.lanes import BFLOAT16, CHUNK, FLOAT16, VALUE_BYTES
from turbocode.kernels.fwht.tensor_lanes import GROUPS, LANES, SIZES, pair_masks, tensor_lanes
from turbocode.kernels.scalar import gpu_steps as steps
from turbocode.kernels.scalar.encode_lanes import EncodeVariant
from turbocode.kernels.scalar.gpu_steps import CENTROIDS_AT
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.scalar.place import word_placer
from turbocode.kernels.scalar.tile import tile_bytes, tile_writer
from turbocode.kernels.vectors import group_address

THREADS = 128
BLOCKS_PER_MULTIPROCESSOR = 4
STEEP = np.float32(2.0**40)  # what makes a difference of two values 0 or 1 when it is cut to that range
N_CELLS = 32
MAGIC = np.float32(2.0**23)  # adding it to a small number leaves the nearest whole one in the low bits

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def is_symmetric(centroids: NDArray[np.float32], boundaries: NDArray[np.float32]) -> bool:
    """Whether a codebook is its own mirror image, as this encoder assumes."""
    return bool((centroids == -centroids[::-1]).all() and (boundaries == -boundaries[::-1]).all())


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


@device
def _whole(digits: Any) -> Any:
    """A whole number below 2**23 from a float32, by the sum that puts it into the low bits."""
    return uint32(_ptx.float_bits(digits + MAGIC) & uint32(0x7FFFFF))


def _index_masks(form: BlockFormat, signs: NDArray[np.float32]) -> NDArray[np.uint32]:
    """(4, chunks): what mirrors the indices in lane t's words where the sign after the rotation is negative."""
    bits = form.bits
    fields = np.where(signs < 0, (1 << bits) - 1, 0).astype(np.uint64).reshape(-1, LANES, CHUNK)
    words = (fields << (bits * np.arange(CHUNK, dtype=np.uint64))).sum(axis=-1)
    return np.ascontiguousarray(words.T.astype(np.uint32))


@functools.cache
def encode_kernel(variant: EncodeVariant) -> tuple[Any, int]:
    """(kernel, -groups that a block handles at a time); arguments as those of encode_lanes.py."""
    assert can_encode(variant), variant
    form, rotation = variant.block_format, variant.rotation
    g, bits = form.group_size, form.bits
    lanes = tensor_lanes(g, variant.value_type)
    n_values, n_words, n_chunks = lanes.values, lanes.words, lanes.values // CHUNK
    n_boundaries, n_magnitudes = (1 << (bits - 1)) - 1, 1 << (bits - 1)
    zero_at = n_boundaries  # the boundary at 0: those above it are the boundaries of magnitudes
    centre = sum(1 << (bits * e + bits - 1) for e in range(CHUNK))
    field_one = sum(1 << (bits * e) for e in range(CHUNK))
    flips, mirrors = pair_masks(rotation.signs_before), _index_masks(form, rotation.signs_after)
    is_signed = bool(flips.any() or mirrors.any())
    corrected = steps.fast_norm_corrector(variant.mode)
    needs_product = variant.mode in (NormMode.MSE, NormMode.UNBIASED)
    group_bytes, value_bytes = form.bytes_per_group, VALUE_BYTES[variant.value_type]
    tile = tile_bytes(GROUPS * group_bytes)
    n_tiles = tile * (THREADS // 32) // 4
    read_at = group_address(variant.reads_strided, g * value_bytes)
    write_out = tile_writer(variant.writes_strided, group_bytes, LANES)
    put = word_placer(form, LANES)
    hadamard, transform = lanes.hadamard, lanes.transform
    root = np.float32(1.0 / np.sqrt(g))
    n_table = max(1, n_boundaries)
    uses_cells = bits == 4
    per_digit = 4 if bits == 4 else CHUNK  # indices that the 24 bits of a float32 hold
    n_digits, per_word = n_values // per_digit, CHUNK // per_digit
    top_cell = np.float32(N_CELLS - 1)

    @device
    def load(address: Any, words: Any) -> None:
        for chunk in range(n_chunks):
            found = _ptx.stream_u32x4(address + uint64(chunk * 16 * LANES))
            for e in range(4):
                words[4 * chunk + e] = found[e]

    @device
    def over_lanes(value: Any) -> Any:
        value = value + _ptx.shuffle_xor_f32(value, uint32(1))
        return value + _ptx.shuffle_xor_f32(value, uint32(2))

    @device
    def cell_of(size: Any, reach: Any) -> Any:
        """The number, in the low bits of a float32, of the cell that a magnitude times `reach` lies in."""
        return _ptx.multiply_add(_ptx.multiply_add_saturated(size, reach, _ZERO), top_cell, MAGIC)

    @device
    def digits(
        r: Any, magnitudes: Any, signs: Any, boundaries: Any, inverse: Any, reach: Any, edge: Any, level: Any
    ) -> None:
        """Per digit of n_digit values: fields of `bits` bits of the magnitudes' numbers; and signs, 1 for values
        above 0.

        Digits side by side, so that their sums, each a chain of additions, go on at the same time.
        """
        for d in range(n_digits):
            magnitudes[d], signs[d] = _ZERO, _ZERO
        for e in range(per_digit):
            weight = float32(1 << (bits * e))
            for d in range(n_digits):
                value = r[per_digit * d + e]
                size = abs(value)
                if uses_cells:
                    cell = _ptx.float_bits(cell_of(size, reach))
                    bound, below = _ptx.shuffle_index_f32(edge, cell), _ptx.shuffle_index_f32(level, cell)
                    above = _ptx.multiply_add_saturated(size, inverse, bound)
                    magnitudes[d] = _ptx.multiply_add(above, weight, _ptx.multiply_add(below, weight, magnitudes[d]))
                else:
                    for b in range(n_boundaries):
                        above = _ptx.multiply_add_saturated(size, inverse, boundaries[b])
                        magnitudes[d] = _ptx.multiply_add(above, weight, magnitudes[d])
                positive = _ptx.multiply_add_saturated(value, inverse, _ZERO)
                signs[d] = _ptx.multiply_add(positive, weight, signs[d])

    @device
    def finish(
        r: Any,
        table: Any,
        squares: Any,
        boundaries: Any,
        edge: Any,
        level: Any,
        reach: Any,
        mirror: Any,
        t: Any,
        block: Any,
    ) -> None:
        """The blocks of the lane's group, whose transform is r."""
        even, odd = _ZERO, _ZERO
        third, fourth = _ZERO, _ZERO
        for v in range(0, n_values, 4):
            even = _ptx.multiply_add(r[v], r[v], even)
            odd = _ptx.multiply_add(r[v + 1], r[v + 1], odd)
            third = _ptx.multiply_add(r[v + 2], r[v + 2], third)
            fourth = _ptx.multiply_add(r[v + 3], r[v + 3], fourth)
        square = over_lanes((even + odd) + (third + fourth))
        factor = _ONE
        is_extreme = not (square < steps.SAFE_SQUARE)
        if _ptx.any_lane(uint32(1 if is_extreme else 0)) != uint32(0):
            factor, square = steps.UP if is_extreme else _ONE, _ZERO
            for v in range(n_values):
                r[v] = r[v] * (steps.DOWN if is_extreme else _ONE)
                square = _ptx.multiply_add(r[v], r[v], square)
            square = over_lanes(square)
        short = _ptx.inverse_root(square)  # of the unnormalised transform: 1 / (sqrt(g) |x|)
        full = short * square * root * factor
        is_coded = square <= steps.FINITE_MAX and full >= steps.TINY
        short = short if is_coded else _ZERO
        steep = short * STEEP
        words = cuda.local.array(n_chunks, uint32)
        counts = cuda.local.array(n_magnitudes, uint32)
        for m in range(n_magnitudes):
            counts[m] = uint32(0)
        found = cuda.local.array(n_digits, float32)
        found_signs = cuda.local.array(n_digits, float32)
        digits(r, found, found_signs, boundaries, steep, short * reach, edge, level)
        for chunk in range(n_chunks):
            magnitudes, signs = _whole(found[per_word * chunk]), _whole(found_signs[per_word * chunk])
            if per_word == 2:
                magnitudes = uint32(magnitudes | uint32(_whole(found[2 * chunk + 1]) << uint32(16)))
                signs = uint32(signs | uint32(_whole(found_signs[2 * chunk + 1]) << uint32(16)))
            first = uint32(magnitudes & uint32(field_one))
            if bits == 2:
                counts[1] = uint32(counts[1] + _ptx.count_bits(first))
            else:
                second = uint32(uint32(magnitudes >> uint32(1)) & uint32(field_one))
                both = uint32(first & second)
                if bits == 3:
                    counts[3] = uint32(counts[3] + _ptx.count_bits(both))
                    counts[2] = uint32(counts[2] + _ptx.count_bits(second))
                    counts[1] = uint32(counts[1] + _ptx.count_bits(first))
                else:
                    third = uint32(uint32(magnitudes >> uint32(2)) & uint32(field_one))
                    counts[1] = uint32(counts[1] + _ptx.count_bits(first))
                    counts[2] = uint32(counts[2] + _ptx.count_bits(second))
                    counts[3] = uint32(counts[3] + _ptx.count_bits(both))
                    counts[4] = uint32(counts[4] + _ptx.count_bits(third))
                    counts[5] = uint32(counts[5] + _ptx.count_bits(uint32(first & third)))
                    counts[6] = uint32(counts[6] + _ptx.count_bits(uint32(second & third)))
                    counts[7] = uint32(counts[7] + _ptx.count_bits(uint32(both & third)))
            inverted = uint32(uint32(uint32(field_one) - signs) * uint32((1 << bits) - 1))
            words[chunk] = uint32(uint32(magnitudes | uint32(centre)) ^ inverted)
        cc = _ZERO
        counts[0] = uint32(n_values)
        for m in range(n_magnitudes):  # counts[m]: how often all bits of m are set
            cc = _ptx.multiply_add(_ptx.from_int(int32(counts[m])), squares[m], cc)
        cc = over_lanes(cc)
        product = _ZERO
        if needs_product:
            for chunk in range(n_chunks):
                for e in range(CHUNK):
                    i = uint32(uint32(words[chunk] >> uint32(bits * e)) & uint32((1 << bits) - 1))
                    c = _ptx.load_f32(table + uint64(uint32(4) * uint32(uint32(CENTROIDS_AT) + i)))
                    product = _ptx.multiply_add(r[CHUNK * chunk + e], c, product)
            product = over_lanes(product) * short
        wanted = _ZERO
        if is_coded:
            wanted = corrected(full, product, cc)
        stored = steps.half_bits(wanted)
        for chunk in range(n_chunks):
            word = words[chunk]
            if is_signed:
                word = uint32(word ^ mirror[chunk])
            if not is_coded:
                word = uint32(centre)  # zeros: above the boundary at 0
            put(block, chunk, t, word, stored)

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
        tiles = cuda.shared.array(n_tiles, uint32)
        words = cuda.local.array(n_words, uint32)
        masks = cuda.local.array(n_words, uint32)
        mirror = cuda.local.array(n_chunks, uint32)
        columns = cuda.local.array(8, uint32)
        boundaries = cuda.local.array(n_table, float32)
        squares = cuda.local.array(n_magnitudes, float32)
        r = cuda.local.array(n_values, float32)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        t, row = uint32(lane & uint32(3)), uint32(lane >> uint32(2))
        mine = shared_address(tiles, uint32(thread // uint32(32) * uint32(tile // 4)))
        hadamard(lane, columns)
        if is_signed:
            for w in range(n_words):
                masks[w] = cuda.const.array_like(flips)[t, w]
            for chunk in range(n_chunks):
                mirror[chunk] = cuda.const.array_like(mirrors)[t, chunk]
        for b in range(n_boundaries):
            boundaries[b] = -_ptx.load_f32(table + uint64(4 * (zero_at + 1 + b))) * STEEP
        for m in range(n_magnitudes):  # the square of a centroid as a sum over the subsets of its number's bits
            square = _ZERO
            for part in range(n_magnitudes):
                if (part & m) == part:
                    c = _ptx.load_f32(table + uint64(4 * (CENTROIDS_AT + n_magnitudes + part)))
                    odd = uint32(_ptx.count_bits(uint32(part ^ m)) & uint32(1))
                    square = square + (-(c * c) if odd != uint32(0) else c * c)
            squares[m] = square
        reach, edge, level = _ONE, _ZERO, _ZERO
        if uses_cells:
            top = _ptx.load_f32(table + uint64(4 * (zero_at + n_boundaries)))
            reach = _ptx.divide(_ONE, top)
            edge = -float32(2.0) * top * STEEP  # no boundary in this cell: nothing is above
            for b in range(n_boundaries):
                bound = _ptx.load_f32(table + uint64(4 * (zero_at + 1 + b)))
                cell = uint32(_ptx.float_bits(cell_of(bound, reach)) & uint32(N_CELLS - 1))
                if cell == lane:
                    edge = -bound * STEEP
                elif cell < lane:
                    level = level + _ONE
        first = uint32(uint32(uint32(cuda.blockIdx.x) * uint32(THREADS // 32) + thread // uint32(32)) * uint32(GROUPS))
        last = uint32(n_groups - uint64(1))
        stride = uint32(uint32(cuda.gridDim.x) * uint32(THREADS // 32 * GROUPS))
        skip = uint64(t * uint32(16))
        near = uint32(min(uint32(first + row), last))  # lanes beyond the end go along
        load(read_at(source, near, per_vector, n_tokens, n_heads, in_token, in_head, in_seq) + skip, words)
        while first <= last:
            if is_signed:
                for w in range(n_words):
                    words[w] = uint32(words[w] ^ masks[w])
            transform(words, columns, r)
            near = uint32(
                min(uint32(uint32(first + stride) + row), last)
            )  # those of the next turn, on their way meanwhile
            load(read_at(source, near, per_vector, n_tokens, n_heads, in_token, in_head, in_seq) + skip, words)
            block = at(mine, uint32(row * uint32(group_bytes)))
            finish(r, table, squares, boundaries, edge, level, reach, mirror, t, block)
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

    return encode, -(THREADS // 32 * GROUPS)
