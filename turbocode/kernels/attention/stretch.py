"""The bits of a stored block that one lane reads, moved to the beginning of whole words.

Rows lie in shared memory as they are stored, so a lane's run of values begins at any multiple of 4 or 8 bits. It reads
the aligned words that hold the run and shifts them into place. Rows eight apart have the same alignment, so that what a
lane has to know is worked out once.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types

PLACES = 4  # uint32 numbers that say where a lane reads

uint32 = types.uint32


class Stretch(NamedTuple):
    """words : uint32 numbers that hold the run

    start(block, part, places, first) : set places[first:first + PLACES] for part's run in the block that begins `block`
        bytes behind a multiple of 4
    load(tile, places, first, offset, x, to) : set x[to:to + words] to the run in the tile at a shared address, `offset`
        bytes (a constant multiple of 4) further
    """

    words: int
    start: Any
    load: Any


@functools.cache
def stretch(first_bit: int, run: int, parts: int, beyond: int = 0, is_ring: bool = False) -> Stretch:
    """The runs of `run` bits each of a stream that begins at first_bit of a block.

    beyond : bits that are read behind a run, those of the next or, in a ring, of the first behind the last
    """
    grain = math.gcd(16, run)  # blocks begin at even bytes: shifts are multiples of it
    whole = run if is_ring else run + beyond  # bits that lie side by side
    words, whole_words = -(-(run + beyond) // 32), -(-whole // 32)
    n_loads = -(-(whole + 32 - grain) // 32)
    fits_one = 32 - grain + beyond <= 32
    last_word, last_bits = divmod(run, 32)
    kept = (1 << last_bits) - 1
    spills = last_bits + beyond > 32  # what lies beyond ends in a word of its own
    joins = is_ring and beyond > 0

    @device
    def locate(block: Any, bit: Any) -> Any:
        late = uint32(block & uint32(3))
        bit = uint32(uint32(uint32(late << uint32(3)) + uint32(first_bit)) + bit)
        return uint32(uint32(block - late) + uint32(uint32(bit >> uint32(5)) << uint32(2))), uint32(bit & uint32(31))

    @device
    def start(block: Any, part: Any, places: Any, first: Any) -> None:
        after = uint32(uint32(part + uint32(1)) * uint32(run))
        if is_ring and part == uint32(parts - 1):
            after = uint32(0)
        place, shift = locate(block, uint32(part * uint32(run)))
        more, more_shift = locate(block, after)
        places[first], places[first + 1], places[first + 2], places[first + 3] = place, shift, more, more_shift

    @device
    def load(tile: Any, places: Any, first: Any, offset: Any, x: Any, to: Any) -> None:
        address, shift = at(tile, places[first]), places[first + 1]
        before = _ptx.load_shared_u32(at(address, uint32(offset)))
        for w in range(whole_words):
            after = before
            if w + 1 < n_loads:
                after = _ptx.load_shared_u32(at(address, uint32(offset + 4 * (w + 1))))
            x[to + w] = _ptx.funnel_shift_right(before, after, shift)
            before = after
        if joins:
            more, more_shift = at(tile, places[first + 2]), places[first + 3]
            tail = _ptx.load_shared_u32(at(more, uint32(offset)))
            if fits_one:
                tail = uint32(tail >> more_shift)
            else:
                tail = _ptx.funnel_shift_right(tail, _ptx.load_shared_u32(at(more, uint32(offset + 4))), more_shift)
            if last_bits:
                x[to + last_word] = uint32(uint32(x[to + last_word] & uint32(kept)) | uint32(tail << uint32(last_bits)))
                if spills:
                    x[to + last_word + 1] = uint32(tail >> uint32(32 - last_bits))
            else:
                x[to + last_word] = tail

    return Stretch(words, start, load)
