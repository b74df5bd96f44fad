"""The fast encoder of trellises: eight groups a block in registers, searched on the tensor cores, in one launch.

It differs from encode_kernel.py by the search, whose paths are those of whole_numbers.search, and stores the same
blocks for the same paths. Blocks are persistent: they make the search's operands once.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, kernel, shared_address, types
from turbocode.kernels.fwht.lanes import CHUNK, VALUE_BYTES, is_power_of_two, lanes_for, loader
from turbocode.kernels.scalar import gpu_steps as steps
from turbocode.kernels.scalar.encode_lanes import EncodeVariant, preparer
from turbocode.kernels.scalar.place import word_placer
from turbocode.kernels.scalar.tile import tile_writer
from turbocode.kernels.trellis.search_tensor import tensor_search
from turbocode.kernels.trellis.tensor_layout import GROUPS, THREADS, can_search
from turbocode.kernels.trellis.trellis import Trellis
from turbocode.kernels.vectors import group_address

float32, uint32, uint64 = types.float32, types.uint32, types.uint64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def can_encode(variant: EncodeVariant) -> bool:
    """Whether this encoder knows the variant."""
    form = variant.block_format
    is_known = form.is_trellis and is_power_of_two(form.group_size) and not variant.is_measured
    return is_known and can_search(Trellis.of_format(form), form.group_size)


@functools.cache
def encode_kernel(variant: EncodeVariant) -> tuple[Any, int]:
    """(kernel, -groups that a block handles at a time); arguments as in scalar/encode_lanes.py."""
    assert can_encode(variant), variant
    form, rotation, trellis = variant.block_format, variant.rotation, Trellis.of_format(variant.block_format)
    g, bits, group_bytes = form.group_size, form.bits, form.bytes_per_group
    lanes = lanes_for(g, max(CHUNK, g // GROUPS))
    n_lanes, n_values = lanes.lanes, lanes.values
    n_chunks = n_values // CHUNK
    found_by = tensor_search(trellis, g)
    find, states_of, tile_at, n_words = found_by.find, found_by.states_of, found_by.tile, found_by.words
    make_operands, put_sample, n_held = (
        found_by.operands.prepare,
        found_by.operands.put_sample,
        found_by.operands.n_held,
    )
    load, prepare = loader(variant.value_type, n_lanes, n_values), preparer(lanes)
    is_rotated = not rotation.is_identity
    first_masks, last_masks = lanes.masks(rotation.signs_before), lanes.masks(rotation.signs_after)
    is_signed, turn_scale = bool(first_masks.any() or last_masks.any()), rotation.scale
    butterflies, flip, scale, dot = lanes.butterflies, lanes.flip, lanes.scale, lanes.dot
    corrected, put = steps.norm_corrector(variant.mode), word_placer(form, n_lanes)
    read_at = group_address(variant.reads_strided, g * VALUE_BYTES[variant.value_type])
    write_out = tile_writer(variant.writes_strided, group_bytes, 32 // GROUPS)
    chunk_bytes, mask = CHUNK * VALUE_BYTES[variant.value_type], (1 << bits) - 1
    n_tail = group_bytes - 2 - g * bits // 8

    @kernel(launch_bounds=(THREADS, found_by.blocks))
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
        scratch = cuda.shared.array(n_words, uint32)
        held = cuda.local.array(n_held, uint32)
        r = cuda.local.array(n_values, float32)
        c = cuda.local.array(n_values, float32)
        area = shared_address(scratch, uint32(0))
        thread = uint32(cuda.threadIdx.x)
        t = uint32(thread & uint32(n_lanes - 1))
        mine = uint32(min(uint32(thread // uint32(n_lanes)), uint32(GROUPS - 1)))  # of small groups some lanes go along
        make_operands(table, area, thread, held)
        first, stride = (
            uint32(uint32(cuda.blockIdx.x) * uint32(GROUPS)),
            uint32(uint32(cuda.gridDim.x) * uint32(GROUPS)),
        )
        last = uint32(n_groups - uint64(1))
        while first <= last:
            group = uint32(min(uint32(first + mine), last))  # groups beyond the end go along
            near = read_at(source, group, per_vector, n_tokens, n_heads, in_token, in_head, in_seq)
            load(near + uint64(t * uint32(chunk_bytes)), r)
            if is_rotated and is_signed:
                flip(r, cuda.const.array_like(first_masks)[t])
            factor, square, _ = prepare(r)
            if is_rotated:
                butterflies(r, t)
                scale(r, turn_scale)
                if is_signed:
                    flip(r, cuda.const.array_like(last_masks)[t])
            norm = _ptx.square_root(square)
            inverse = _ZERO
            if _ptx.multiply(norm, factor) >= steps.TINY:
                inverse = _ptx.divide(_ONE, norm)
            scale(r, inverse)
            for v in range(n_values):
                j = uint32(uint32(CHUNK * n_lanes * (v // CHUNK) + v % CHUNK) + uint32(t * uint32(CHUNK)))
                put_sample(area, j, mine, r[v])
            cuda.syncthreads()
            find(area, thread, held)
            block = at(tile_at(area), uint32(mine * uint32(group_bytes)))
            states = at(states_of(area, mine), uint32(t * uint32(2 * CHUNK)))
            words = cuda.local.array(n_chunks, uint32)
            state = uint32(0)
            for chunk in range(n_chunks):
                pairs = _ptx.load_shared_u32x4(at(states, uint32(2 * CHUNK * n_lanes * chunk)))
                words[chunk] = uint32(0)
                for e in range(CHUNK):
                    state = uint32(uint32(pairs[e // 2] >> uint32(16 * (e % 2))) & uint32(0xFFFF))
                    if inverse == _ZERO:  # all paths are alike: the one of which every byte is zero
                        state = uint32(0)
                    words[chunk] = uint32(words[chunk] | uint32(uint32(state & uint32(mask)) << uint32(bits * e)))
                    c[CHUNK * chunk + e] = _ptx.load_f32(table + uint64(uint32(state * uint32(4))))
            stored = steps.half_bits(corrected(_ptx.multiply(norm, factor), dot(r, c), dot(c, c)))
            for chunk in range(n_chunks):
                put(block, chunk, t, words[chunk], stored)
            if t == uint32(n_lanes - 1):
                rest = uint32(state >> uint32(bits))
                for byte in range(n_tail):
                    _ptx.store_shared_u8(at(block, uint32(2 + g * bits // 8 + byte)), rest)
                    rest = uint32(rest >> uint32(8))
            cuda.syncthreads()
            if thread < uint32(32):
                write_out(
                    tile_at(area),
                    target,
                    first,
                    thread,
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
            first = uint32(first + stride)

    return encode, -GROUPS
