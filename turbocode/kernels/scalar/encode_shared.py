"""The plain encoder for groups of any size: a warp a group, the group in shared memory. See encode_lanes.py for the
fast one.

`preparer` and `finisher` are what the trellis encoder does before and after its search, too.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.fwht.in_shared import WARP, in_shared, products, read, summed, write
from turbocode.kernels.fwht.lanes import VALUE_BYTES
from turbocode.kernels.scalar import gpu_steps as steps
from turbocode.kernels.scalar.encode_lanes import EncodeVariant
from turbocode.kernels.scalar.gpu_steps import CENTROIDS_AT, N_FACTS
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.scalar.place import word_placer
from turbocode.kernels.scalar.tile import row_address, row_storer, tile_bytes
from turbocode.kernels.vectors import group_address

THREADS = 128
WARPS = THREADS // WARP

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def scratch_words(g: int) -> int:
    """Words of shared memory of a warp: y, c and indices (g,), terms (g / 2,), in this order."""
    return 3 * g + g // 2


@functools.cache
def preparer(g: int) -> Any:
    """prepare(y, terms, lane) -> (factor, square, flag): y brought into range, as group.py: prepare does."""
    dot = products(g)

    @device
    def prepare(y: Any, terms: Any, lane: Any) -> Any:
        factor, flag = _ONE, uint32(0)
        square = dot(y, y, terms, lane)
        if not (square < steps.SAFE_SQUARE):
            factor = steps.UP
            j = uint32(lane)
            while j < uint32(g):
                write(y, j, _ptx.multiply(read(y, j), steps.DOWN))
                j = uint32(j + uint32(WARP))
            _ptx.sync_warp()
            square = dot(y, y, terms, lane)
            if not (square <= steps.FINITE_MAX):
                flag, square = uint32(steps.NONFINITE), _ZERO
                j = uint32(lane)
                while j < uint32(g):
                    write(y, j, _ZERO)
                    j = uint32(j + uint32(WARP))
            _ptx.sync_warp()
        return factor, square, flag

    return prepare


@functools.cache
def finisher(g: int, mode: NormMode, is_measured: bool) -> Any:
    """finish(y, c, terms, lane, norm, factor, inverse, found) -> the norm to store, before it is rounded.

    c holds the chosen values, which a measured variant uses up to set found.
    """
    half = g // 2
    dot, fold, corrected = products(g), summed(half), steps.norm_corrector(mode)

    @device
    def unit_dot(y: Any, c: Any, terms: Any, lane: Any, inverse: Any) -> Any:
        """dot(y * inverse, c), each product of y rounded first."""
        j = uint32(lane)
        while j < uint32(half):
            upper = uint32(j + uint32(half))
            low = _ptx.multiply(_ptx.multiply(read(y, j), inverse), read(c, j))
            high = _ptx.multiply(_ptx.multiply(read(y, upper), inverse), read(c, upper))
            write(terms, j, _ptx.add(low, high))
            j = uint32(j + uint32(WARP))
        _ptx.sync_warp()
        return fold(terms, lane)

    @device
    def finish(y: Any, c: Any, terms: Any, lane: Any, norm: Any, factor: Any, inverse: Any, found: Any) -> Any:
        cc = dot(c, c, terms, lane)
        uc = unit_dot(y, c, terms, lane, inverse)
        wanted = corrected(_ptx.multiply(norm, factor), uc, cc)
        if is_measured:
            gain = _ptx.low_half(steps.half_bits(wanted))
            ratio = _ptx.divide(gain, factor)
            j = uint32(lane)
            while j < uint32(g):
                write(c, j, _ptx.subtract(read(y, j), _ptx.multiply(read(c, j), ratio)))
                j = uint32(j + uint32(WARP))
            _ptx.sync_warp()
            found[0], found[1], found[2] = norm, factor, gain
            found[3], found[4], found[5] = uc, cc, dot(c, c, terms, lane)
        return wanted

    return finish


@functools.cache
def encode_kernel(variant: EncodeVariant) -> tuple[Any, int]:
    """(kernel, groups a block handles); arguments as those of encode_lanes.py."""
    form = variant.block_format
    g, group_bytes = form.group_size, form.bytes_per_group
    spot = in_shared(variant.rotation, variant.value_type)
    load, transform = spot.load, spot.transform
    prepare, fill = preparer(g), _filler(form, variant.mode, variant.is_measured)
    read_at = group_address(variant.reads_strided, g * VALUE_BYTES[variant.value_type])
    place, store_row = row_address(variant.writes_strided, group_bytes), row_storer(group_bytes, WARP)
    is_measured = variant.is_measured
    n_words = scratch_words(g) + tile_bytes(group_bytes) // 4
    n_scratch = n_words * WARPS

    @kernel(launch_bounds=(THREADS, 4))
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
        scratch = cuda.shared.array(n_scratch, float32)
        found = cuda.local.array(N_FACTS, float32)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        group = uint32(uint32(cuda.blockIdx.x) * uint32(WARPS) + thread // uint32(WARP))
        y = shared_address(scratch, uint32(thread // uint32(WARP) * uint32(n_words)))
        if group < n_groups:  # the same for a whole warp
            load(read_at(source, group, per_vector, n_tokens, n_heads, in_token, in_head, in_seq), y, lane)
            c, indices = at(y, uint32(4 * g)), at(y, uint32(8 * g))
            terms, block = at(y, uint32(12 * g)), at(y, uint32(14 * g))
            factor, square, flag = prepare(y, terms, lane)
            transform(y, lane)
            if fill(y, c, indices, terms, block, factor, square, table, lane, found):
                flag = uint32(flag | uint32(steps.SATURATED))
            _ptx.sync_warp()
            out = place(target, group, per_vector, n_tokens, n_heads, out_token, out_head, out_seq, capacity, starts)
            store_row(block, out, lane)
            if is_measured and lane == uint32(0):
                steps.store_facts(facts, flags, group, flag, found)

    return encode, WARPS


def _filler(form: BlockFormat, mode: NormMode, is_measured: bool) -> Any:
    """fill(y, c, indices, terms, block, factor, square, table, lane, found) writes the group's blocks to shared memory.

    It says whether a stored number was cut.
    """
    if form.has_codebook:
        return _codebook_filler(form, mode, is_measured)
    return _plain_filler(form, is_measured)


def _codebook_filler(form: BlockFormat, mode: NormMode, is_measured: bool) -> Any:
    g, bits = form.group_size, form.bits
    n_boundaries = (1 << bits) - 1
    index, finish, put = steps.searcher(bits), finisher(g, mode, is_measured), word_placer(form, 1)

    @device
    def fill(
        y: Any,
        c: Any,
        indices: Any,
        terms: Any,
        block: Any,
        factor: Any,
        square: Any,
        table: Any,
        lane: Any,
        found: Any,
    ) -> Any:
        boundaries = cuda.local.array(n_boundaries, float32)
        for b in range(n_boundaries):
            boundaries[b] = _ptx.load_f32(table + uint64(4 * b))
        norm = _ptx.square_root(square)
        inverse = _ZERO
        if _ptx.multiply(norm, factor) >= steps.TINY:
            inverse = _ptx.divide(_ONE, norm)
        j = uint32(lane)
        while j < uint32(g):
            i = index(_ptx.multiply(read(y, j), inverse), boundaries)
            write(c, j, _ptx.load_f32(table + uint64(uint32(4) * uint32(uint32(CENTROIDS_AT) + i))))
            _ptx.store_shared_u32(at(indices, uint32(j * uint32(4))), i)
            j = uint32(j + uint32(WARP))
        _ptx.sync_warp()
        wanted = finish(y, c, terms, lane, norm, factor, inverse, found)
        stored = steps.half_bits(wanted)
        chunk = uint32(lane)
        while chunk < uint32(g // 8):
            word = uint32(0)
            for e in range(8):
                i = _ptx.load_shared_u32(at(indices, uint32(chunk * uint32(32) + uint32(4 * e))))
                word = uint32(word | uint32(i << uint32(bits * e)))
            put(block, chunk, uint32(0), word, stored)
            chunk = uint32(chunk + uint32(WARP))
        return steps.is_cut(wanted)

    return fill


def _plain_filler(form: BlockFormat, is_measured: bool) -> Any:
    g, block_bytes = form.group_size, form.bytes_per_block
    is_float, is_q8 = form.layout is Layout.FLOAT16, form.layout is Layout.Q8_0
    dot = products(g)
    n_rows = -(-g // WARP)

    @device
    def fill(
        y: Any,
        c: Any,
        indices: Any,
        terms: Any,
        block: Any,
        factor: Any,
        square: Any,
        table: Any,
        lane: Any,
        found: Any,
    ) -> Any:
        cut = uint32(0)
        for row in range(n_rows):  # a row of 32 values is a block of q8_0 and q4_0
            j = uint32(uint32(row * WARP) + lane)
            value = _ZERO
            if j < uint32(g):
                value = _ptx.multiply(read(y, j), factor)
            if is_float:
                if steps.is_cut(value):
                    cut = uint32(1)
                stored = steps.half_bits(value)
                if j < uint32(g):
                    _ptx.store_shared_u16(at(block, uint32(j * uint32(2))), stored)
                    write(c, j, _ptx.low_half(stored))
            else:
                size, extreme, owner = abs(value), value, lane
                for step in range(5):
                    other_size = _ptx.shuffle_xor_f32(size, uint32(1 << step))
                    other = _ptx.shuffle_xor_f32(extreme, uint32(1 << step))
                    other_owner = _ptx.shuffle_xor(owner, uint32(1 << step))
                    if other_size > size or (other_size == size and other_owner < owner):
                        size, extreme, owner = other_size, other, other_owner
                if is_q8:
                    scale = _ptx.divide(size, steps.Q8_MAX)
                else:
                    scale = _ptx.divide(_ptx.add(extreme, _ZERO), -steps.Q4_OFFSET)
                inverse = steps.bounded_inverse(scale)
                if steps.is_cut(scale):
                    cut = uint32(1)
                stored = steps.half_bits(scale)
                start = at(block, uint32(row * block_bytes))
                if lane == uint32(0):
                    _ptx.store_shared_u16(start, stored)
                step_size = _ptx.low_half(stored)
                if is_q8:
                    level = steps.q8_level(value, inverse)
                    _ptx.store_shared_u8(at(start, uint32(uint32(2) + lane)), uint32(_ptx.to_int(level)))
                    write(c, j, _ptx.multiply(level, step_size))
                else:
                    nibble = steps.q4_level(value, inverse)
                    high = _ptx.shuffle_xor(uint32(nibble), uint32(16))
                    if lane < uint32(16):
                        byte = uint32(uint32(nibble) | uint32(high << uint32(4)))
                        _ptx.store_shared_u8(at(start, uint32(uint32(2) + lane)), byte)
                    write(c, j, _ptx.multiply(_ptx.from_int(int32(nibble - int32(8))), step_size))
        _ptx.sync_warp()
        if is_measured:
            found[0], found[1], found[2] = dot(y, y, terms, lane), factor, _ZERO
            found[3], found[4] = dot(y, c, terms, lane), dot(c, c, terms, lane)
            inverse_factor = _ptx.divide(_ONE, factor)
            j = uint32(lane)
            while j < uint32(g):
                write(c, j, _ptx.subtract(read(y, j), _ptx.multiply(read(c, j), inverse_factor)))
                j = uint32(j + uint32(WARP))
            _ptx.sync_warp()
            found[5] = dot(c, c, terms, lane)
        return _ptx.any_lane(cut) != uint32(0)

    return fill
