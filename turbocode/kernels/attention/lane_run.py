"""What a lane of the fast attention kernel can do with its run of a stored block: the interface of all formats.

It makes float16 numbers of the run's values, two to a register: two values of one token for keys, one value of two
tokens for values. Norms are not applied here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import device, types

NORM_BITS = 16

uint32 = types.uint32


class Reading(NamedTuple):
    """values : of a lane's run; words : that hold it; places : uint32 numbers that say where a lane reads

    start(block, part, places, first), load(tile, places, first, offset, x) : as in stretch.py
    four(number) -> function(x, table, place) : values 4 number to 4 number + 3 of the run, two float16 a word
    mixed : words of y; mix(xa, xb, y) : the runs of two tokens
    two(number) -> function(y, table, place) : values 2 number and 2 number + 1, a word each, of the first and of the
        second token; or values that lie apart, see reading.py: distance_of_two and place_of_key
    """

    values: int
    words: int
    places: int
    start: Any
    load: Any
    four: Any
    mixed: int
    mix: Any
    two: Any


def in_twos(one_word: Callable[[int], Any]) -> Callable[[int], Any]:
    """`four` or `two`, of a function of a number whose function gives one word."""

    def joined(number: int) -> Any:
        first, second = one_word(2 * number), one_word(2 * number + 1)

        @device
        def words(x: Any, table: Any, place: Any) -> Any:
            return first(x, table, place), second(x, table, place)

        return words

    return joined


def of_one_stretch(run: Any) -> tuple[Any, Any]:
    """`start` and `load` of a run that is a stretch of bits."""
    begin, fetch = run.start, run.load

    @device
    def load(tile: Any, places: Any, first: Any, offset: Any, x: Any) -> None:
        fetch(tile, places, first, offset, x, 0)

    return begin, load


def side_by_side(words: int) -> Any:
    """mix(xa, xb, y): one run behind the other."""

    @device
    def mix(xa: Any, xb: Any, y: Any) -> None:
        for w in range(words):
            y[w], y[words + w] = xa[w], xb[w]

    return mix


def bytes_in_turn(words: int) -> Any:
    """mix(xa, xb, y): bytes of the two runs, alternately."""

    @device
    def mix(xa: Any, xb: Any, y: Any) -> None:
        for w in range(words):
            y[2 * w] = _ptx.select_bytes(xa[w], xb[w], uint32(0x5140))
            y[2 * w + 1] = _ptx.select_bytes(xa[w], xb[w], uint32(0x7362))

    return mix


def interleaver(width: int, source: int, rest: int, crosses: bool, target: int, mask: int) -> Any:
    """mix(xa, xb, y): fields of `width` bits of two tokens, alternately: even ones to y[target], odd ones behind.

    They begin at bit `rest` of word `source`.
    """

    @device
    def mix(xa: Any, xb: Any, y: Any) -> None:
        a, b = xa[source], xb[source]
        if rest:
            if crosses:
                a = _ptx.funnel_shift_right(a, xa[source + 1], uint32(rest))
                b = _ptx.funnel_shift_right(b, xb[source + 1], uint32(rest))
            else:
                a, b = uint32(a >> uint32(rest)), uint32(b >> uint32(rest))
        # Bits of one where the mask is set, of the other elsewhere: one instruction in this form.
        up, down = uint32(b << uint32(width)), uint32(a >> uint32(width))
        y[target] = uint32(uint32(uint32(a ^ up) & uint32(mask)) ^ a)
        y[target + 1] = uint32(uint32(uint32(down ^ b) & uint32(mask)) ^ down)

    return mix


def odd_fields(width: int, count: int) -> int:
    """The bits of every second field of `width` bits, from the second on, of 2 count."""
    return sum(((1 << width) - 1) << (2 * width * j + width) for j in range(count))
