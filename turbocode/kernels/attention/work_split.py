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
    """All functions are called by whole warps; seen : what decides on the tokens that a sequence's rows see

    range_of(seq, seen...) -> (begin, end, units) int32: tokens that any row sees, begin a multiple of the tile, and the
        units of each head, at least one
    total(n_seqs, heads, lane, seen...) -> units of all sequences
    locate(unit, n_seqs, heads, lane, seen...) -> (seq, units of the sequence before it, begin, end, units)
    """

    range_of: Any
    total: Any
    locate: Any


@device
def first_unit(block: Any, n_units: Any, n_blocks: Any) -> Any:
    """The first unit of a block."""
    return uint32(uint64(block) * uint64(n_units) // uint64(n_blocks))


@device
def block_of(unit: Any, n_units: Any, n_blocks: Any) -> Any:
    """The block that handles a unit."""
    return uint32((uint64(uint32(unit + uint32(1))) * uint64(n_blocks) - uint64(1)) // uint64(n_units))


@functools.cache
def work_split(chunk: int, tile: int) -> WorkSplit:
    """The functions for units of `chunk` tokens."""

    @device
    def range_of(seq: Any, last_token: Any, n_rows: Any, first_token: Any, n_tokens: Any, window: Any) -> Any:
        end, begin = int32(0), int32(n_tokens)
        row = uint32(0)
        while row < uint32(n_rows):
            address = last_token + uint64(uint32(uint32(seq * uint32(n_rows)) + row)) * uint64(4)
            stop = int32(int32(_ptx.load_u32(address)) + int32(1) - int32(first_token))
            end = max(end, stop)
            oldest = int32(0)
            if window != uint64(0):
                oldest = max(int32(stop - int32(window)), int32(0))
            if stop > int32(0):
                begin = min(begin, oldest)
            row = uint32(row + uint32(1))
        end = min(end, int32(n_tokens))
        begin = int32(begin - int32(begin % int32(tile)))
        if begin >= end:
            begin = end = int32(0)
        units = max(int32(1), int32(int32(int32(end - begin) + int32(chunk - 1)) // int32(chunk)))
        return begin, end, units

    @device
    def of_lane(
        seq: Any, n_seqs: Any, last_token: Any, n_rows: Any, first_token: Any, n_tokens: Any, window: Any
    ) -> Any:
        begin, end, units = range_of(
            uint32(min(uint32(seq), uint32(n_seqs - uint64(1)))), last_token, n_rows, first_token, n_tokens, window
        )
        if seq >= n_seqs:
            units = int32(0)
        return begin, end, units

    @device
    def added_up(value: Any, lane: Any) -> Any:
        for number in range(5):
            distance = uint32(1 << number)
            before = _ptx.shuffle_index(value, uint32(lane - distance))
            if lane >= distance:
                value = uint32(value + before)
        return value

    @device
    def total(
        n_seqs: Any,
        heads: Any,
        lane: Any,
        last_token: Any,
        n_rows: Any,
        first_token: Any,
        n_tokens: Any,
        window: Any,
    ) -> Any:
        found, base = uint32(0), uint32(0)
        while base < n_seqs:
            _, _, units = of_lane(uint32(base + lane), n_seqs, last_token, n_rows, first_token, n_tokens, window)
            sums = added_up(uint32(units), lane)
            found = uint32(found + uint32(_ptx.shuffle_index(sums, uint32(31)) * uint32(heads)))
            base = uint32(base + uint32(WARP))
        return found

    @device
    def locate(
        unit: Any,
        n_seqs: Any,
        heads: Any,
        lane: Any,
        last_token: Any,
        n_rows: Any,
        first_token: Any,
        n_tokens: Any,
        window: Any,
    ) -> Any:
        done, base = uint32(0), uint32(0)
        while True:
            begin, end, units = of_lane(uint32(base + lane), n_seqs, last_token, n_rows, first_token, n_tokens, window)
            mine = uint32(uint32(units) * uint32(heads))
            sums = uint32(done + added_up(mine, lane))
            after = uint32(_ptx.shuffle_index(sums, uint32(31)))
            if unit < after:
                break
            done, base = after, uint32(base + uint32(WARP))
        before = _ptx.count_bits(_ptx.lanes_where(uint32(1 if sums <= unit else 0)))
        start = _ptx.shuffle_index(uint32(sums - mine), uint32(before))
        return (
            uint32(base + uint32(before)),
            uint32(start),
            int32(_ptx.shuffle_index(uint32(begin), uint32(before))),
            int32(_ptx.shuffle_index(uint32(end), uint32(before))),
            uint32(_ptx.shuffle_index(uint32(units), uint32(before))),
        )

    return WorkSplit(range_of, total, locate)
