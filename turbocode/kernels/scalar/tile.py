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
def row_address(group_bytes: int) -> Any:
    """The address of a group's blocks in a cache whose sequences have starts of their own; 0 beyond its capacity."""
    strided = group_address(True, group_bytes)

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
        if starts != uint64(0):
            row = uint32(uint32(group // uint32(per_vector)) // uint32(n_tokens))
            t = uint32(uint32(group // uint32(per_vector)) - uint32(row * uint32(n_tokens)))
            start = _ptx.load_u32(starts + uint64(row // uint32(n_heads)) * uint64(4))
            place = place + uint64(start) * uint64(token)
            if uint64(start) + uint64(t) >= capacity:
                place = uint64(0)
        return place

    return address


@functools.cache
def tile_writer(is_strided: bool, group_bytes: int, n_lanes: int, per_warp: int = 0) -> Any:
    """write(tile, base, first, lane, geometry...): the warp's groups, from `first` on, to global memory.

    per_warp : groups of a warp, 32 / n_lanes or a multiple of it
    Contiguous blocks go out in words of 16 bytes, for which base must be a multiple of 16.
    """
    at_once = 32 // n_lanes
    per_warp = per_warp or at_once
    n_turns = per_warp // at_once
    n_bytes = per_warp * group_bytes
    place = row_address(group_bytes)
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
            for turn in range(n_turns):
                row = uint32(uint32(lane // uint32(n_lanes)) + uint32(turn * at_once))
                if uint32(first + row) < n_groups:
                    target = place(
                        base, uint32(first + row), per_vector, n_tokens, n_heads, token, head, seq, capacity, starts
                    )
                    source = at(tile, uint32(row * uint32(group_bytes)))
                    byte = uint32(lane % uint32(n_lanes))
                    while byte < uint32(group_bytes) and target != uint64(0):
                        _ptx.store_u8(target + uint64(byte), _ptx.load_shared_u8(at(source, byte)))
                        byte = uint32(byte + uint32(n_lanes))

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
            if is_whole and uint64(first) + uint64(per_warp) <= n_groups:
                byte = uint32(lane * uint32(WORD))
                while byte < uint32(n_bytes):
                    words = _ptx.load_shared_u32x4(at(tile, byte))
                    _ptx.store_u32x4(target + uint64(byte), words[0], words[1], words[2], words[3])
                    byte = uint32(byte + uint32(32 * WORD))
            elif first < n_groups:
                left = uint32(min(uint64(per_warp), n_groups - uint64(first)))
                byte = uint32(lane)
                while byte < uint32(left * uint32(group_bytes)):
                    _ptx.store_u8(target + uint64(byte), _ptx.load_shared_u8(at(tile, byte)))
                    byte = uint32(byte + uint32(32))

    return write


@functools.cache
def tile_reader(is_strided: bool, group_bytes: int, n_lanes: int, per_warp: int = 0) -> Any:
    """read(tile, base, first, lane, geometry...): the inverse of `tile_writer`; a barrier must follow."""
    at_once = 32 // n_lanes
    per_warp = per_warp or at_once
    n_turns = per_warp // at_once
    n_bytes = per_warp * group_bytes
    place = row_address(group_bytes)
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
            for turn in range(n_turns):
                row = uint32(uint32(lane // uint32(n_lanes)) + uint32(turn * at_once))
                near = uint32(min(uint64(first + row), uint64(n_groups - uint64(1))))
                source = place(base, near, per_vector, n_tokens, n_heads, token, head, seq, capacity, starts)
                target = at(tile, uint32(row * uint32(group_bytes)))
                byte = uint32(lane % uint32(n_lanes))
                while byte < uint32(group_bytes):
                    value = uint32(0)
                    if source != uint64(0):
                        value = _ptx.load_u8(source + uint64(byte))
                    _ptx.store_shared_u8(at(target, byte), value)
                    byte = uint32(byte + uint32(n_lanes))

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
            if is_whole and uint64(first) + uint64(per_warp) <= n_groups:
                byte = uint32(lane * uint32(WORD))
                while byte < uint32(n_bytes):
                    words = _ptx.stream_u32x4(source + uint64(byte))
                    _ptx.store_shared_u32x4(at(tile, byte), words[0], words[1], words[2], words[3])
                    byte = uint32(byte + uint32(32 * WORD))
            elif first < n_groups:
                left = uint32(min(uint64(per_warp), n_groups - uint64(first)))
                byte = uint32(lane)
                while byte < uint32(n_bytes):
                    value = uint32(0)  # of groups beyond the end
                    if byte < uint32(left * uint32(group_bytes)):
                        value = _ptx.load_u8(source + uint64(byte))
                    _ptx.store_shared_u8(at(tile, byte), value)
                    byte = uint32(byte + uint32(32))

    return read
