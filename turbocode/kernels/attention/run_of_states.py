"""Runs of a trellis's bit stream: a value is what the table has for the window of bits that is its state."""

from __future__ import annotations

from typing import Any

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import device, types
from turbocode.kernels.attention.lane_run import NORM_BITS, Reading, in_twos, of_one_stretch, side_by_side
from turbocode.kernels.attention.lookup import Lookup
from turbocode.kernels.attention.shared_table import finder, spot_of
from turbocode.kernels.attention.stretch import PLACES, stretch

uint32 = types.uint32


def of_states(form: BlockFormat, values: int, parts: int, lookup: Lookup) -> Reading:
    """A value a look-up, or two values in a row, for a window that is longer by one step."""
    bits, width = form.bits, lookup.index_bits
    run = stretch(NORM_BITS, values * bits, parts, form.states_log2 - bits, form.is_tail_biting)
    begin, load = of_one_stretch(run)
    find, words = finder(lookup), run.words

    def window(value: int, word: int = 0) -> Any:
        i, k, n = spot_of(value * bits, width, lookup)
        i, k = i + word, k + word

        @device
        def entry(x: Any, table: Any, place: Any) -> Any:
            return find(x[i], x[k], uint32(n), table, place)

        return entry

    def joined(low: Any, high: Any) -> Any:
        @device
        def word(x: Any, table: Any, place: Any) -> Any:
            return uint32(uint32(high(x, table, place) * uint32(65536)) + low(x, table, place))

        return word

    def one_pair(number: int) -> Any:
        return joined(window(2 * number), window(2 * number + 1))

    def one_both(number: int) -> Any:
        return joined(window(number), window(number, words))

    def pair(number: int) -> Any:
        return window(2 * number)

    def two(number: int) -> Any:
        first, second = window(2 * number), window(2 * number, words)

        @device
        def turned(y: Any, table: Any, place: Any) -> Any:
            a, b = first(y, table, place), second(y, table, place)
            return _ptx.select_bytes(a, b, uint32(0x5410)), _ptx.select_bytes(a, b, uint32(0x7632))

        return turned

    has_pairs = width > form.states_log2
    four = in_twos(pair if has_pairs else one_pair)
    of_two = two if has_pairs else in_twos(one_both)
    return Reading(values, words, PLACES, begin, load, four, 2 * words, side_by_side(words), of_two)
