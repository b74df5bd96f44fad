"""How the blocks of a launch share the tokens of all sequences and heads: evenly, whatever their lengths.

A unit of work is `chunk` tokens of one head of one sequence. Units are numbered through, tokens first, then heads, then
sequences, and each block handles an equal run of them ("stream-K", arXiv 2301.03598), so that at most its first and its
last stretch are parts of a head's tokens. Beginning a stretch costs a block about as much as two units: where that tips
the scales, two places of the numbering are left empty before each head.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from turbocode.kernels import _ptx, _ptx_bits
from turbocode.kernels._cuda import device, types

WARP = 32
START_COST = 2  # units

int32, uint32, uint64 = types.int32, types.uint32, types.uint64


class WorkSplit(NamedTuple):
    """All functions are called by whole warps.

    seen : what decides on the tokens that rows see: (last_token, n_rows, first_token, n_tokens, window), uint64
    survey(n_seqs, heads, lane, seen) -> (units of all, what `locate` goes on with)
    locate(place, empty, survey, n_seqs, heads, lane, seen) -> (seq, places before it, begin, end, places of each of its
        heads): tokens from begin, a multiple of the tile, to end are seen by some row
    """

    survey: Any
    locate: Any


@device
def shares(n_units: Any, n_heads: Any, n_blocks: Any) -> Any:
    """(empty places before a head, least places of a block, blocks that have one more, blocks, places)."""
    even = uint32(uint32(uint32(n_units) + uint32(n_blocks - uint32(1))) // uint32(n_blocks))
    if uint32(n_blocks % uint32(n_heads)) != uint32(0):  # some block has the end of a head and the beginning of another
        even = uint32(even + uint32(uint32(uint32(n_heads) // n_blocks) * uint32(START_COST)) + uint32(START_COST))
    spread = uint32(uint32(n_units) + uint32(uint32(n_heads) * uint32(START_COST)))
    empty, n_places = uint32(0), uint32(n_units)
    if uint32(uint32(spread + uint32(n_blocks - uint32(1))) // uint32(n_blocks)) < even:
        empty, n_places = uint32(START_COST), spread
    each = uint32(n_places // n_blocks)
    return empty, each, uint32(n_places - uint32(each * n_blocks)), n_blocks, n_places


@device
def first_place(block: Any, split: Any) -> Any:
    """The first place of a block."""
    _, each, more, n_blocks, _ = split
    return uint32(uint32(block * each) + uint32(uint32(block * more) // n_blocks))


@device
def block_of(place: Any, split: Any) -> Any:
    """The block that handles a place."""
    _, _, _, n_blocks, n_places = split
    share = _ptx_bits.to_float(n_blocks) * _ptx.reciprocal(_ptx_bits.to_float(n_places))
    block = uint32(_ptx_bits.to_float(place) * share)  # nearly
    block = uint32(min(block, uint32(n_blocks - uint32(1))))
    while first_place(block, split) > place:
        block = uint32(block - uint32(1))
    while first_place(uint32(block + uint32(1)), split) <= place:
        block = uint32(block + uint32(1))
    return block


@device
def agreed(value: Any) -> Any:
    """A uint32 that all lanes of a warp have, so that the compiler sees it and keeps it once for all of them."""
    return uint32(_ptx.shuffle_index(uint32(value), uint32(0)))


@device
def seen_by(row: Any, seq: Any, seen: Any) -> Any:
    """(last, oldest) int32: the tokens of the cache that a row sees; last is -1 and less if there are none."""
    address = seen[0] + uint64(uint32(uint32(uint32(seq) * uint32(seen[1])) + uint32(row))) * uint64(4)
    last = int32(int32(_ptx.load_u32(address)) - int32(seen[2]))
    oldest = int32(0)
    if seen[4] != uint64(0):
        oldest = max(int32(last + int32(int32(1) - int32(seen[4]))), int32(0))
    return min(last, int32(int32(seen[3]) - int32(1))), oldest


@functools.cache
def work_split(chunk: int, tile: int) -> WorkSplit:
    """The functions for units of `chunk` tokens."""

    @device
    def of_seq(seq: Any, n_seqs: Any, seen: Any) -> Any:
        end, begin = int32(0), int32(seen[3])
        near = uint32(min(uint32(seq), uint32(n_seqs - uint64(1))))
        row = uint32(0)
        while row < uint32(seen[1]):
            last, oldest = seen_by(row, near, seen)
            end = max(end, int32(last + int32(1)))
            if last >= int32(0):
                begin = min(begin, oldest)
            row = uint32(row + uint32(1))
        begin = int32(begin - int32(begin % int32(tile)))
        if begin >= end:
            begin = end = int32(0)
        units = max(int32(1), int32(int32(int32(end - begin) + int32(chunk - 1)) // int32(chunk)))
        if seq >= n_seqs:
            units = int32(0)
        return begin, end, uint32(units)

    @device
    def added_up(value: Any, lane: Any) -> Any:
        for number in range(5):
            distance = uint32(1 << number)
            before = _ptx.shuffle_index(value, uint32(lane - distance))
            if lane >= distance:
                value = uint32(value + before)
        return value

    @device
    def survey(n_seqs: Any, heads: Any, lane: Any, seen: Any) -> Any:
        _, _, units = of_seq(lane, n_seqs, seen)
        sums = added_up(uint32(units * uint32(heads)), lane)
        found = uint32(_ptx.shuffle_index(sums, uint32(31)))
        base = uint32(WARP)
        while base < n_seqs:
            _, _, more = of_seq(uint32(base + lane), n_seqs, seen)
            found = uint32(found + _ptx.shuffle_index(added_up(uint32(more * uint32(heads)), lane), uint32(31)))
            base = uint32(base + uint32(WARP))
        return agreed(found), sums

    @device
    def locate(place: Any, empty: Any, surveyed: Any, n_seqs: Any, heads: Any, lane: Any, seen: Any) -> Any:
        _, sums = surveyed  # of the first 32 sequences, mostly all
        before_heads = uint32(uint32(empty * uint32(heads)) * uint32(lane + uint32(1)))
        sums = uint32(sums + before_heads)
        after = uint32(_ptx.shuffle_index(sums, uint32(31)))
        base = uint32(0)
        while place >= after:
            base = uint32(base + uint32(WARP))
            _, _, units = of_seq(uint32(base + lane), n_seqs, seen)
            sums = uint32(uint32(after + before_heads) + added_up(uint32(units * uint32(heads)), lane))
            after = uint32(_ptx.shuffle_index(sums, uint32(31)))
        number = uint32(_ptx.count_bits(_ptx.lanes_where(uint32(1 if sums <= place else 0))))
        seq = agreed(uint32(base + number))
        begin, end, units = of_seq(seq, n_seqs, seen)  # again: registers are rarer than this
        begin, end, places = int32(agreed(uint32(begin))), int32(agreed(uint32(end))), agreed(uint32(units + empty))
        before = agreed(uint32(_ptx.shuffle_index(sums, number) - uint32(places * uint32(heads))))
        return seq, before, begin, end, places

    return WorkSplit(survey, locate)
