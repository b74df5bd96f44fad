"""Runs of two-bit indices that become float16 values without memory: four centroids are eight bytes, two registers.

A permutation of bytes picks the low and the high byte of two centroids at once. Its selector has a nibble i for a low
byte and 4 + i for a high one, side by side, which a product with 0x11 makes of an index; a word of four such products
is two selectors. So shared memory, which the tables of other formats keep busy, is only asked for the stored bits.
"""

from __future__ import annotations

from typing import Any

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import device, types
from turbocode.kernels.attention.lane_run import NORM_BITS, Reading, bytes_in_turn, of_one_stretch
from turbocode.kernels.attention.stretch import PLACES, stretch

PER_BYTE = 4  # values
_FIELDS, _TWICE, _HIGH = 0x03030303, 0x11, 0x40404040

uint32 = types.uint32


def in_registers(form: BlockFormat, values: int, parts: int) -> Reading:
    """Where a function has a table and a place, it takes the two words of centroids."""
    run = stretch(NORM_BITS, values * form.bits, parts)
    begin, load = of_one_stretch(run)
    words = run.words

    def picker(word: int, number: int) -> Any:
        """Value `number` of the bytes of a word: bytes 0 and 1 in one word, 2 and 3 in the other."""

        @device
        def four(x: Any, low_bytes: Any, high_bytes: Any) -> Any:
            fields = uint32(uint32(x[word] >> uint32(2 * number)) & uint32(_FIELDS))
            selectors = uint32(uint32(fields * uint32(_TWICE)) + uint32(_HIGH))
            first = _ptx.select_bytes(low_bytes, high_bytes, selectors)
            return first, _ptx.select_bytes(low_bytes, high_bytes, uint32(selectors >> uint32(16)))

        return four

    def in_bytes(number: int) -> Any:
        return picker(number // PER_BYTE, number % PER_BYTE)

    return Reading(values, words, PLACES, begin, load, in_bytes, 2 * words, bytes_in_turn(words), in_bytes)
