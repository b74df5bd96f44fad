"""Where the packed indices of a chunk belong in the blocks of a group, which lie in shared memory."""

from __future__ import annotations

import functools
from typing import Any

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.fwht.lanes import CHUNK

uint32 = types.uint32


@functools.cache
def word_placer(form: BlockFormat, n_lanes: int) -> Any:
    """put(block, chunk, t, word, stored): the chunk's eight indices, `bits` bits each in word, and the norm if it is
    due.

    chunk : number of the lane's chunk; t : the lane among the n_lanes of the group; stored : float16 bits
    """
    bits, is_split = form.bits, form.layout is Layout.SPLIT_PLANES
    block_bytes, per_block = form.bytes_per_block, form.values_per_block
    low_bytes = per_block // 4

    @device
    def put(block: Any, chunk: Any, t: Any, word: Any, stored: Any) -> None:
        position = uint32(uint32(chunk * CHUNK * n_lanes) + uint32(t * uint32(CHUNK)))
        number = uint32(position // uint32(per_block))
        within = uint32(position - uint32(number * uint32(per_block)))
        start = at(block, uint32(number * uint32(block_bytes)))
        if within == uint32(0):
            _ptx.store_shared_u16(start, stored)
        if is_split:
            low, high = uint32(0), uint32(0)
            for e in range(CHUNK):
                i = uint32(word >> uint32(3 * e))
                low = uint32(low | uint32(uint32(i & uint32(3)) << uint32(2 * e)))
                high = uint32(high | uint32(uint32(uint32(i >> uint32(2)) & uint32(1)) << uint32(e)))
            _ptx.store_shared_u16(at(start, uint32(uint32(2) + uint32(within // uint32(4)))), low)
            _ptx.store_shared_u8(at(start, uint32(uint32(2 + low_bytes) + uint32(within // uint32(8)))), high)
        elif bits == 2:
            _ptx.store_shared_u16(at(start, uint32(uint32(2) + uint32(within // uint32(4)))), word)
        elif bits == 4:
            place = at(start, uint32(uint32(2) + uint32(within // uint32(2))))
            _ptx.store_shared_u16(place, word)
            _ptx.store_shared_u16(at(place, uint32(2)), uint32(word >> uint32(16)))
        else:
            place = at(start, uint32(uint32(2) + uint32(uint32(within // uint32(CHUNK)) * uint32(bits))))
            for byte in range(bits):
                _ptx.store_shared_u8(at(place, uint32(byte)), uint32(word >> uint32(8 * byte)))

    return put
