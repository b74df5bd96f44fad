"""How the lanes of the fast attention kernel decode blocks, format by format.

`parts` lanes share a block; each takes a run of its values and makes float16 numbers of them, two to a register: two
values of one token for keys, one value of two tokens for values. Norms are not applied here.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import device, types
from turbocode.kernels.attention.in_turn import three_in_turn
from turbocode.kernels.attention.lookup import Lookup, finder, plane_finder, spot_of
from turbocode.kernels.attention.stretch import PLACES, stretch

NORM_BITS = 16
BYTE_BIAS = 0x64806480  # two float16 1152: what adding 1024 to an int8 with its sign bit flipped makes of 0

uint32 = types.uint32


class Reading(NamedTuple):
    """values : of a lane's run; words : that hold it; places : uint32 numbers that say where a lane reads

    start(block, part, places, first), load(tile, places, first, offset, x) : as in stretch.py
    pair(number) -> function(x, table, place) : values 2 number and 2 number + 1 of the run, two float16
    mixed : words of y; mix(xa, xb, y) : the runs of two tokens
    both(number) -> function(y, table, place) : value `number` of the first and of the second token
    """

    values: int
    words: int
    places: int
    start: Any
    load: Any
    pair: Any
    mixed: int
    mix: Any
    both: Any


def block_order(form: BlockFormat) -> NDArray[np.intp]:
    """The number in its block of the value that comes j-th in the stored bits."""
    j = np.arange(form.values_per_block)
    return j // 2 + j % 2 * (form.values_per_block // 2) if form.layout is Layout.Q4_0 else j


@functools.cache
def place_in_block(form: BlockFormat) -> Any:
    """The function that gives `block_order` of a uint32 number."""
    is_split, half = form.layout is Layout.Q4_0, form.values_per_block // 2

    @device
    def place(j: Any) -> Any:
        if is_split:
            return uint32(uint32(j >> uint32(1)) + uint32(uint32(j & uint32(1)) * uint32(half)))
        return uint32(j)

    return place


def has_norm(form: BlockFormat) -> bool:
    """Whether a block begins with a float16 factor."""
    return form.layout is not Layout.FLOAT16


@functools.cache
def reading(form: BlockFormat, parts: int, lookup: Lookup) -> Reading:
    """The functions for blocks of one format that `parts` lanes share."""
    values = form.values_per_block // parts
    if form.is_trellis:
        return _of_states(form, values, parts, lookup)
    if form.layout is Layout.SPLIT_PLANES:
        return _of_planes(form, values, parts, lookup)
    if form.layout is Layout.Q8_0:
        return _of_bytes(values, parts)
    if form.layout is Layout.FLOAT16:
        return _of_halves(values, parts)
    return _of_indices(form.bits, values, parts, lookup)


def _of_one_stretch(run: Any) -> tuple[Any, Any]:
    begin, fetch = run.start, run.load

    @device
    def load(tile: Any, places: Any, first: Any, offset: Any, x: Any) -> None:
        fetch(tile, places, first, offset, x, 0)

    return begin, load


def interleaver(width: int, source: int, rest: int, crosses: bool, target: int, mask: int) -> Any:
    """mix(xa, xb, y): fields of `width` bits of two tokens, alternately: even ones to y[target], odd ones behind.

    They begin at bit `rest` of word `source`.
    """

    @device
    def mix(xa: Any, xb: Any, y: Any) -> None:
        a, b = xa[source], xb[source]
        if rest:
            if crosses:
                a = _ptx.shift_right_wide(a, xa[source + 1], uint32(rest))
                b = _ptx.shift_right_wide(b, xb[source + 1], uint32(rest))
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


def _of_indices(bits: int, values: int, parts: int, lookup: Lookup) -> Reading:
    run = stretch(NORM_BITS, values * bits, parts)
    begin, load = _of_one_stretch(run)
    find = finder(lookup)
    per_word = max(n for n in range(2, 32 // bits + 1, 2) if values % n == 0)
    n_chunks = values // per_word
    mask = odd_fields(bits, per_word // 2)

    def pair(number: int) -> Any:
        i, k, n = spot_of(2 * number * bits, 2 * bits, lookup)

        @device
        def two(x: Any, table: Any, place: Any) -> Any:
            return find(x[i], x[k], uint32(n), table, place)

        return two

    def mix(chunk: int) -> Any:
        word, rest = divmod(chunk * per_word * bits, 32)
        return interleaver(bits, word, rest, rest + per_word * bits > 32, 2 * chunk, mask)

    def both(number: int) -> Any:
        chunk, within = divmod(number, per_word)
        word = 2 * chunk + within % 2
        _, _, n = spot_of(2 * bits * (within // 2), 2 * bits, lookup)

        @device
        def two(y: Any, table: Any, place: Any) -> Any:
            return find(y[word], y[word], uint32(n), table, place)

        return two

    mixed = three_in_turn([mix(chunk) for chunk in range(n_chunks)])
    return Reading(values, run.words, PLACES, begin, load, pair, 2 * n_chunks, mixed, both)


def _side_by_side(words: int) -> Any:
    @device
    def mix(xa: Any, xb: Any, y: Any) -> None:
        for w in range(words):
            y[w], y[words + w] = xa[w], xb[w]

    return mix


def _of_states(form: BlockFormat, values: int, parts: int, lookup: Lookup) -> Reading:
    beyond = form.states_log2 - form.bits
    run = stretch(NORM_BITS, values * form.bits, parts, beyond, form.is_tail_biting)
    begin, load = _of_one_stretch(run)
    find, words = finder(lookup), run.words

    def two_spots(first: int, first_word: int, second: int, second_word: int) -> Any:
        i, k, n = spot_of(first * form.bits, form.states_log2, lookup)
        i2, k2, n2 = spot_of(second * form.bits, form.states_log2, lookup)
        i, k, i2, k2 = i + first_word, k + first_word, i2 + second_word, k2 + second_word

        @device
        def two(x: Any, table: Any, place: Any) -> Any:
            low = find(x[i], x[k], uint32(n), table, place)
            high = find(x[i2], x[k2], uint32(n2), table, place)
            return uint32(uint32(high * uint32(65536)) + low)

        return two

    def pair(number: int) -> Any:
        return two_spots(2 * number, 0, 2 * number + 1, 0)

    def both(number: int) -> Any:
        return two_spots(number, 0, number, words)

    return Reading(values, words, PLACES, begin, load, pair, 2 * words, _side_by_side(words), both)


def _of_planes(form: BlockFormat, values: int, parts: int, lookup: Lookup) -> Reading:
    """Two low bits of every index, then the third: one word of each plane (a lane has at most eight values)."""
    low = stretch(NORM_BITS, 2 * values, parts)
    high = stretch(NORM_BITS + 2 * form.values_per_block, values, parts)
    begin_low, load_low, begin_high, load_high = low.start, low.load, high.start, high.load
    assert low.words == high.words == 1
    find = plane_finder(lookup)

    @device
    def start(block: Any, part: Any, places: Any, first: Any) -> None:
        begin_low(block, part, places, first)
        begin_high(block, part, places, first + PLACES)

    @device
    def load(tile: Any, places: Any, first: Any, offset: Any, x: Any) -> None:
        load_low(tile, places, first, offset, x, 0)
        load_high(tile, places, first + PLACES, offset, x, 1)

    def two_at(low_word: int, high_word: int, number: int) -> Any:
        low_shift, high_shift = (4 * number - lookup.low) % 32, (2 * number - lookup.low - 4) % 32

        @device
        def two(x: Any, table: Any, place: Any) -> Any:
            return find(x[low_word], uint32(low_shift), x[high_word], uint32(high_shift), table, place)

        return two

    def pair(number: int) -> Any:
        return two_at(0, 1, number)

    def both(number: int) -> Any:
        return two_at(number % 2, 2 + number % 2, number // 2)

    mix = three_in_turn(
        [
            interleaver(2, 0, 0, False, 0, odd_fields(2, values // 2)),
            interleaver(1, 1, 0, False, 2, odd_fields(1, values // 2)),
        ]
    )
    return Reading(values, 2, 2 * PLACES, start, load, pair, 4, mix, both)


def _of_bytes(values: int, parts: int) -> Reading:
    """int8 numbers, made float16 by the bits of 1024 + (number + 128) and a subtraction, which is exact."""
    run = stretch(NORM_BITS, 8 * values, parts)
    begin, load = _of_one_stretch(run)
    words = run.words

    def converter(word: int, selector: int) -> Any:
        @device
        def two(x: Any, table: Any, place: Any) -> Any:
            flipped = uint32(x[word] ^ uint32(0x80808080))
            return _ptx.subtract_halves(
                _ptx.select_bytes(flipped, uint32(0x64646464), uint32(selector)), uint32(BYTE_BIAS)
            )

        return two

    def pair(number: int) -> Any:
        return converter(number // 2, 0x4140 if number % 2 == 0 else 0x4342)

    @device
    def mix(xa: Any, xb: Any, y: Any) -> None:
        for w in range(words):
            y[2 * w] = _ptx.select_bytes(xa[w], xb[w], uint32(0x5140))
            y[2 * w + 1] = _ptx.select_bytes(xa[w], xb[w], uint32(0x7362))

    def both(number: int) -> Any:
        return converter(2 * (number // 4) + number % 4 // 2, 0x4140 if number % 2 == 0 else 0x4342)

    return Reading(values, words, PLACES, begin, load, pair, 2 * words, mix, both)


def _of_halves(values: int, parts: int) -> Reading:
    run = stretch(0, 16 * values, parts)
    begin, load = _of_one_stretch(run)
    words = run.words

    def pair(number: int) -> Any:
        @device
        def two(x: Any, table: Any, place: Any) -> Any:
            return x[number]

        return two

    def both(number: int) -> Any:
        word, selector = number // 2, 0x5410 if number % 2 == 0 else 0x7632

        @device
        def two(y: Any, table: Any, place: Any) -> Any:
            return _ptx.select_bytes(y[word], y[words + word], uint32(selector))

        return two

    return Reading(values, words, PLACES, begin, load, pair, 2 * words, _side_by_side(words), both)
