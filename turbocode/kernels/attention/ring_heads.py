"""What the rows of a tile of multirate blocks need beside them: the ring's seam in one piece, and the gain as a number.

The first windows of a row begin with the last bits of its stream. A lane writes for its row, once, the last 16 bits of
the stream and behind them its first 48, so that all windows are read alike.
"""

from __future__ import annotations

import functools
from typing import Any

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.attention.rate_tables import ENTRY_WORDS, HALF_RUN

WARP = 32
HEAD_BYTES = 8  # of a row
GAINS_AT = WARP * HEAD_BYTES
HEADS_BYTES = GAINS_AT + 4 * WARP  # of a tile

uint32 = types.uint32


@functools.cache
def head_writer(head_dim: int) -> Any:
    """write(tile, late, row_bytes, words, heads, lane): the heads of the 32 rows of a tile, the first `late` bytes in.

    tile, words, heads : shared addresses, of the words those of rate_tables.py
    """
    gains_at = 4 * ENTRY_WORDS * head_dim // HALF_RUN

    @device
    def write(tile: Any, late: Any, row_bytes: Any, words: Any, heads: Any, lane: Any) -> None:
        row = uint32(late + uint32(lane * row_bytes))
        byte = _ptx.load_shared_u8(at(tile, row))
        gain = _ptx.load_shared_f32(at(words, uint32(uint32(gains_at) + uint32(byte << uint32(2)))))
        begin = uint32(row + uint32(1))
        shift = uint32(uint32(begin & uint32(3)) << uint32(3))
        first = at(tile, uint32(begin & uint32(0xFFFFFFFC)))
        a, b = _ptx.load_shared_u32(first), _ptx.load_shared_u32(at(first, uint32(4)))
        c = _ptx.load_shared_u32(at(first, uint32(8)))
        low, high = _ptx.funnel_shift_right(a, b, shift), _ptx.funnel_shift_right(b, c, shift)
        end = uint32(row + row_bytes)
        last = _ptx.load_shared_u8(at(tile, uint32(end - uint32(1))))
        tail = uint32(_ptx.load_shared_u8(at(tile, uint32(end - uint32(2)))) | uint32(last << uint32(8)))
        joined = uint32(tail | uint32(low << uint32(16)))
        place = at(heads, uint32(lane * uint32(HEAD_BYTES)))
        _ptx.store_shared_u32x2(place, joined, _ptx.funnel_shift_right(low, high, uint32(16)))
        _ptx.store_shared_f32(at(heads, uint32(uint32(GAINS_AT) + uint32(lane << uint32(2)))), gain)

    return write


@device
def gain_of(heads: Any, row: Any) -> Any:
    """The gain of a row of the tile."""
    return _ptx.load_shared_f32(at(heads, uint32(uint32(GAINS_AT) + uint32(row << uint32(2)))))
