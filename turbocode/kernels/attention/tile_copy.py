"""Rows of a cache on their way into shared memory, ahead of the warp that reads them.

Each warp has rings of stages of its own and waits for nobody else. Rows of a tile lie side by side in the cache, or
each half of them in a page. From compute capability 9.0 on, one lane starts the copy of a whole tile; elsewhere, and at
the end of a sequence, lanes copy 16 bytes each. Bytes beyond the end are not read: they arrive as zeros.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from turbocode.kernels import _ptx, _ptx_copies
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.attention.key_scores import HALF_TILE
from turbocode.kernels.attention.pages import place_of_token
from turbocode.kernels.attention.word_copy import WORD, copy_end, copy_word

WARP = 32
SLACK = 2 * WORD  # behind a stage: rows may begin up to 15 bytes late, and the last word read ends beyond them
BARRIER_BYTES = 8
FETCHES = 2  # of a turn: keys and values

int32, uint32, uint64 = types.int32, types.uint32, types.uint64


def stage_bytes(row_bytes: int, tile: int) -> int:
    """Shared memory of one tile of rows."""
    return -(-(tile * row_bytes) // WORD) * WORD + SLACK


class Arrivals(NamedTuple):
    """How a warp waits for its copies. Turns are counted modulo the stages; the barrier of each is in shared memory.

    begin(barriers, lane) : once
    close(barrier, lane, n_missing) : a turn has no more copies; it had n_missing fetches less than two
    wait(barrier, phases, turn) -> phases : until all copies of a turn, the oldest, have arrived
    drain(barriers, phases, turn) -> phases : of all turns but this, which has been waited for
    leave() : before the block meets, if a thread has written to stages that copies come to afterwards
    phases : bit i is the parity of the phase of turn i's barrier that is waited for next; 0 at first
    """

    begin: Any
    close: Any
    wait: Any
    drain: Any
    leave: Any


@functools.cache
def arrivals(n_stages: int, is_bulk: bool) -> Arrivals:
    """The functions for copies of lanes or of whole tiles."""
    wait_for_oldest, wait_for_all = _ptx_copies.wait_for_copies(n_stages - 1), _ptx_copies.wait_for_copies(0)

    @device
    def begin(barriers: Any, lane: Any) -> None:
        if is_bulk:
            if lane < uint32(n_stages):
                _ptx_copies.begin_barrier(at(barriers, uint32(lane * uint32(BARRIER_BYTES))), uint32(FETCHES))
                _ptx_copies.fence_barriers()
            _ptx.sync_warp()

    @device
    def close(barrier: Any, lane: Any, n_missing: int) -> None:
        if is_bulk:
            if n_missing and lane == uint32(0):
                for _ in range(n_missing):
                    _ptx_copies.arrive(barrier)
        else:
            _ptx_copies.close_copies()

    @device
    def wait(barrier: Any, phases: Any, turn: Any) -> Any:
        if is_bulk:
            _ptx_copies.pass_phase(barrier, uint32(uint32(phases >> turn) & uint32(1)))
            return uint32(phases ^ uint32(uint32(1) << turn))
        wait_for_oldest()
        return phases

    @device
    def drain(barriers: Any, phases: Any, turn: Any) -> Any:
        if is_bulk:
            for _ in range(n_stages - 1):
                turn = uint32(turn + uint32(1)) if turn != uint32(n_stages - 1) else uint32(0)
                phases = wait(at(barriers, uint32(turn * uint32(BARRIER_BYTES))), phases, turn)
        else:
            wait_for_all()
        return phases

    @device
    def leave() -> None:
        if is_bulk:
            _ptx_copies.fence_bulk_copies()

    return Arrivals(begin, close, wait, drain, leave)


@functools.cache
def _copy_finisher(is_bulk: bool) -> Any:
    """finish(stage, first, second, half_bytes, total, n_bytes, barrier, lane): after a warp's whole words, the word in
    which the rows end, within the stage's `total` bytes; then the copies are on their way."""

    @device
    def finish(
        stage: Any, first: Any, second: Any, half_bytes: Any, total: Any, n_bytes: Any, barrier: Any, lane: Any
    ) -> None:
        rest = uint32(uint32(n_bytes) & uint32(WORD - 1))
        end = uint32(uint32(n_bytes) - rest)
        if rest != uint32(0) and end < total:
            base = second if end >= half_bytes else first
            copy_end(at(stage, end), base + uint64(end), rest, lane)
        if is_bulk:
            _ptx_copies.arrive_after_copies(barrier)
            _ptx.sync_warp()
            if lane == uint32(0):
                _ptx_copies.arrive(barrier)

    return finish


