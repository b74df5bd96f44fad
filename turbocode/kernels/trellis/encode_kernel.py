"""The kernel from values to the blocks of a trellis: rotation, norm, search, corrected norm and packing in one launch.

Before and after the search a warp works on a group in shared memory, as scalar/encode_shared.py does.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, kernel, shared_address, types
from turbocode.kernels.fwht.in_shared import WARP, in_shared, read, write
from turbocode.kernels.fwht.lanes import VALUE_BYTES
from turbocode.kernels.scalar import gpu_steps as steps
from turbocode.kernels.scalar.encode_lanes import EncodeVariant
from turbocode.kernels.scalar.encode_shared import finisher, preparer
from turbocode.kernels.scalar.gpu_steps import N_FACTS
from turbocode.kernels.scalar.place import word_placer
from turbocode.kernels.scalar.tile import row_address, row_storer, tile_bytes
from turbocode.kernels.trellis.search_lanes import THREADS, lane_search
from turbocode.kernels.trellis.trellis import Trellis
from turbocode.kernels.vectors import group_address

float32, uint32, uint64 = types.float32, types.uint32, types.uint64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
N_ROOTS = 4  # float32 numbers of a group that outlive the search: norm, factor, 1 / norm, flag


@functools.cache
def encode_kernel(variant: EncodeVariant) -> tuple[Any, int]:
    """(kernel, groups a block handles); arguments as in scalar/encode_lanes.py, the table being the states' values."""
    form, trellis = variant.block_format, Trellis.of_format(variant.block_format)
    g, group_bytes = form.group_size, form.bytes_per_group
    approach = trellis.approach(g) if trellis.is_tail_biting else 0
    found_by = lane_search(trellis, g, approach)
    search, n_threads, per_block = found_by.search, found_by.group_threads, found_by.per_block
    spot = in_shared(variant.rotation, variant.value_type)
    load, transform, prepare = spot.load, spot.transform, preparer(g)
    finish, pack = finisher(g, variant.mode, variant.is_measured), _packer(form)
    read_at = group_address(variant.reads_strided, g * VALUE_BYTES[variant.value_type])
    place, store_row = row_address(variant.writes_strided, group_bytes), row_storer(group_bytes, WARP)
    is_measured = variant.is_measured
    # y, c (g,), terms and uint16 states (g / 2,), roots, the block, the search's area; rows of 16 bytes
    head = 3 * g + N_ROOTS + tile_bytes(group_bytes) // 4
    n_words = -(-(head + found_by.words) // 4) * 4
    n_scratch, n_warps = n_words * per_block, THREADS // WARP

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
        lane, warp = uint32(thread & uint32(31)), uint32(thread // uint32(WARP))
        first = uint32(uint32(cuda.blockIdx.x) * uint32(per_block))
        last = uint32(n_groups - uint64(1))
        mine = warp
        while mine < uint32(per_block):
            y = shared_address(scratch, uint32(mine * uint32(n_words)))
            group = uint32(min(uint32(first + mine), last))  # groups beyond the end go along, for the barriers
            load(read_at(source, group, per_vector, n_tokens, n_heads, in_token, in_head, in_seq), y, lane)
            factor, square, flag = prepare(y, at(y, uint32(8 * g)), lane)
            transform(y, lane)
            norm = _ptx.square_root(square)
            inverse = _ZERO
            if _ptx.multiply(norm, factor) >= steps.TINY:
                inverse = _ptx.divide(_ONE, norm)
            if lane == uint32(0):
                roots = at(y, uint32(12 * g))
                write(roots, uint32(0), norm)
                write(roots, uint32(1), factor)
                write(roots, uint32(2), inverse)
                _ptx.store_shared_u32(at(roots, uint32(12)), flag)
            mine = uint32(mine + uint32(n_warps))
        cuda.syncthreads()
        y = shared_address(scratch, uint32(uint32(thread // uint32(n_threads)) * uint32(n_words)))
        factor = read(at(y, uint32(12 * g)), uint32(2))
        search(y, factor, y, table, at(y, uint32(4 * head)), at(y, uint32(10 * g)), thread)
        cuda.syncthreads()
        mine = warp
        while mine < uint32(per_block):
            y = shared_address(scratch, uint32(mine * uint32(n_words)))
            roots, block, states = at(y, uint32(12 * g)), at(y, uint32(12 * g + 4 * N_ROOTS)), at(y, uint32(10 * g))
            norm, factor, inverse = read(roots, uint32(0)), read(roots, uint32(1)), read(roots, uint32(2))
            flag = _ptx.load_shared_u32(at(roots, uint32(12)))
            c = at(y, uint32(4 * g))
            j = lane
            while j < uint32(g):
                state = _ptx.load_shared_u16(at(states, uint32(j * uint32(2))))
                if inverse == _ZERO:  # all paths are alike: the one of which every byte is zero
                    state = uint32(0)
                    _ptx.store_shared_u16(at(states, uint32(j * uint32(2))), state)
                write(c, j, _ptx.load_f32(table + uint64(uint32(state * uint32(4)))))
                j = uint32(j + uint32(WARP))
            _ptx.sync_warp()
            wanted = finish(y, c, at(y, uint32(8 * g)), lane, norm, factor, inverse, found)
            pack(states, block, lane, steps.half_bits(wanted))
            _ptx.sync_warp()
            group = uint32(first + mine)
            if group < n_groups:
                out = place(
                    target, group, per_vector, n_tokens, n_heads, out_token, out_head, out_seq, capacity, starts
                )
                store_row(block, out, lane)
                if is_measured and lane == uint32(0):
                    if steps.is_cut(wanted):
                        flag = uint32(flag | uint32(steps.SATURATED))
                    steps.store_facts(facts, flags, group, flag, found)
            mine = uint32(mine + uint32(n_warps))

    return encode, per_block


def _packer(form: BlockFormat) -> Any:
    """pack(states, block, lane, stored): norm and stream of a block, from uint16 states (g,) in shared memory."""
    put = word_placer(form, 1)
    g, bits, mask = form.group_size, form.bits, (1 << form.bits) - 1
    n_tail = form.bytes_per_group - 2 - g * bits // 8

    @device
    def pack(states: Any, block: Any, lane: Any, stored: Any) -> None:
        chunk = uint32(lane)
        while chunk < uint32(g // 8):
            word = uint32(0)
            for e in range(8):
                state = _ptx.load_shared_u16(at(states, uint32(uint32(chunk * uint32(16)) + uint32(2 * e))))
                word = uint32(word | uint32(uint32(state & uint32(mask)) << uint32(bits * e)))
            put(block, chunk, uint32(0), word, stored)
            chunk = uint32(chunk + uint32(WARP))
        if lane == uint32(0):
            rest = uint32(_ptx.load_shared_u16(at(states, uint32(2 * g - 2))) >> uint32(bits))
            for byte in range(n_tail):
                _ptx.store_shared_u8(at(block, uint32(2 + g * bits // 8 + byte)), rest)
                rest = uint32(rest >> uint32(8))

    return pack
