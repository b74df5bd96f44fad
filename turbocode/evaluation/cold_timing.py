"""Times of GPU work that finds the L2 cache full of something else, from replayed graphs.

A graph holds several calls, which take copies of their input in turn: as many as together are COLD_CACHES times the L2
cache. So it is in a model whose layers have a cache each. A time is that of one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from turbocode.evaluation.gpu_memory import GpuMemory

COLD_CACHES = 4  # times the L2 cache that the copies of an input take together
MIN_CALLS = 4  # of a graph

Work = Callable[[int], Any]  # does its work on copy i of its input


class ColdTimer:
    """repeats : replays of a graph, of which the median counts"""

    def __init__(self, memory: GpuMemory, repeats: int) -> None:
        self.memory, self.gpu, self.repeats = memory, memory.gpu, repeats

    def n_copies(self, n_bytes: int) -> int:
        """Copies of an input of n_bytes that are needed."""
        return max(1, math.ceil(COLD_CACHES * self.gpu.l2_bytes / n_bytes))

    def seconds(self, work: Work, n_copies: int, *, is_torch: bool = False, repeats: int | None = None) -> float:
        """Seconds of a call of work, which starts kernels in the GPU's stream; if is_torch, in torch's current one."""
        n_calls = max(MIN_CALLS, n_copies)

        def calls() -> None:
            for i in range(n_calls):
                work(i)

        if is_torch:
            return self._torch_seconds(calls, repeats or self.repeats) / n_calls
        calls()
        self.gpu.wait()
        graph = self.gpu.capture(calls)
        seconds = self.gpu.queued_seconds(lambda: self.gpu.replay(graph), repeats or self.repeats)
        self.gpu.forget(graph)
        return float(seconds / n_calls)

    def _torch_seconds(self, calls: Callable[[], None], repeats: int) -> float:
        """The same by torch's graphs, which keep what torch allocates inside of them."""
        torch = self.memory.torch
        stream = torch.cuda.Stream(self.memory.device)
        with torch.cuda.stream(stream):
            calls()
            torch.cuda.synchronize(self.memory.device)
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin()
            try:
                calls()
            finally:
                graph.capture_end()
        with self.memory.stream:
            return float(self.gpu.queued_seconds(graph.replay, repeats))
