"""Tables of lookup.py in shared memory: how they get there, and how lanes find an entry."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx, _ptx_copies
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.attention.lookup import BYTE_ROW, Lookup, TableKind, is_joint

uint32, uint64 = types.uint32, types.uint64


class TableFiller(NamedTuple):
    """The words at a global address, copied into shared memory by whole warps, all copies of one at once.

    begin(source, warp, lane) : the lane's word of the warp's first 32, on its way while other things are done
    fill(table, word, source, warp, lane) : that and all others to the table
    """

    begin: Any
    fill: Any


@functools.cache
def table_filler(form: BlockFormat, lookup: Lookup, n_warps: int) -> TableFiller:
    """The functions for a block of n_warps."""
    words, copies = lookup.words if lookup.in_shared else 0, 1 << lookup.copies_log2
    at_once = 2 if lookup.is_by_byte else 32 // copies  # words that one turn of a warp writes
    most = min(words, 32)
    store = _row_writer(is_joint(form)) if lookup.is_by_byte else _copy_writer(copies)

    @device
    def load(source: Any, first: Any, lane: Any) -> Any:
        mine = uint32(min(uint32(first + lane), uint32(words - 1)))
        return _ptx.load_u32(source + uint64(uint32(mine * uint32(4))))

    @device
    def begin(source: Any, warp: Any, lane: Any) -> Any:
        word, first = uint32(0), uint32(warp * uint32(32))
        if first < uint32(words):
            word = load(source, first, lane)
        return word

    @device
    def fill(table: Any, word: Any, source: Any, warp: Any, lane: Any) -> None:
        first = uint32(warp * uint32(32))
        while first < uint32(words):
            number = uint32(0)
            while number < uint32(most):
                store(table, word, first, number, lane)
                number = uint32(number + uint32(at_once))
            first = uint32(first + uint32(32 * n_warps))
            if first < uint32(words):
                word = load(source, first, lane)

    return TableFiller(begin, fill)


@functools.cache
def image_copier(n_warps: int) -> Any:
    """copy(target, source, n_bytes, warp, lane): begin to copy whole words of 16 bytes to shared memory, all warps."""

    @device
    def copy(target: Any, source: Any, n_bytes: Any, warp: Any, lane: Any) -> None:
        byte = uint32(uint32(uint32(warp << uint32(5)) + lane) << uint32(4))
        while byte < uint32(n_bytes):
            _ptx_copies.copy_async_whole(at(target, byte), source + uint64(byte))
            byte = uint32(byte + uint32(512 * n_warps))

    return copy


@functools.cache
def lane_place(form: BlockFormat, lookup: Lookup) -> Any:
    """place(lane): the offset of a lane's copy in an entry; four times lane of a multirate side, with any copies."""
    if lookup.side_words:

        @device
        def four_times(lane: Any) -> Any:
            return uint32(lane << uint32(2))

        return four_times
    mask, shift = (1 << lookup.copies_log2) - 1, 3 if lookup.is_by_byte and is_joint(form) else 2

    @device
    def place(lane: Any) -> Any:
        return uint32(uint32(lane & uint32(mask)) << uint32(shift))

    return place


@functools.cache
def table_holder(lookup: Lookup) -> Any:
    """hold(table, place, words) -> (table, place), what look-ups of a head take.

    Given are its table in shared memory, the offset of the lane's copy, and the global address of its words.
    """
    kind = lookup.kind
    if kind is TableKind.REGISTERS:

        @device
        def hold(table: Any, place: Any, words: Any) -> Any:
            return _ptx.load_u32(words), _ptx.load_u32(words + uint64(4))

    elif kind is TableKind.CACHED:

        @device
        def hold(table: Any, place: Any, words: Any) -> Any:
            return words, place

    else:

        @device
        def hold(table: Any, place: Any, words: Any) -> Any:
            return table, place

    return hold


