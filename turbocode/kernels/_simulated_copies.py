"""Copies from global to shared memory that go on while threads do other things, for the simulator.

They arrive as late as they may: when they are waited for. What is read too early is what was there before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from greenlet import getcurrent

from turbocode.kernels._simulator import WARP, Deadlock, collective, define_collective

WORD = 16  # bytes


class _Copy:
    """16 bytes from source to target. Raises IndexError where they are not all there."""

    def __init__(self, target: Any, source: Any) -> None:
        self.target, self.source = target, source
        self.is_done = False
        source.read(np.uint8, WORD)

    def arrive(self) -> None:
        if not self.is_done:
            self.target.write(np.uint8, self.source.read(np.uint8, WORD))
            self.is_done = True


def later(target: Any, source: Any) -> None:
    """cp.async: 16 bytes from the address `source` to `target`, multiples of 16."""
    getcurrent().copies[-1].append(_Copy(target, source))


def close() -> None:
    """cp.async.commit_group"""
    getcurrent().copies.append([])


def wait(n_left: int) -> None:
    """cp.async.wait_group: all closed groups but the last n_left arrive."""
    copies = getcurrent().copies
    while len(copies) - 1 > n_left:
        _arrive(copies.pop(0))


def _arrive(copies: list[_Copy]) -> None:
    for copy in copies:
        copy.arrive()


class _Barrier:
    """An mbarrier: left : arrivals that are missing; n_bytes : of copies that are expected but have not arrived."""

    def __init__(self, count: int) -> None:
        self.count = self.left = count
        self.n_bytes = self.phase = 0
        self.copies: list[_Copy] = []


def _barrier(address: Any) -> _Barrier:
    found: _Barrier = getcurrent().block.barriers[address.offset]
    return found


def begin_barrier(address: Any, count: int) -> None:
    """mbarrier.init"""
    getcurrent().block.barriers[address.offset] = _Barrier(int(count))


def expect(address: Any, n_bytes: int) -> None:
    """mbarrier.arrive.expect_tx; with 0 mbarrier.arrive"""
    barrier = _barrier(address)
    barrier.left -= 1
    barrier.n_bytes += int(n_bytes)


def arrive_after_copies(address: Any) -> None:
    """cp.async.mbarrier.arrive: the phase does not end before the thread's copies have arrived."""
    for group in getcurrent().copies:
        _barrier(address).copies += group


def copy_bulk(target: Any, source: Any, n_bytes: int, address: Any) -> None:
    """cp.async.bulk"""
    for place in (target, source):
        if (place.memory.ctypes.data + place.offset) % 16 or n_bytes % 16:
            raise IndexError("a bulk copy has addresses and a size that are multiples of 16 bytes")
    barrier = _barrier(address)
    pieces = [_Copy(target + i, source + i) for i in range(0, int(n_bytes), WORD)]
    barrier.copies += pieces
    barrier.n_bytes -= int(n_bytes)


def pass_phase(address: Any, parity: int) -> Any:
    """mbarrier.try_wait.parity until it answers; the lanes of a warp call it together."""
    return collective("pass_phase", (_barrier(address), parity))


def _pass_phase(args: list[Any]) -> list[Any]:
    barrier, parity = args[0]
    if barrier.phase & 1 == int(parity) & 1:
        if barrier.left or barrier.n_bytes:
            raise Deadlock(f"a barrier misses {barrier.left} arrivals and {barrier.n_bytes} bytes")
        _arrive(barrier.copies)
        barrier.copies, barrier.left, barrier.phase = [], barrier.count, barrier.phase + 1
    return [None] * WARP


define_collective("pass_phase", _pass_phase)
