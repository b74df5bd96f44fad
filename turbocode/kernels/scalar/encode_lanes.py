"""The kernel from values to blocks for groups of a power of two: a group in the registers of a few lanes, one launch.

A warp builds the blocks of its groups side by side in shared memory and writes them out in words of 16 bytes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.fwht.hadamard import Rotation
from turbocode.kernels.fwht.lanes import CHUNK, VALUE_BYTES, lanes_for, loader, sums_of_products
from turbocode.kernels.scalar import gpu_steps as steps
from turbocode.kernels.scalar.gpu_steps import CENTROIDS_AT, N_FACTS
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.scalar.place import word_placer
from turbocode.kernels.scalar.tile import tile_bytes, tile_writer
from turbocode.kernels.vectors import N_GEOMETRY_ARGS, group_address

THREADS = 128
N_ARGS = 5 + N_GEOMETRY_ARGS

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


class EncodeVariant(NamedTuple):
    """What an encoding kernel is compiled for.

    mode : the norm that is stored; value_type : of lanes.py; is_measured : whether it tells what coding cost
    reads_strided, writes_strided : whether the vectors in, the blocks out are anything but contiguous
    """

    block_format: BlockFormat
    rotation: Rotation
    mode: NormMode
    value_type: int
    is_measured: bool
    reads_strided: bool
    writes_strided: bool


def preparer(lanes: Any) -> Any:
    """prepare(r) -> (factor, square, flag): r brought into range, as group.py: prepare does."""
    dot, scale = lanes.dot, lanes.scale

    @device
    def prepare(r: Any) -> Any:
        factor, flag = _ONE, uint32(0)
        square = dot(r, r)
        is_extreme = not (square < steps.SAFE_SQUARE)
        if _ptx.any_lane(uint32(1 if is_extreme else 0)) != uint32(0):
            scale(r, steps.DOWN if is_extreme else _ONE)
            factor = steps.UP if is_extreme else _ONE
            square = dot(r, r)
            if is_extreme and not (square <= steps.FINITE_MAX):
                flag, square = uint32(steps.NONFINITE), _ZERO
                for v in range(lanes.values):
                    r[v] = _ZERO
        return factor, square, flag

    return prepare


@functools.cache
def encode_kernel(variant: EncodeVariant) -> tuple[Any, int]:
    """(kernel, groups a block handles)."""
    form, rotation = variant.block_format, variant.rotation
    g, bits = form.group_size, form.bits
    lanes = lanes_for(g)
    n_lanes, n_values = lanes.lanes, lanes.values
    load, prepare = loader(variant.value_type, n_lanes, n_values), preparer(lanes)
    is_rotated = not rotation.is_identity
    first_masks, last_masks = lanes.masks(rotation.signs_before), lanes.masks(rotation.signs_after)
    is_signed, turn_scale = bool(first_masks.any() or last_masks.any()), rotation.scale
    group_bytes, value_bytes = form.bytes_per_group, VALUE_BYTES[variant.value_type]
    per_warp, per_block = 32 // n_lanes, THREADS // n_lanes
    tile = tile_bytes(per_warp * group_bytes)
    n_tiles = tile * (THREADS // 32) // 4
    read_at = group_address(variant.reads_strided, g * value_bytes)
    write_out = tile_writer(variant.writes_strided, group_bytes, n_lanes)
    fill = _filler(form, variant.mode, variant.is_measured)
    is_measured, has_table = variant.is_measured, form.has_codebook
    n_table = (1 << bits) - 1 if has_table else 1
    butterflies, flip, scale = lanes.butterflies, lanes.flip, lanes.scale

    # Blocks of a multiprocessor at once: 15 boundaries do not fit 128 or 168 registers, which four or three leave.
    at_once = 2 if has_table and bits == 4 else 4

    @kernel(launch_bounds=(THREADS, at_once))
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
        r = cuda.local.array(n_values, float32)
        boundaries = cuda.local.array(n_table, float32)
        found = cuda.local.array(N_FACTS, float32)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        t = uint32(lane & uint32(n_lanes - 1))
        mine = shared_address(tiles, uint32(thread // uint32(32) * uint32(tile // 4)))
        first = uint32(uint32(cuda.blockIdx.x) * uint32(per_block) + thread // uint32(32) * uint32(per_warp))
        group = uint32(first + lane // uint32(n_lanes))
        near = uint32(min(uint64(group), uint64(n_groups - uint64(1))))  # lanes beyond the end go along
        load(
            read_at(source, near, per_vector, n_tokens, n_heads, in_token, in_head, in_seq)
            + uint64(t * uint32(CHUNK * value_bytes)),
            r,
        )
        centroid = _ZERO
        if has_table:
            for b in range(n_table):
                boundaries[b] = _ptx.load_f32(table + uint64(4 * b))
            centroid = _ptx.load_f32(
                table + uint64(uint32(4) * uint32(uint32(CENTROIDS_AT) + uint32(lane & uint32(15))))
            )
        if is_rotated and is_signed:
            flip(r, cuda.const.array_like(first_masks)[t])
        factor, square, flag = prepare(r)
        if is_rotated:
            butterflies(r, t)
            scale(r, turn_scale)
            if is_signed:
                flip(r, cuda.const.array_like(last_masks)[t])
        block = at(mine, uint32(lane // uint32(n_lanes)) * uint32(group_bytes))
        if fill(r, factor, square, boundaries, centroid, t, block, found):
            flag = uint32(flag | uint32(steps.SATURATED))
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
        if is_measured and t == uint32(0) and group < n_groups:
            steps.store_facts(facts, flags, group, flag, found)

    return encode, per_block


def _filler(form: BlockFormat, mode: NormMode, is_measured: bool) -> Any:
    """fill(r, factor, square, boundaries, centroid, t, block, found) writes the lane's part of the group's blocks.

    It says whether a stored number was cut, and sets found (N_FACTS,) if the variant is measured.
    """
    if form.layout is Layout.FLOAT16:
        return _float16_filler(form, is_measured)
    if form.layout is Layout.Q8_0:
        return _q8_filler(form, is_measured)
    if form.layout is Layout.Q4_0:
        return _q4_filler(form, is_measured)
    return _codebook_filler(form, mode, is_measured)


def _codebook_filler(form: BlockFormat, mode: NormMode, is_measured: bool) -> Any:
    bits = form.bits
    lanes = lanes_for(form.group_size)
    n_lanes, n_values, n_chunks = lanes.lanes, lanes.values, lanes.values // CHUNK
    index, corrected = steps.searcher(bits), steps.norm_corrector(mode)
    total = sums_of_products(n_lanes, n_values)
    put = word_placer(form, n_lanes)
    needs_product = is_measured or mode in (NormMode.MSE, NormMode.UNBIASED)

    @device
    def fill(r: Any, factor: Any, square: Any, boundaries: Any, centroid: Any, t: Any, block: Any, found: Any) -> Any:
        words = cuda.local.array(n_chunks, uint32)
        cc_terms = cuda.local.array(n_values, float32)
        uc_terms = cuda.local.array(n_values, float32)
        norm = _ptx.square_root(square)
        full = _ptx.multiply(norm, factor)
        inverse = _ZERO
        if full >= steps.TINY:
            inverse = _ptx.divide(_ONE, norm)
        for chunk in range(n_chunks):
            word = uint32(0)
            for e in range(CHUNK):
                v = CHUNK * chunk + e
                u = _ptx.multiply(r[v], inverse)
                i = index(u, boundaries)
                word = uint32(word | uint32(i << uint32(bits * e)))
                c = _ptx.shuffle_index_f32(centroid, i)
                cc_terms[v] = _ptx.multiply(c, c)
                if needs_product:
                    uc_terms[v] = _ptx.multiply(u, c)
            words[chunk] = word
        cc = total(cc_terms)
        uc = _ZERO
        if needs_product:
            uc = total(uc_terms)
        wanted = corrected(full, uc, cc)
        stored = steps.half_bits(wanted)
        for chunk in range(n_chunks):
            put(block, chunk, t, words[chunk], stored)
        if is_measured:
            gain = _ptx.low_half(stored)
            ratio = _ptx.divide(gain, factor)
            for chunk in range(n_chunks):
                for e in range(CHUNK):
                    v = CHUNK * chunk + e
                    i = uint32(uint32(words[chunk] >> uint32(bits * e)) & uint32((1 << bits) - 1))
                    rest = _ptx.subtract(r[v], _ptx.multiply(_ptx.shuffle_index_f32(centroid, i), ratio))
                    cc_terms[v] = _ptx.multiply(rest, rest)
            found[0], found[1], found[2] = norm, factor, gain
            found[3], found[4], found[5] = uc, cc, total(cc_terms)
        return steps.is_cut(wanted)

    return fill


def _measurer(form: BlockFormat) -> Any:
    """measure(r, decoded, factor, found) for formats without a codebook, as group.py: measure."""
    lanes = lanes_for(form.group_size)
    dot, n_values = lanes.dot, lanes.values
    total = sums_of_products(lanes.lanes, n_values)

    @device
    def measure(r: Any, decoded: Any, factor: Any, found: Any) -> None:
        terms = cuda.local.array(n_values, float32)
        inverse = _ptx.divide(_ONE, factor)
        for v in range(n_values):
            rest = _ptx.subtract(r[v], _ptx.multiply(decoded[v], inverse))
            terms[v] = _ptx.multiply(rest, rest)
        found[0], found[1], found[2] = dot(r, r), factor, _ZERO
        found[3], found[4], found[5] = dot(r, decoded), dot(decoded, decoded), total(terms)

    return measure


def _float16_filler(form: BlockFormat, is_measured: bool) -> Any:
    lanes = lanes_for(form.group_size)
    n_lanes, n_values = lanes.lanes, lanes.values
    measure, in_group = _measurer(form), _any_in_group(n_lanes)

    @device
    def fill(r: Any, factor: Any, square: Any, boundaries: Any, centroid: Any, t: Any, block: Any, found: Any) -> Any:
        decoded = cuda.local.array(n_values, float32)
        cut = uint32(0)
        for v in range(n_values):
            value = _ptx.multiply(r[v], factor)
            if steps.is_cut(value):
                cut = uint32(1)
            stored = steps.half_bits(value)
            place = uint32(uint32(v // CHUNK * CHUNK * n_lanes + v % CHUNK) + t * uint32(CHUNK))
            _ptx.store_shared_u16(at(block, place * uint32(2)), stored)
            decoded[v] = _ptx.low_half(stored)
        if is_measured:
            measure(r, decoded, factor, found)
        return in_group(cut) != uint32(0)

    return fill


def _any_in_group(n_lanes: int) -> Any:
    """anywhere(value): the bits that are set in any lane of the group."""
    n_steps = n_lanes.bit_length() - 1

    @device
    def anywhere(value: Any) -> Any:
        for step in range(n_steps):
            value = uint32(value | _ptx.shuffle_xor(value, uint32(uint32(1) << uint32(step))))
        return value

    return anywhere


def _q8_filler(form: BlockFormat, is_measured: bool) -> Any:
    lanes = lanes_for(form.group_size)
    n_values, n_chunks = lanes.values, lanes.values // CHUNK
    block_bytes = form.bytes_per_block
    measure = _measurer(form)

    @device
    def fill(r: Any, factor: Any, square: Any, boundaries: Any, centroid: Any, t: Any, block: Any, found: Any) -> Any:
        decoded = cuda.local.array(n_values, float32)
        cut = uint32(0)
        for chunk in range(n_chunks):  # four lanes hold a block of 32 values
            largest = _ZERO
            for e in range(CHUNK):
                largest = max(largest, abs(_ptx.multiply(r[CHUNK * chunk + e], factor)))
            largest = max(largest, _ptx.shuffle_xor_f32(largest, uint32(1)))
            largest = max(largest, _ptx.shuffle_xor_f32(largest, uint32(2)))
            scale = _ptx.divide(largest, steps.Q8_MAX)
            inverse = steps.bounded_inverse(scale)
            if steps.is_cut(scale):
                cut = uint32(1)
            stored = steps.half_bits(scale)
            start = at(block, uint32(chunk * block_bytes))
            if t == uint32(0):
                _ptx.store_shared_u16(start, stored)
            step = _ptx.low_half(stored)
            for e in range(CHUNK):
                v = CHUNK * chunk + e
                level = steps.q8_level(_ptx.multiply(r[v], factor), inverse)
                _ptx.store_shared_u8(at(start, uint32(2 + e) + t * uint32(CHUNK)), uint32(_ptx.to_int(level)))
                decoded[v] = _ptx.multiply(level, step)
        if is_measured:
            measure(r, decoded, factor, found)
        return cut != uint32(0)

    return fill


def _q4_filler(form: BlockFormat, is_measured: bool) -> Any:
    lanes = lanes_for(form.group_size)
    n_values, n_chunks = lanes.values, lanes.values // CHUNK
    block_bytes = form.bytes_per_block
    measure = _measurer(form)

    @device
    def further(size: Any, value: Any, t: Any, distance: Any) -> Any:
        """The value of the larger size here or `distance` lanes away; of equal ones, that of the lower lane."""
        other_size = _ptx.shuffle_xor_f32(size, uint32(distance))
        other = _ptx.shuffle_xor_f32(value, uint32(distance))
        is_upper = uint32(t & uint32(distance)) != uint32(0)
        if other_size > size or (other_size == size and is_upper):
            size, value = other_size, other
        return size, value

    @device
    def fill(r: Any, factor: Any, square: Any, boundaries: Any, centroid: Any, t: Any, block: Any, found: Any) -> Any:
        decoded = cuda.local.array(n_values, float32)
        cut = uint32(0)
        for chunk in range(n_chunks):
            largest, extreme = _ZERO, _ZERO
            for e in range(CHUNK):
                value = _ptx.multiply(r[CHUNK * chunk + e], factor)
                if abs(value) > largest:
                    largest, extreme = abs(value), value
            largest, extreme = further(largest, extreme, t, uint32(1))
            largest, extreme = further(largest, extreme, t, uint32(2))
            scale = _ptx.divide(extreme, -steps.Q4_OFFSET)
            inverse = steps.bounded_inverse(scale)
            if steps.is_cut(scale):
                cut = uint32(1)
            stored = steps.half_bits(scale)
            start = at(block, uint32(chunk * block_bytes))
            if t == uint32(0):
                _ptx.store_shared_u16(start, stored)
            step = _ptx.low_half(stored)
            for e in range(CHUNK):
                v = CHUNK * chunk + e
                level = steps.q4_level(_ptx.multiply(r[v], factor), inverse)
                high = _ptx.shuffle_xor(uint32(level), uint32(2))  # value j + 16 is two lanes away from value j
                if t < uint32(2):
                    byte = uint32(uint32(level) | uint32(high << uint32(4)))
                    _ptx.store_shared_u8(at(start, uint32(2 + e) + t * uint32(CHUNK)), byte)
                decoded[v] = _ptx.multiply(_ptx.from_int(int32(level - int32(8))), step)
        if is_measured:
            measure(r, decoded, factor, found)
        return cut != uint32(0)

    return fill
