"""Words of 16 bytes of stored rows on their way into shared memory, and where the rows end.

A copy always reads a whole word, all of which must be there: a cache may end with its memory. So the word in which the
rows end is read byte by byte, one a lane, which waits for it; words behind it are not read.
"""

from __future__ import annotations

from typing import Any

from turbocode.kernels import _ptx, _ptx_copies
from turbocode.kernels._cuda import at, device, types

WORD = 16

int32, uint32, uint64 = types.int32, types.uint32, types.uint64


@device
def copy_word(target: Any, source: Any, n_left: Any) -> None:
    """Start copying a word, of which int32 n_left bytes or more are there: zeros for none, nothing for less than 16."""
    if n_left >= int32(WORD):
        _ptx_copies.copy_async_whole(target, source)
    elif n_left <= int32(0):
        _ptx.store_shared_u32x4(target, uint32(0), uint32(0), uint32(0), uint32(0))


@device
def copy_end(target: Any, source: Any, n_left: Any, lane: Any) -> None:
    """Copy the word of which uint32 n_left bytes are there, zeros behind them; other lanes than 0 to 15 do nothing.

    Lanes see it once they have met.
    """
    if lane < uint32(WORD):
        value = uint32(0)
        if lane < n_left:
            value = _ptx.load_u8(source + uint64(lane))
        _ptx.store_shared_u8(at(target, lane), value)
