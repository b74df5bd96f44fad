"""Runs of numbers that need no table: int8 and float16."""

from __future__ import annotations

from typing import Any

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import device, types
from turbocode.kernels.attention.lane_run import (
    NORM_BITS,
    Reading,
    bytes_in_turn,
    in_twos,
    of_one_stretch,
    side_by_side,
)
from turbocode.kernels.attention.stretch import PLACES, stretch

BYTE_BIAS = 0x64806480  # two float16 1152: what adding 1024 to an int8 with its sign bit flipped makes of 0

uint32 = types.uint32


def of_int8(values: int, parts: int) -> Reading:
    """int8 numbers, made float16 by the bits of 1024 + (number + 128) and a subtraction, which is exact."""
    run = stretch(NORM_BITS, 8 * values, parts)
    begin, load = of_one_stretch(run)
    words = run.words

    def converter(word: int, selector: int) -> Any:
        @device
        def two(x: Any, table: Any, place: Any) -> Any:
            flipped = uint32(x[word] ^ uint32(0x80808080))
            widened = _ptx.select_bytes(flipped, uint32(0x64646464), uint32(selector))
            return _ptx.subtract_halves(widened, uint32(BYTE_BIAS))

        return two

    def pair(number: int) -> Any:
        return converter(number // 2, 0x4140 if number % 2 == 0 else 0x4342)

    def both(number: int) -> Any:
        return converter(2 * (number // 4) + number % 4 // 2, 0x4140 if number % 2 == 0 else 0x4342)

    return Reading(values, words, PLACES, begin, load, in_twos(pair), 2 * words, bytes_in_turn(words), in_twos(both))


def of_float16(values: int, parts: int) -> Reading:
    """float16 numbers as they are."""
    run = stretch(0, 16 * values, parts)
    begin, load = of_one_stretch(run)
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

    return Reading(values, words, PLACES, begin, load, in_twos(pair), 2 * words, side_by_side(words), in_twos(both))