@functools.cache
def any_tile_copier(tile: int, is_late: bool, is_bulk: bool) -> Any:
    """`tile_copier` for rows whose size is a number at run time."""
    finish = _copy_finisher(is_bulk)

    @device
    def copy(stage: Any, first: Any, second: Any, n_bytes: Any, barrier: Any, lane: Any, row_bytes: Any) -> None:
        half_bytes = uint32(row_bytes * uint32(HALF_TILE))
        n_words = uint32(row_bytes * uint32(tile // WORD))
        if is_late:
            n_words = uint32(n_words + uint32(1))
        total = uint32(n_words * uint32(WORD))
        if is_bulk and n_bytes >= int32(total):
            if lane == uint32(0):
                _ptx_copies.arrive_expecting(barrier, total)
                if first == second:
                    _ptx_copies.copy_bulk(stage, first, total, barrier)
                else:
                    _ptx_copies.copy_bulk(stage, first, half_bytes, barrier)
                    source = second + uint64(half_bytes)
                    _ptx_copies.copy_bulk(at(stage, half_bytes), source, uint32(total - half_bytes), barrier)
        else:
            word = uint32(lane)
            while word < n_words:
                byte = uint32(word * uint32(WORD))
                base = second if byte >= half_bytes else first
                copy_word(at(stage, byte), base + uint64(byte), int32(n_bytes - int32(byte)))
                word = uint32(word + uint32(WARP))
            finish(stage, first, second, half_bytes, total, n_bytes, barrier, lane)

    return copy


@functools.cache
def tile_copier(row_bytes: int, tile: int, is_late: bool, is_bulk: bool) -> Any:
    """copy(stage, first, second, n_bytes, barrier, lane, row_bytes): the halves of a tile at two global addresses.

    is_late : rows may begin up to 14 bytes behind the address
    first, second : multiples of 16; the second is where the second half would begin if it followed the first, so that
    both are equal for rows that lie side by side; n_bytes : int32, up to the end of the rows that are there
    """
    words = -(-(tile * row_bytes + (WORD - 2 if is_late else 0)) // WORD)
    half_bytes = HALF_TILE * row_bytes
    turns = -(-words // WARP)
    finish = _copy_finisher(is_bulk)

    @device
    def copy_all(stage: Any, first: Any, second: Any, barrier: Any, lane: Any) -> None:
        if is_bulk:
            if lane == uint32(0):
                _ptx_copies.arrive_expecting(barrier, uint32(words * WORD))
                if first == second:
                    _ptx_copies.copy_bulk(stage, first, uint32(words * WORD), barrier)
                else:
                    _ptx_copies.copy_bulk(stage, first, uint32(half_bytes), barrier)
                    behind = at(stage, uint32(half_bytes))
                    rest = uint32(words * WORD - half_bytes)
                    _ptx_copies.copy_bulk(behind, second + uint64(half_bytes), rest, barrier)
        else:
            source = first + uint64(lane * uint32(WORD))
            target = at(stage, uint32(lane * uint32(WORD)))
            for turn in range(turns):
                if (turn + 1) * WARP <= words or uint32(lane + uint32(turn * WARP)) < uint32(words):
                    to, of = at(target, uint32(turn * WARP * WORD)), source + uint64(turn * WARP * WORD)
                    _ptx_copies.copy_async_whole(to, of)

    @device
    def copy(stage: Any, first: Any, second: Any, n_bytes: Any, barrier: Any, lane: Any, _: Any) -> None:
        if n_bytes >= int32(words * WORD) and (is_bulk or first == second):
            copy_all(stage, first, second, barrier, lane)
        else:
            for turn in range(turns):
                word = uint32(lane + uint32(turn * WARP))
                if word < uint32(words):
                    byte = uint32(word * uint32(WORD))
                    base = second if byte >= uint32(half_bytes) else first
                    copy_word(at(stage, byte), base + uint64(byte), int32(n_bytes - int32(byte)))
            finish(stage, first, second, uint32(half_bytes), uint32(words * WORD), n_bytes, barrier, lane)

    return copy


@functools.cache
def row_size(row_bytes: int) -> Any:
    """size(given) -> uint32: row_bytes, or the uint64 given if that is 0."""

    @device
    def known(given: Any) -> Any:
        return uint32(row_bytes)

    @device
    def told(given: Any) -> Any:
        return uint32(given)

    return known if row_bytes else told


class RowFetch(NamedTuple):
    """side : (rows, stride by sequence or page, stride by head, pages, their stride, log2 of a page's tokens, bytes of
    a row where they are no constant), uint64

    fetch(stage, token, stop, barrier, lane, seq, head, side) : start copying the tile from `token` on, of which tokens
        before `stop` are there; none if token is none of them
    lateness(seq, head, side) : bytes by which the rows of a head begin behind a multiple of 16
    """

    fetch: Any
    lateness: Any


@functools.cache
def row_fetch(row_bytes: int, tile: int, is_paged: bool, is_late: bool, is_bulk: bool) -> RowFetch:
    """The functions for rows of row_bytes bytes (0: as the side says), in pages or a head's all side by side."""
    copy = tile_copier(row_bytes, tile, is_late, is_bulk) if row_bytes else any_tile_copier(tile, is_late, is_bulk)
    size_of = row_size(row_bytes)

    @device
    def address(token: Any, seq: Any, head: Any, side: Any) -> Any:
        row, within = uint64(seq), uint64(token)
        if is_paged:
            row, within = place_of_token(token, side[3] + uint64(seq) * side[4] * uint64(4), side[5])
        return side[0] + (row * side[1] + uint64(head) * side[2] + within * uint64(size_of(side[6])))

    @device
    def fetch(stage: Any, token: Any, stop: Any, barrier: Any, lane: Any, seq: Any, head: Any, side: Any) -> None:
        if token < stop:
            a = address(token, seq, head, side)
            b = a
            if is_paged and uint32(token + uint32(HALF_TILE)) < stop:
                half = uint32(token + uint32(HALF_TILE))
                b = address(half, seq, head, side) - uint64(uint32(size_of(side[6]) * uint32(HALF_TILE)))
            n_bytes = int32(int32(stop - token) * int32(size_of(side[6])))
            if is_late:
                late = uint32(a & uint64(WORD - 1))
                a, b = a - uint64(late), b - uint64(late)
                n_bytes = int32(n_bytes + int32(late))
            copy(stage, a, b, n_bytes, barrier, lane, size_of(side[6]))
        elif is_bulk and lane == uint32(0):
            _ptx_copies.arrive(barrier)

    @device
    def lateness(seq: Any, head: Any, side: Any) -> Any:
        late = uint32(0)
        if is_late:
            late = uint32((side[0] + (uint64(seq) * side[1] + uint64(head) * side[2])) & uint64(WORD - 1))
        return late

    return RowFetch(fetch, lateness)
