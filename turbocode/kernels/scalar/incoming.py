"""Values on their way into shared memory while a warp works on those before: no registers wait for them.

A warp's eight groups of 16-bit values take one of two slots. A lane copies 16 bytes of each chunk, those that it reads
itself, so that no barrier is needed between copying and reading; but one between reading a slot and filling it again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from turbocode.kernels import _ptx, _ptx_copies
from turbocode.kernels._cuda import at, device, types

uint32, uint64 = types.uint32, types.uint64
_WARP_BYTES = 32 * 16  # of one chunk


class Incoming(NamedTuple):
    """slot_bytes : shared memory of a slot; a warp has two, side by side, each lane's part from 16 times its number on

    fetch(slot, address) : start to copy the lane's chunks, the first of which is at the uint64 address
    wait() : until all that was fetched is there
    take(slot, words) : set words uint32 (4 * chunks,) from a slot
    """

    slot_bytes: int
    fetch: Any
    wait: Any
    take: Any


def incoming(n_chunks: int, n_lanes: int) -> Incoming:
    """For groups of n_chunks * n_lanes * 8 values that n_lanes lanes hold."""

    @device
    def fetch(slot: Any, address: Any) -> None:
        for chunk in range(n_chunks):
            _ptx_copies.copy_async_whole(at(slot, chunk * _WARP_BYTES), address + uint64(chunk * 16 * n_lanes))
        _ptx_copies.close_copies()

    @device
    def take(slot: Any, words: Any) -> None:
        for chunk in range(n_chunks):
            found = _ptx.load_shared_u32x4(at(slot, chunk * _WARP_BYTES))
            for e in range(4):
                words[4 * chunk + e] = found[e]

    return Incoming(n_chunks * _WARP_BYTES, fetch, _ptx_copies.wait_for_copies(0), take)
