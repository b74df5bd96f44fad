"""How the blocks of a launch share the tokens of all sequences and heads: evenly, whatever their lengths.

A unit of work is `chunk` tokens of one head of one sequence. Units are numbered through, tokens first, then heads, then
sequences, and block b of B handles units b N / B up to (b + 1) N / B of N ("stream-K", arXiv 2301.03598). So at most
the first and the last stretch of a block are parts of a head's tokens.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import device, types

WARP = 32

int32, uint32, uint64 = types.int32, types.uint32, types.uint64


class WorkSplit(NamedTuple):
    """All functions are called by whole warps.

    seen : what decides on the tokens that rows see: (last_token, n_rows, first_token, n_tokens, window), uint64
    survey(n_seqs, heads, lane, seen) -> (units of all, what `locate` goes on with)
    locate(unit, survey, n_seqs, heads, lane, seen) -> (seq, units before it, begin, end, units of each of its heads):
        tokens from begin, a multiple of the tile, to end are seen by some row
    """

    survey: Any
    locate: Any


@device
def first_unit(block: Any, n_units: Any, n_blocks: Any) -> Any:
    """The first unit of a block."""
    return uint32(uint64(block) * uint64(n_units) // uint64(n_blocks))


@device
def block_of(unit: Any, n_units: Any, n_blocks: Any) -> Any:
    """The block that handles a unit."""
    return uint32((uint64(uint32(unit + uint32(1))) * uint64(n_blocks) - uint64(1)) // uint64(n_units))


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
        begin, end, units = of_seq(lane, n_seqs, seen)
        sums = added_up(uint32(units * uint32(heads)), lane)
        found = uint32(_ptx.shuffle_index(sums, uint32(31)))
        base = uint32(WARP)
        while base < n_seqs:
            _, _, more = of_seq(uint32(base + lane), n_seqs, seen)
            found = uint32(found + _ptx.shuffle_index(added_up(uint32(more * uint32(heads)), lane), uint32(31)))
            base = uint32(base + uint32(WARP))
        return agreed(found), begin, end, units, sums

    @device
    def locate(unit: Any, surveyed: Any, n_seqs: Any, heads: Any, lane: Any, seen: Any) -> Any:
        _, begin, end, units, sums = surveyed  # of the first 32 sequences, mostly all
        after = uint32(_ptx.shuffle_index(sums, uint32(31)))
        base = uint32(0)
        while unit >= after:
            base = uint32(base + uint32(WARP))
            begin, end, units = of_seq(uint32(base + lane), n_seqs, seen)
            sums = uint32(after + added_up(uint32(units * uint32(heads)), lane))
            after = uint32(_ptx.shuffle_index(sums, uint32(31)))
        number = uint32(_ptx.count_bits(_ptx.lanes_where(uint32(1 if sums <= unit else 0))))
        before = _ptx.shuffle_index(uint32(sums - uint32(units * uint32(heads))), number)
        return (
            agreed(uint32(base + number)),
            agreed(before),
            int32(agreed(_ptx.shuffle_index(uint32(begin), number))),
            int32(agreed(_ptx.shuffle_index(uint32(end), number))),
            agreed(_ptx.shuffle_index(units, number)),
        )

    return WorkSplit(survey, locate)
