"""Which of eight tokens a row of a product of matrices stands for: any order does, as long as keys and values agree.

Lane 4 g + t reads values of tokens 2 t and 2 t + 1 one after the other, and rows lie side by side in shared memory. For
some row sizes, as 68 bytes, every other row begins in few of the 32 banks, so that lanes wait for each other; rows in a
row do not.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

from turbocode.formats import BlockFormat, MultirateFormat
from turbocode.kernels._cuda import device, types
from turbocode.kernels.attention.lane_run import NORM_BITS

EIGHT = 8
IN_TURN, SPREAD = (0, 1, 2, 3, 4, 5, 6, 7), (0, 4, 1, 5, 2, 6, 3, 7)
_BANKS, _WORD_BITS, _LANES = 32, 32, 8

uint32 = types.uint32


@functools.cache
def is_spread(form: BlockFormat | MultirateFormat, head_dim: int) -> bool:
    """Whether values are read with fewer bank conflicts if rows stand for tokens 0, 4, 1, 5, 2, 6, 3, 7.

    Multirate rows have any size; few of them read better in turn.
    """
    if isinstance(form, MultirateFormat):
        return True
    return _turns(form, head_dim, SPREAD) < _turns(form, head_dim, IN_TURN)


def _turns(form: BlockFormat, head_dim: int, order: tuple[int, ...]) -> int:
    """In how many turns shared memory serves a warp that reads a word of each lane's run, over blocks and rows."""
    row_bits, run = 8 * form.bytes_per_vector(head_dim), 8 * form.bytes_per_block - NORM_BITS
    total = 0
    for block in range(head_dim // form.values_per_block):
        first = 8 * form.bytes_per_block * block + NORM_BITS
        for odd in range(2):
            words = {
                (row_bits * order[2 * t + odd] + first + g * run // _LANES) // _WORD_BITS
                for g in range(_LANES)
                for t in range(EIGHT // 2)
            }
            total += max(Counter(word % _BANKS for word in words).values())
    return total


@functools.cache
def token_of(is_spread: bool) -> Any:
    """token(row): the token, of eight, that a uint32 row stands for."""

    @device
    def token(row: Any) -> Any:
        if is_spread:
            return uint32(uint32(row >> uint32(1)) | uint32(uint32(row & uint32(1)) << uint32(2)))
        return uint32(row)

    return token
