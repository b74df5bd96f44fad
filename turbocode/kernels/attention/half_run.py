"""Half a run of a multirate block, four channels, read by a lane: rate and place are data, so that lanes do not part.

The windows of four channels lie in two words of shared memory, whatever their rate. rate_tables.py says where, and has
the tables.
"""

from __future__ import annotations

from typing import Any

from turbocode.kernels import _ptx, _ptx_bits
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.attention.rate_tables import EMPTY, PAIRS, RATE_SHIFT, RING

ENTRY_BYTES = 16
ROWS_APART = 8  # of a tile, whose rows begin alike

uint32 = types.uint32


@device
def is_empty(entry: Any) -> Any:
    """Whether no lane of the warp has bits to read."""
    return uint32(entry[0] & uint32(EMPTY)) != uint32(0)


@device
def has_pairs(entry: Any) -> Any:
    """Whether all lanes look pairs up."""
    return uint32(entry[0] & uint32(PAIRS)) != uint32(0)


@device
def spot_of(entry: Any, place: Any) -> Any:
    """(rate, mask, table) of an entry for a lane; place : four times its number."""
    rate = uint32(uint32(entry[0] >> uint32(RATE_SHIFT)) & uint32(15))
    return rate, entry[1], uint32(entry[2] | uint32(place & entry[3]))


@device
def begin_of(entry: Any, row: Any, bit: Any, head: Any, row_step: Any, head_step: Any) -> Any:
    """(address, shift, step): the word and the bit of it where reading begins, and bytes to the row eight further on.

    row : shared address of the word in which a row begins, at its bit `bit`; head : of its ring head
    """
    begin, origin, step = uint32(entry[0] & uint32(0xFFFF)), head, head_step
    if uint32(entry[0] & uint32(RING)) == uint32(0):
        begin, origin, step = uint32(begin + bit), row, row_step
    address = at(origin, uint32(uint32(begin >> uint32(5)) << uint32(2)))
    return address, uint32(begin & uint32(31)), step


@device
def pairs_at(address: Any, shift: Any, spot: Any, image: Any) -> Any:
    """Four channels as two words of two float16."""
    rate, mask, table = spot
    low, high = _ptx.load_shared_u32(address), _ptx.load_shared_u32(at(address, uint32(4)))
    window = _ptx.funnel_shift_right(low, high, shift)  # four channels of up to four bits, and ten before them
    behind = uint32(window >> uint32(rate << uint32(1)))
    first = _ptx.load_shared_u32(at(image, uint32(uint32(window & mask) | table)))
    return first, _ptx.load_shared_u32(at(image, uint32(uint32(behind & mask) | table)))


@device
def values_at(address: Any, shift: Any, spot: Any, image: Any) -> Any:
    """Four channels as the low halves of four words."""
    rate, mask, table = spot
    low, high = _ptx.load_shared_u32(address), _ptx.load_shared_u32(at(address, uint32(4)))
    near = _ptx_bits.shift_right_long(low, high, shift)
    far = _ptx_bits.shift_right_long(low, high, uint32(shift + uint32(rate << uint32(1))))
    a = _ptx.load_shared_u16(at(image, uint32(uint32(near & mask) | table)))
    b = _ptx.load_shared_u16(at(image, uint32(uint32(uint32(near >> rate) & mask) | table)))
    c = _ptx.load_shared_u16(at(image, uint32(uint32(far & mask) | table)))
    d = _ptx.load_shared_u16(at(image, uint32(uint32(uint32(far >> rate) & mask) | table)))
    return a, b, c, d
