"""Runs kernels as Python, for tests on machines without a GPU (NUMBA_ENABLE_CUDASIM=1). Needs the package greenlet.

A thread is a greenlet; all live threads of a block run until each waits for the others, and what they wait for is then
settled: a barrier of the block, or a collective operation of a warp. A wait that can never end is reported with the
threads and lines. Shared and local memory begin as 0xCD bytes, and `set_order(seed)` shuffles the order in which
threads run between waits, so that a missing barrier gives wrong results.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet

WARP = 32
POISON = 0xCD
_order: random.Random | None = None


def set_order(seed: int | None) -> None:
    """Shuffle the execution order of threads by `seed`; None: threads run in their order."""
    global _order
    _order = None if seed is None else random.Random(seed)


class Deadlock(RuntimeError):
    """Threads wait for what cannot happen."""


class _Thread(greenlet):
    """wants : what it waits for: (kind, where, argument); answer : what it is told when it goes on"""

    index: int
    block: _Block
    wants: tuple[str, str, Any] | None
    answer: Any
    copies: list[list[Any]]  # groups of asynchronous copies under way, the open one last


class _Block:
    def __init__(
        self,
        function: Callable[..., None],
        number: int,
        grid: int,
        threads: int,
        args: tuple[Any, ...],
        shared_bytes: int,
    ):
        self.number, self.grid, self.size = number, grid, threads
        self.shared: dict[Any, Any] = {}
        self.barriers: dict[int, Any] = {}  # of copies, by where they lie
        self.dynamic = _aligned(shared_bytes, np.uint8)
        self.args = args
        hub = getcurrent()
        self.threads = []
        for index in range(threads):
            thread = _Thread(function, hub)
            thread.index, thread.block, thread.wants, thread.answer = index, self, None, None
            thread.copies = [[]]
            self.threads.append(thread)

    def run(self) -> None:
        """Run the block to its end."""
        ready = list(self.threads)
        while ready:
            if _order:
                _order.shuffle(ready)
            for thread in ready:
                thread.switch(*self.args) if thread.wants is None else thread.switch(thread.answer)
            live = [thread for thread in self.threads if not thread.dead]
            ready = list(self._settle(live))
            if live and not ready:
                waits: dict[tuple[str, str], list[int]] = {}
                for thread in live:
                    assert thread.wants
                    waits.setdefault(thread.wants[:2], []).append(thread.index)
                text = "; ".join(f"{kind} at {where}: threads {who[:8]}" for (kind, where), who in waits.items())
                raise Deadlock(f"block {self.number} waits for ever: {text}")

    def _settle(self, live: list[_Thread]) -> Iterator[_Thread]:
        if live and all(thread.wants and thread.wants[0] == "block" for thread in live):
            yield from live
            return
        for first in range(0, self.size, WARP):
            warp = self.threads[first : first + WARP]
            wants = [thread.wants for thread in warp]
            if any(thread.dead for thread in warp) or any(want is None or want[0] == "block" for want in wants):
                continue
            if len({want[:2] for want in wants if want}) == 1:
                kind = wants[0][0]  # type: ignore[index]
                answers = _MEANING[kind]([want[2] for want in wants])  # type: ignore[index]
                for thread, answer in zip(warp, answers, strict=True):
                    thread.answer = answer
                yield from warp


def _exchange(source: Callable[[int, int], int]) -> Callable[[list[Any]], list[Any]]:
    return lambda args: [args[source(lane, int(arg[1]))][0] for lane, arg in enumerate(args)]


_MEANING: dict[str, Callable[[list[Any]], list[Any]]] = {
    "xor": _exchange(lambda lane, mask: lane ^ mask),
    "index": _exchange(lambda lane, index: index & (WARP - 1)),
    "any": lambda args: [int(any(arg[0] for arg in args))] * WARP,
    "ballot": lambda args: [sum(1 << lane for lane, arg in enumerate(args) if arg[0])] * WARP,
    "sync": lambda args: [None] * WARP,
}


def define_collective(name: str, meaning: Callable[[list[Any]], list[Any]]) -> None:
    """Teach the simulator a collective: from the 32 lanes' arguments to their 32 answers."""
    _MEANING[name] = meaning


def _wait(kind: str, argument: Any = None) -> Any:
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.rsplit("/", 1)[-1] in ("_simulator.py", "_ptx.py", "_cuda.py"):
        frame = frame.f_back
    thread = getcurrent()
    thread.wants = (kind, f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}", argument)
    return thread.parent.switch()


def collective(name: str, args: tuple[Any, ...]) -> Any:
    """What the lanes of a warp find out together."""
    return _wait(name, args)


def _array(shape: int, dtype: Any) -> Any:
    return np.full(shape * np.dtype(dtype).itemsize + 16, POISON, np.uint8)


def _aligned(shape: int, dtype: Any) -> Any:
    memory = _array(shape, dtype)
    skip = -memory.ctypes.data % 16
    return memory[skip : skip + shape * np.dtype(dtype).itemsize].view(dtype)


def local_array(shape: int, dtype: Any) -> Any:
    """cuda.local.array"""
    return _aligned(shape, _NUMPY[dtype])


def _shared_array(shape: int, dtype: Any, alignment: int = 16) -> Any:
    frame = sys._getframe(1)
    block = getcurrent().block
    if shape == 0:  # what the launch asks for
        return block.dynamic.view(_NUMPY[dtype])
    where = (frame.f_code, frame.f_lasti)
    if where not in block.shared:
        block.shared[where] = _aligned(shape, _NUMPY[dtype])
    return block.shared[where]


class _Cuda:
    """What kernels use of numba.cuda."""

    shared = SimpleNamespace(array=_shared_array)
    local = SimpleNamespace(array=local_array)
    const = SimpleNamespace(array_like=lambda values: values)

    @property
    def threadIdx(self) -> Any:
        return SimpleNamespace(x=getcurrent().index)

    @property
    def blockIdx(self) -> Any:
        return SimpleNamespace(x=getcurrent().block.number)

    @property
    def gridDim(self) -> Any:
        return SimpleNamespace(x=getcurrent().block.grid)

    @staticmethod
    def syncthreads() -> None:
        _wait("block")


cuda = _Cuda()


def _unsigned(bits: int) -> Callable[[Any], Any]:
    mask = (1 << bits) - 1
    return lambda value: int(value) & mask if hasattr(value, "__int__") else value  # an Address stays one


def _signed(bits: int) -> Callable[[Any], int]:
    half = 1 << (bits - 1)
    return lambda value: ((int(value) + half) & (2 * half - 1)) - half


# Casts as compiled code does them. Integers are Python's: what a kernel does not cast back, it must not rely on.
types = SimpleNamespace(
    uint8=_unsigned(8),
    uint16=_unsigned(16),
    uint32=_unsigned(32),
    uint64=_unsigned(64),
    int16=_signed(16),
    int32=_signed(32),
    int64=_signed(64),
    float32=np.float32,
)
_NUMPY = {
    types.uint8: np.uint8,
    types.uint16: np.uint16,
    types.uint32: np.uint32,
    types.uint64: np.uint64,
    types.int16: np.int16,
    types.int32: np.int32,
    types.float32: np.float32,
}


class Kernel:
    """A kernel that `launch` runs."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.py_func = function

    def launch(self, grid: int, threads: int, *args: Any, shared_bytes: int = 0) -> None:
        """Run all blocks, one after the other. Pointers are Address objects."""
        with np.errstate(all="ignore"):
            for number in range(grid):
                _Block(self.py_func, number, grid, threads, args, shared_bytes).run()
