"""Runs of indices of a scalar codebook: side by side in the bits, or in two planes."""

from __future__ import annotations

from typing import Any

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import device, types
from turbocode.kernels.attention.in_turn import three_in_turn
from turbocode.kernels.attention.lane_run import (
    NORM_BITS,
    Reading,
    in_twos,
    interleaver,
    odd_fields,
    of_one_stretch,
)
from turbocode.kernels.attention.lookup import Lookup, is_joint
from turbocode.kernels.attention.shared_table import byte_finder, finder, joint_finder, plane_finder, spot_of
from turbocode.kernels.attention.stretch import PLACES, stretch

uint32 = types.uint32


def _mixer(bits: int, values: int) -> tuple[int, Any, int]:
    """(values of a chunk, mix, chunks): a chunk is two words of fields of both tokens, alternately."""
    per_chunk = max(n for n in range(2, 32 // bits + 1, 2) if values % n == 0)
    mask = odd_fields(bits, per_chunk // 2)

    def mix(chunk: int) -> Any:
        word, rest = divmod(chunk * per_chunk * bits, 32)
        return interleaver(bits, word, rest, rest + per_chunk * bits > 32, 2 * chunk, mask)

    n_chunks = values // per_chunk
    return per_chunk, three_in_turn([mix(chunk) for chunk in range(n_chunks)]), n_chunks


def of_indices(form: BlockFormat, values: int, parts: int, lookup: Lookup) -> Reading:
    """A pair of values a look-up."""
    bits = form.bits
    run = stretch(NORM_BITS, values * bits, parts)
    begin, load = of_one_stretch(run)
    find = finder(lookup)
    per_chunk, mix, n_chunks = _mixer(bits, values)

    def pair(number: int) -> Any:
        i, k, n = spot_of(2 * number * bits, 2 * bits, lookup)

        @device
        def two(x: Any, table: Any, place: Any) -> Any:
            return find(x[i], x[k], uint32(n), table, place)

        return two

    def both(number: int) -> Any:
        chunk, within = divmod(number, per_chunk)
        word = 2 * chunk + within % 2
        _, _, n = spot_of(2 * bits * (within // 2), 2 * bits, lookup)

        @device
        def two(y: Any, table: Any, place: Any) -> Any:
            return find(y[word], y[word], uint32(n), table, place)

        return two

    return Reading(values, run.words, PLACES, begin, load, in_twos(pair), 2 * n_chunks, mix, in_twos(both))


def of_bytes(form: BlockFormat, values: int, parts: int) -> Reading:
    """A byte a look-up, of the words as they are or, for three bits, shifted by four too: see lookup.py."""
    bits = form.bits
    run = stretch(NORM_BITS, values * bits, parts)
    begin, fetch = of_one_stretch(run)
    words, copies = run.words, 2 if bits == 3 else 1
    per_chunk, interleave, n_chunks = _mixer(bits, values)
    mixed = 2 * n_chunks

    @device
    def load(tile: Any, places: Any, first: Any, offset: Any, x: Any) -> None:
        fetch(tile, places, first, offset, x)
        if copies == 2:
            for w in range(words):
                x[words + w] = _ptx.funnel_shift_right(x[w], x[min(w + 1, words - 1)], uint32(4))

    @device
    def mix(xa: Any, xb: Any, y: Any) -> None:
        interleave(xa, xb, y)
        if copies == 2:
            for w in range(mixed):
                y[mixed + w] = uint32(y[w] >> uint32(4))

    def at_bit(bit: int, n_words: int, word: int = 0) -> Any:
        """The pair that begins at a bit of the words from `word` on: at its byte's first bit, or third."""
        if bits == 3 and bit % 8 not in (0, 2):
            bit, word = bit - 4, word + n_words
        number, find = word + bit // 32, byte_finder(bit % 32 // 8, bit % 8 // 2)

        @device
        def pair(x: Any, table: Any, place: Any) -> Any:
            return find(x[number], table, place)

        return pair

    def joint(byte: int, word: int = 0) -> Any:
        number, find = word + byte // 4, joint_finder(byte % 4)

        @device
        def pairs(x: Any, table: Any, place: Any) -> Any:
            return find(x[number], table, place)

        return pairs

    def pair(number: int) -> Any:
        return at_bit(2 * number * bits, words)

    def both(number: int) -> Any:
        chunk, within = divmod(number, per_chunk)
        return at_bit(2 * bits * (within // 2), mixed, 2 * chunk + within % 2)

    def crossed(number: int) -> Any:
        chunk, within = divmod(2 * number, per_chunk)
        return joint(within // 4, 2 * chunk + within // 2 % 2)

    four, two = (joint, crossed) if is_joint(form) else (in_twos(pair), in_twos(both))
    return Reading(values, copies * words, PLACES, begin, load, four, copies * mixed, mix, two)


def of_planes(form: BlockFormat, values: int, parts: int, lookup: Lookup) -> Reading:
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
    return Reading(values, 2, 2 * PLACES, start, load, in_twos(pair), 4, mix, in_twos(both))
