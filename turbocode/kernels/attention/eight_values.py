"""Eight values of a stored block as float16 numbers, format by format: the unit in which prefill decodes a tile.

Eight values are whole bytes in every format, and 16 bytes of float16. The norm is applied here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx, _ptx_bits
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.attention.lane_run import NORM_BITS
from turbocode.kernels.attention.lookup import MAX_COPIES_LOG2, Lookup
from turbocode.kernels.attention.run_of_numbers import BYTE_BIAS
from turbocode.kernels.attention.shared_table import finder, plane_finder, spot_of
from turbocode.kernels.attention.stretch import PLACES, stretch

EIGHT = 8

uint32 = types.uint32


class EightValues(NamedTuple):
    """places : uint32 numbers that say where a thread reads

    start(block, part, places) : set places to values 8 part to 8 part + 7 of the block that begins `block` bytes behind
        a multiple of 4
    decode(tile, places, offset, table, copy, y) : set y uint32 (4,) to these values, float16 and times their norm, in
        the tile at a shared address, `offset` bytes (a multiple of 4) further; copy : of the table, in bytes
    is_halved : values come as four of the block's first half, then the four as far into its second half
    """

    places: int
    start: Any
    decode: Any
    is_halved: bool


def is_known(form: BlockFormat) -> bool:
    """Whether blocks of a format can be decoded so: eight values at a time, blocks at even bytes."""
    return form.values_per_block % EIGHT == 0 and form.bytes_per_block % 2 == 0


def lookup_of_pairs(form: BlockFormat, max_bytes: int) -> Lookup:
    """The look-up that `eight_values` takes, with as many copies of its table as fit max_bytes, at least one.

    A pair of indices, or the state of a trellis, a word.
    """
    if form.layout in (Layout.Q8_0, Layout.FLOAT16):
        return Lookup(0, 0)
    index_bits = form.states_log2 if form.is_trellis else 2 * form.bits
    copies = MAX_COPIES_LOG2
    while copies and Lookup(index_bits, copies).shared_bytes > max_bytes:
        copies -= 1
    return Lookup(index_bits, copies)


def _of_pairs(bits: int, lookup: Lookup) -> Callable[[int], Any]:
    find = finder(lookup)

    def pair(number: int) -> Any:
        i, k, n = spot_of(2 * number * bits, 2 * bits, lookup)

        @device
        def two(x: Any, words: Any, copy: Any) -> Any:
            return find(x[i], x[k], uint32(n), words, copy)

        return two

    return pair


def _of_states(bits: int, lookup: Lookup) -> Callable[[int], Any]:
    find = finder(lookup)

    def pair(number: int) -> Any:
        i, k, n = spot_of(2 * number * bits, lookup.index_bits, lookup)
        i2, k2, n2 = spot_of((2 * number + 1) * bits, lookup.index_bits, lookup)

        @device
        def two(x: Any, words: Any, copy: Any) -> Any:
            low = find(x[i], x[k], uint32(n), words, copy)
            high = find(x[i2], x[k2], uint32(n2), words, copy)
            return _ptx.select_bytes(low, high, uint32(0x5410))

        return two

    return pair


def _of_planes(lookup: Lookup) -> Callable[[int], Any]:
    find = plane_finder(lookup)

    def pair(number: int) -> Any:
        n, m = (4 * number - lookup.low) % 32, (2 * number - lookup.low - 4) % 32

        @device
        def two(x: Any, words: Any, copy: Any) -> Any:
            return find(x[0], uint32(n), x[1], uint32(m), words, copy)

        return two

    return pair


def _of_bytes(number: int) -> Any:
    """int8 numbers, made float16 by the bits of 1024 + (number + 128) and a subtraction, which is exact."""
    word, selector = number // 2, 0x4140 if number % 2 == 0 else 0x4342

    @device
    def two(x: Any, words: Any, copy: Any) -> Any:
        flipped = uint32(x[word] ^ uint32(0x80808080))
        widened = _ptx.select_bytes(flipped, uint32(0x64646464), uint32(selector))
        return _ptx.subtract_halves(widened, uint32(BYTE_BIAS))

    return two


def _of_halves(number: int) -> Any:
    @device
    def two(x: Any, words: Any, copy: Any) -> Any:
        return x[number]

    return two


def _pairs_of(form: BlockFormat, lookup: Lookup) -> Callable[[int], Any]:
    if form.is_trellis:
        return _of_states(form.bits, lookup)
    if form.layout is Layout.SPLIT_PLANES:
        return _of_planes(lookup)
    if form.layout is Layout.Q8_0:
        return _of_bytes
    if form.layout is Layout.FLOAT16:
        return _of_halves
    return _of_pairs(form.bits, lookup)


@functools.cache
def eight_values(form: BlockFormat, lookup: Lookup) -> EightValues:
    """The functions for blocks of one format, and a table of it in shared memory."""
    parts = form.values_per_block // EIGHT
    has_norm, is_planes = form.layout is not Layout.FLOAT16, form.layout is Layout.SPLIT_PLANES
    is_halved = form.layout is Layout.Q4_0
    beyond = form.states_log2 - form.bits if form.is_trellis else 0
    width = 2 if is_planes else 16 if form.layout is Layout.FLOAT16 else 8 if form.layout is Layout.Q8_0 else form.bits
    run = stretch(NORM_BITS if has_norm else 0, EIGHT * width, parts, beyond, form.is_tail_biting)
    high = stretch(NORM_BITS + 2 * form.values_per_block, EIGHT, parts)
    begin, load, begin_high, load_high = run.start, run.load, high.start, high.load
    n_words, norm_at = run.words + is_planes, (1 + is_planes) * PLACES
    pair = _pairs_of(form, lookup)
    first, second, third, fourth = (pair(number) for number in range(4))

    @device
    def start(block: Any, part: Any, places: Any) -> None:
        begin(block, part, places, 0)
        if is_planes:
            begin_high(block, part, places, PLACES)
        places[norm_at] = block

    @device
    def decode(tile: Any, places: Any, offset: Any, words: Any, copy: Any, y: Any) -> None:
        x = cuda.local.array(n_words, uint32)
        load(tile, places, 0, offset, x, 0)
        if is_planes:
            load_high(tile, places, PLACES, offset, x, 1)
        a, b = first(x, words, copy), second(x, words, copy)
        e, d = third(x, words, copy), fourth(x, words, copy)
        c = e
        if is_halved:  # a byte has a value of each half
            a, c = _ptx.select_bytes(a, b, uint32(0x5410)), _ptx.select_bytes(a, b, uint32(0x7632))
            b, d = _ptx.select_bytes(e, d, uint32(0x5410)), _ptx.select_bytes(e, d, uint32(0x7632))
        if has_norm:
            bits = _ptx.load_shared_u16(at(at(tile, places[norm_at]), uint32(offset)))
            norm = _ptx.select_bytes(bits, bits, uint32(0x1010))
            a, b = _ptx_bits.scale_halves(a, norm), _ptx_bits.scale_halves(b, norm)
            c, d = _ptx_bits.scale_halves(c, norm), _ptx_bits.scale_halves(d, norm)
        y[0], y[1], y[2], y[3] = a, b, c, d

    return EightValues(norm_at + 1, start, decode, is_halved)
