"""Rows of a cache on their way into shared memory, several tiles ahead of the warp that reads them.

Each warp has a ring of stages of its own and waits for nobody else. Rows of a tile lie side by side in the cache, or
each half of them in a page; both are copied in words of 16 bytes. Bytes beyond the end arrive as zeros.
"""

from __future__ import annotations

import functools
from typing import Any

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.attention.key_scores import HALF_TILE

WORD, WARP = 16, 32
SLACK = 2 * WORD  # behind a stage: rows may begin up to 14 bytes late, and the last word read ends beyond them

int32, uint32, uint64 = types.int32, types.uint32, types.uint64


def stage_bytes(row_bytes: int, tile: int) -> int:
    """Shared memory of one tile of rows."""
    return -(-(tile * row_bytes) // WORD) * WORD + SLACK


@functools.cache
def tile_copier(row_bytes: int, tile: int, is_late: bool) -> Any:
    """copy(stage, first, second, n_bytes, lane): the halves of a tile at two global addresses.

    is_late : rows may begin up to 14 bytes behind the address

    first, second : multiples of 16; the second is where the second half would begin if it followed the first, so that
    both are equal for rows that lie side by side; n_bytes : int32, up to the end of the rows that are there
    """
    words = -(-(tile * row_bytes + (WORD - 2 if is_late else 0)) // WORD)
    half_words = HALF_TILE * row_bytes // WORD
    turns = -(-words // WARP)

    @device
    def copy(stage: Any, first: Any, second: Any, n_bytes: Any, lane: Any) -> None:
        if n_bytes >= int32(words * WORD) and first == second:
            source = first + uint64(lane * uint32(WORD))
            target = at(stage, uint32(lane * uint32(WORD)))
            for turn in range(turns):
                if (turn + 1) * WARP <= words or uint32(lane + uint32(turn * WARP)) < uint32(words):
                    _ptx.copy_async_whole(at(target, uint32(turn * WARP * WORD)), source + uint64(turn * WARP * WORD))
        else:
            for turn in range(turns):
                word = uint32(lane + uint32(turn * WARP))
                if word < uint32(words):
                    base = second if word >= uint32(half_words) else first
                    left = int32(n_bytes - int32(word * uint32(WORD)))
                    count = uint32(min(max(left, int32(0)), int32(WORD)))
                    _ptx.copy_async(at(stage, uint32(word * uint32(WORD))), base + uint64(word * uint32(WORD)), count)

    return copy
