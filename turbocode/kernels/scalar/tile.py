"""From the blocks that a warp built in shared memory to where they belong, and back."""

from __future__ import annotations

import functools
from typing import Any

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.vectors import group_address

uint32, uint64, int32 = types.uint32, types.uint64, types.int32
WORD = 16


def tile_bytes(n_bytes: int) -> int:
    """Shared memory for the blocks of a warp: whole words of 16 bytes."""
    return -(-n_bytes // WORD) * WORD


@functools.cache
def row_address(is_strided: bool, group_bytes: int) -> Any:
    """The address of a group's blocks in a cache whose sequences have starts of their own; 0 beyond its capacity."""
    strided = group_address(is_strided, group_bytes)

    @device
    def address(
        base: Any,
        group: Any,
        per_vector: Any,
        n_tokens: Any,
        n_heads: Any,
        token: Any,
        head: Any,
        seq: Any,
        capacity: Any,
        starts: Any,
    ) -> Any:
        place = strided(base, group, per_vector, n_tokens, n_heads, token, head, seq)
        if is_strided and starts != uint64(0):
            row = uint32(uint32(group // uint32(per_vector)) // uint32(n_tokens))
            t = uint32(uint32(group // uint32(per_vector)) - uint32(row * uint32(n_tokens)))
            start = _ptx.load_u32(starts + uint64(row // uint32(n_heads)) * uint64(4))
            place = place + uint64(start) * uint64(token)
            if uint64(start) + uint64(t) >= capacity:
                place = uint64(0)
        return place

    return address


@functools.cache
def row_storer(group_bytes: int, n_lanes: int) -> Any:
    """store(row, target, t): a group's blocks from shared to global memory by n_lanes lanes; nowhere if target is 0."""

    @device
    def store(row: Any, target: Any, t: Any) -> None:
        byte = uint32(t)
        while byte < uint32(group_bytes) and target != uint64(0):
            _ptx.store_u8(target + uint64(byte), _ptx.load_shared_u8(at(row, byte)))
            byte = uint32(byte + uint32(n_lanes))

    return store


@functools.cache
def row_loader(group_bytes: int, n_lanes: int) -> Any:
    """load(source, row, t): the inverse of `row_storer`; zeros if source is 0."""

    @device
    def load(source: Any, row: Any, t: Any) -> None:
        byte = uint32(t)
        while byte < uint32(group_bytes):
            value = uint32(0)
            if source != uint64(0):
                value = _ptx.load_u8(source + uint64(byte))
            _ptx.store_shared_u8(at(row, byte), value)
            byte = uint32(byte + uint32(n_lanes))

    return load


@functools.cache
def tile_writer(is_strided: bool, group_bytes: int, n_lanes: int) -> Any:
    """write(tile, base, first, lane, geometry...): the warp's groups, from `first` on, to global memory.

    A warp has 32 / n_lanes groups. Contiguous blocks go out in words of 16 bytes; base must be a multiple of that.
    """
    per_warp = 32 // n_lanes
    n_bytes = per_warp * group_bytes
    place, store_row = row_address(True, group_bytes), row_storer(group_bytes, n_lanes)
    is_whole = n_bytes % WORD == 0

    if is_strided:

        @device
        def write(
            tile: Any,
            base: Any,
            first: Any,
            lane: Any,
            n_groups: Any,
            per_vector: Any,
            n_tokens: Any,
            n_heads: Any,
            token: Any,
            head: Any,
            seq: Any,
            capacity: Any,
            starts: Any,
        ) -> None:
            row = uint32(lane // uint32(n_lanes))
            if uint32(first + row) < n_groups:
                target = place(
                    base, uint32(first + row), per_vector, n_tokens, n_heads, token, head, seq, capacity, starts
                )
                store_row(at(tile, uint32(row * uint32(group_bytes))), target, uint32(lane % uint32(n_lanes)))

    else:

        @device
        def write(
            tile: Any,
            base: Any,
            first: Any,
            lane: Any,
            n_groups: Any,
            per_vector: Any,
            n_tokens: Any,
            n_heads: Any,
            token: Any,
            head: Any,
            seq: Any,
            capacity: Any,
            starts: Any,
        ) -> None:
            target = base + uint64(first) * uint64(group_bytes)
            if is_whole and uint32(first + uint32(per_warp)) <= uint32(n_groups):
                byte = uint32(lane * uint32(WORD))
                while byte < uint32(n_bytes):
                    words = _ptx.load_shared_u32x4(at(tile, byte))
                    _ptx.store_u32x4(target + uint64(byte), words[0], words[1], words[2], words[3])
                    byte = uint32(byte + uint32(32 * WORD))
            elif first < uint32(n_groups):
                end = uint32(min(uint32(per_warp), uint32(uint32(n_groups) - first)) * uint32(group_bytes))
                byte, step = uint32(lane), _ptx.anchored(uint32(32))  # a step not known keeps the loop short
                while byte < end:
                    _ptx.store_u8(target + uint64(byte), _ptx.load_shared_u8(at(tile, byte)))
                    byte = uint32(byte + step)

    return write


@functools.cache
def tile_reader(is_strided: bool, group_bytes: int, n_lanes: int) -> Any:
    """read(tile, base, first, lane, geometry...): the inverse of `tile_writer`; a barrier must follow."""
    per_warp = 32 // n_lanes
    n_bytes = per_warp * group_bytes
    place, load_row = row_address(True, group_bytes), row_loader(group_bytes, n_lanes)
    is_whole = n_bytes % WORD == 0

    if is_strided:

        @device
        def read(
            tile: Any,
            base: Any,
            first: Any,
            lane: Any,
            n_groups: Any,
            per_vector: Any,
            n_tokens: Any,
            n_heads: Any,
            token: Any,
            head: Any,
            seq: Any,
            capacity: Any,
            starts: Any,
        ) -> None:
            row = uint32(lane // uint32(n_lanes))
            near = uint32(min(uint64(first + row), uint64(n_groups - uint64(1))))
            source = place(base, near, per_vector, n_tokens, n_heads, token, head, seq, capacity, starts)
            load_row(source, at(tile, uint32(row * uint32(group_bytes))), uint32(lane % uint32(n_lanes)))

    else:

        @device
        def read(
            tile: Any,
            base: Any,
            first: Any,
            lane: Any,
            n_groups: Any,
            per_vector: Any,
            n_tokens: Any,
            n_heads: Any,
            token: Any,
            head: Any,
            seq: Any,
            capacity: Any,
            starts: Any,
        ) -> None:
            source = base + uint64(first) * uint64(group_bytes)
            if is_whole and uint32(first + uint32(per_warp)) <= uint32(n_groups):
                byte = uint32(lane * uint32(WORD))
                while byte < uint32(n_bytes):
                    words = _ptx.stream_u32x4(source + uint64(byte))
                    _ptx.store_shared_u32x4(at(tile, byte), words[0], words[1], words[2], words[3])
                    byte = uint32(byte + uint32(32 * WORD))
            elif first < uint32(n_groups):
                end = uint32(min(uint32(per_warp), uint32(uint32(n_groups) - first)) * uint32(group_bytes))
                byte, step = uint32(lane), _ptx.anchored(uint32(32))  # a step not known keeps the loop short
                while byte < uint32(n_bytes):
                    value = uint32(0)  # of groups beyond the end
                    if byte < end:
                        value = _ptx.load_u8(source + uint64(byte))
                    _ptx.store_shared_u8(at(tile, byte), value)
                    byte = uint32(byte + step)

    return read