def _copy_writer(copies: int) -> Any:
    """store(table, word, first, number, lane): the words of lanes `number` and next ones, in all copies."""

    @device
    def store(table: Any, word: Any, first: Any, number: Any, lane: Any) -> None:
        chosen = uint32(number + uint32(lane // uint32(copies)))
        place = uint32(uint32(uint32(first + number) * uint32(4 * copies)) + uint32(lane * uint32(4)))
        _ptx.store_shared_u32(at(table, place), _ptx.shuffle_index(word, chosen))

    return store


def _row_writer(is_joint: bool) -> Any:
    """store(table, word, first, number, lane): the words of lanes `number` and `number` + 1, an entry by byte."""

    @device
    def store(table: Any, word: Any, first: Any, number: Any, lane: Any) -> None:
        row = at(table, uint32(uint32(first + number) * uint32(BYTE_ROW // 2)))
        even = _ptx.shuffle_index(word, number)
        odd = _ptx.shuffle_index(word, uint32(number + uint32(1)))
        if is_joint:
            _ptx.store_shared_u32x2(at(row, uint32(lane * uint32(8))), even, odd)
        else:
            _ptx.store_shared_u32(at(row, uint32(lane * uint32(4))), even)
            _ptx.store_shared_u32(at(row, uint32(uint32(lane * uint32(4)) + uint32(BYTE_ROW // 2))), odd)

    return store


@functools.cache
def byte_finder(number: int, half: int) -> Any:
    """find(word, table, place): the word of the entry of byte `number` that `half` says, with a copy for each lane."""
    selector, further = 0x5504 | number << 4, half * BYTE_ROW // 2

    @device
    def find(word: Any, table: Any, place: Any) -> Any:
        offset = _ptx.select_bytes(word, place, uint32(selector))
        return _ptx.load_shared_u32(at(table, uint32(offset + uint32(further))))

    return find


@functools.cache
def joint_finder(number: int) -> Any:
    """find(word, table, place): both words of the entry of byte `number`."""
    selector = 0x5504 | number << 4

    @device
    def find(word: Any, table: Any, place: Any) -> Any:
        return _ptx.load_shared_u32x2(at(table, _ptx.select_bytes(word, place, uint32(selector))))

    return find


@functools.cache
def finder(lookup: Lookup) -> Any:
    """find(low, high, n, table, place): the word whose index lies n bits above `lookup.low` in the 64 bits high:low.

    place : the lane's offset among the copies; n may be negative, seen modulo 32, if high is low
    """
    mask, kind = lookup.mask, lookup.kind
    if kind is TableKind.MAGNITUDES:
        return _magnitude_finder(lookup)
    constants = np.frombuffer(lookup.constants, np.uint32)

    @device
    def find(low: Any, high: Any, n: Any, table: Any, place: Any) -> Any:
        index = uint32(uint32(_ptx.funnel_shift_right(low, high, n)) & uint32(mask))
        return _ptx.load_shared_u32(at(table, uint32(index | place)))

    @device
    def find_cached(low: Any, high: Any, n: Any, table: Any, place: Any) -> Any:
        return _ptx.load_u32(table + uint64(uint32(uint32(_ptx.funnel_shift_right(low, high, n)) & uint32(mask))))

    @device
    def find_constant(low: Any, high: Any, n: Any, table: Any, place: Any) -> Any:
        offset = uint32(uint32(_ptx.funnel_shift_right(low, high, n)) & uint32(mask))
        return uint32(cuda.const.array_like(constants)[uint32(offset >> uint32(2))])

    return {TableKind.CACHED: find_cached, TableKind.CONSTANT: find_constant}.get(kind, find)


def _magnitude_finder(lookup: Lookup) -> Any:
    """`finder` of pairs by their magnitudes: index i of a symmetric codebook is the negative of the last less i."""
    bits, low_bit = (lookup.index_bits + 1) // 2, lookup.low
    low_sign, high_sign = 1 << low_bit + bits - 1, 1 << low_bit + 2 * bits - 1
    signs, magnitudes = low_sign | high_sign, (low_sign | high_sign) - (low_sign | high_sign) // (1 << bits - 1)
    low_up, high_up = 16 - bits - low_bit, 32 - 2 * bits - low_bit

    @device
    def find(low: Any, high: Any, n: Any, table: Any, place: Any) -> Any:
        pair = uint32(_ptx.funnel_shift_right(low, high, n))
        above = uint32(pair & uint32(signs))  # set for positive values
        turned = uint32(pair ^ uint32(above - uint32(above >> uint32(bits - 1))))
        index = uint32(uint32(turned & uint32(magnitudes)) ^ uint32(magnitudes))
        below = uint32(above ^ uint32(signs))
        minus = uint32(uint32(below & uint32(low_sign)) << uint32(low_up))
        minus = uint32(minus | uint32(uint32(below & uint32(high_sign)) << uint32(high_up)))
        return uint32(_ptx.load_shared_u32(at(table, uint32(index | place))) ^ minus)

    return find


@functools.cache
def plane_finder(lookup: Lookup) -> Any:
    """find(low, n, high, m, table, place): the entry of four bits of one word and two of another, as `finder`."""
    low_mask, high_mask = 15 << lookup.low, 3 << lookup.low + 4

    @device
    def find(low: Any, n: Any, high: Any, m: Any, table: Any, place: Any) -> Any:
        index = uint32(uint32(_ptx.funnel_shift_right(low, low, n)) & uint32(low_mask))
        index = uint32(index | uint32(uint32(_ptx.funnel_shift_right(high, high, m)) & uint32(high_mask)))
        return _ptx.load_shared_u32(at(table, uint32(index | place)))

    return find


class Spot(NamedTuple):
    """Where bits lie in an array of words, for `find`: words low and high, shift n."""

    low: int
    high: int
    n: int


def spot_of(bit: int, width: int, lookup: Lookup) -> Spot:
    """The spot of `width` bits from `bit` on."""
    word, rest = divmod(bit, 32)
    return Spot(word, word + (rest + width > 32), (rest - lookup.low) % 32)
