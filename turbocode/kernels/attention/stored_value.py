"""One value of a stored block, read from global memory: the plain kernel's decoder, one short function a layout."""

from __future__ import annotations

import functools
from typing import Any

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.formats.multirate_format import MultirateFormat
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import device, types
from turbocode.kernels.multirate.gpu_table import CHANNELS_AT, GAINS_AT, N_STATES, RATE_SHIFT, STREAM_BYTES_AT

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64
NORM_BYTES = 2


@functools.cache
def stored_value(form: BlockFormat | MultirateFormat) -> Any:
    """value(block, j, table) -> float32: the block's uint32 value j in the basis of the blocks, its norm included.

    block : uint64 address; table : address of the float32 centroids, of a trellis's values, or of a multirate gpu_table
    """
    if isinstance(form, MultirateFormat):
        return _multirate_value()
    bits, n, layout = form.bits, form.values_per_block, form.layout
    index_mask, state_mask = (1 << bits) - 1, (1 << form.states_log2) - 1
    stream_bytes = -(-form.stream_bits // 8) if form.is_trellis else 0
    is_ring = form.is_tail_biting
    low_bytes = n // 4

    @device
    def byte(block: Any, number: Any) -> Any:
        return _ptx.load_u8(block + uint64(uint32(uint32(NORM_BYTES) + uint32(number))))

    is_odd = form.bytes_per_block % 2 == 1  # blocks begin at any byte

    @device
    def norm(block: Any) -> Any:
        if is_odd:
            bits = uint32(_ptx.load_u8(block) | uint32(_ptx.load_u8(block + uint64(1)) << uint32(8)))
        else:
            bits = _ptx.load_u16(block)
        return _ptx.low_half(bits)

    if layout is Layout.FLOAT16:

        @device
        def value(block: Any, j: Any, table: Any) -> Any:
            return _ptx.low_half(_ptx.load_u16(block + uint64(uint32(j * uint32(2)))))

    elif layout is Layout.Q8_0:

        @device
        def value(block: Any, j: Any, table: Any) -> Any:
            level = int32(int32(uint32(byte(block, j) ^ uint32(128))) - int32(128))
            return _ptx.multiply(_ptx.from_int(level), norm(block))

    elif layout is Layout.Q4_0:

        @device
        def value(block: Any, j: Any, table: Any) -> Any:
            shift = uint32(4) if j >= uint32(n // 2) else uint32(0)
            nibble = uint32(uint32(byte(block, uint32(j % uint32(n // 2))) >> shift) & uint32(15))
            return _ptx.multiply(_ptx.from_int(int32(int32(nibble) - int32(8))), norm(block))

    elif form.is_trellis:

        @device
        def value(block: Any, j: Any, table: Any) -> Any:
            bit = uint32(j * uint32(bits))
            window = uint32(0)
            for number in range(3):  # a state has at most 12 bits and begins at any bit of a byte
                place = uint32(uint32(bit >> uint32(3)) + uint32(number))
                if is_ring and place >= uint32(stream_bytes):
                    place = uint32(place - uint32(stream_bytes))
                if place < uint32(stream_bytes):
                    window = uint32(window | uint32(byte(block, place) << uint32(8 * number)))
            state = uint32(uint32(window >> uint32(bit & uint32(7))) & uint32(state_mask))
            return _ptx.multiply(_ptx.load_f32(table + uint64(uint32(state * uint32(4)))), norm(block))

    else:
        is_split = layout is Layout.SPLIT_PLANES

        @device
        def value(block: Any, j: Any, table: Any) -> Any:
            if is_split:
                low = byte(block, uint32(j >> uint32(2)))
                high = byte(block, uint32(uint32(low_bytes) + uint32(j >> uint32(3))))
                i = uint32(uint32(low >> uint32(uint32(j & uint32(3)) << uint32(1))) & uint32(3))
                i = uint32(i | uint32(uint32(uint32(high >> uint32(j & uint32(7))) & uint32(1)) << uint32(2)))
            else:
                bit = uint32(j * uint32(bits))
                word = byte(block, uint32(bit >> uint32(3)))
                if uint32(bit & uint32(7)) > uint32(8 - bits):
                    word = uint32(word | uint32(byte(block, uint32(uint32(bit >> uint32(3)) + uint32(1))) << uint32(8)))
                i = uint32(uint32(word >> uint32(bit & uint32(7))) & uint32(index_mask))
            return _ptx.multiply(_ptx.load_f32(table + uint64(uint32(i * uint32(4)))), norm(block))

    return value


def _multirate_value() -> Any:
    """`stored_value` of any multirate block; rates and places come from the table."""

    @device
    def entry(table: Any, number: Any) -> Any:
        return table + uint64(uint32(uint32(number) * uint32(4)))

    @device
    def value(block: Any, j: Any, table: Any) -> Any:
        channel = _ptx.load_u32(entry(table, uint32(uint32(CHANNELS_AT) + uint32(j))))
        n_bytes = _ptx.load_u32(entry(table, uint32(STREAM_BYTES_AT)))
        rate = uint32(channel >> uint32(RATE_SHIFT))
        bit = uint32(channel & uint32((1 << RATE_SHIFT) - 1))
        window = uint32(0)
        for number in range(3):  # a state has ten bits and begins at any bit of a byte
            place = uint32(uint32(bit >> uint32(3)) + uint32(number))
            if place >= n_bytes:
                place = uint32(place - n_bytes)
            stored = _ptx.load_u8(block + uint64(uint32(place + uint32(1))))
            window = uint32(window | uint32(uint32(stored) << uint32(8 * number)))
        state = uint32(uint32(window >> uint32(bit & uint32(7))) & uint32(N_STATES - 1))
        state = uint32(state + uint32(rate * uint32(N_STATES)))  # row 0 of the tables holds zeros
        gain = _ptx.load_f32(entry(table, uint32(uint32(GAINS_AT) + uint32(_ptx.load_u8(block)))))
        return _ptx.multiply(_ptx.load_f32(entry(table, state)), gain)

    return value
