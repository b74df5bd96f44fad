"""The exact tokens of a cache in GPU memory, and the numbers that say how many there are: what a step does to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from turbocode.errors import OptionError
from turbocode.kernels import _launch
from turbocode.kernels._launch import DeviceArray, device_array
from turbocode.kernels.attention import exact_tokens as kernels
from turbocode.kernels.gpu_call import VALUE_TYPES, check_vectors


class ExactTokens:
    """Sinks and tail of each sequence, float16, one array a side, and int32 numbers (n_seqs,) on the GPU.

    sides : head_dim of each side that has tokens of its own; like : an array of the library and the GPU to use
    A tail has room for recent + 2 * run tokens: `take` has to come before it holds recent + run and another run.
    """

    def __init__(
        self, like: DeviceArray, n_seqs: int, n_heads: int, sides: Sequence[int], sinks: int, recent: int, run: int
    ) -> None:
        self.n_seqs, self.n_heads, self.sinks, self.recent, self.run = n_seqs, n_heads, sinks, recent, run
        self.device, self.slots = like.device, sinks + recent + 2 * run
        shape = n_seqs, n_heads
        self.exact = [device_array(_launch.empty(like, (*shape, self.slots, d), "float16")) for d in sides]
        self.staged = [device_array(_launch.empty(like, (*shape, run, d), "float16")) for d in sides]
        zeros = np.zeros(n_seqs, np.int32)
        self.lengths, self.packed, self.starts = (_launch.upload(zeros.copy(), like.device) for _ in range(3))

    def place(self, side: int, source: DeviceArray, counts: DeviceArray | None, stream: int) -> None:
        """Copy new tokens (n_seqs, n_heads, n_tokens, head_dim) to where exact ones lie; packed ones are left out."""
        target = self.exact[side]
        d = target.shape[3]
        check_vectors(source, d, "new tokens")
        if len(source.shape) != 4 or source.shape[:2] != (self.n_seqs, self.n_heads):
            raise OptionError(f"new tokens {source.shape}; allowed is ({self.n_seqs}, {self.n_heads}, n_tokens, {d})")
        if 0 in source.shape:
            return
        args = (
            *(source.pointer, target.pointer, self.lengths.pointer, self.packed.pointer, _pointer(counts)),
            *(self.n_heads, source.shape[2], d, self.slots, self.sinks, *source.strides[:3]),
        )
        assert len(args) == kernels.N_PLACE_ARGS
        self._launch(kernels.place_kernel(VALUE_TYPES[source.dtype]), self.n_seqs * self.n_heads, args, stream)

    def take(self, side: int, stream: int) -> None:
        """Put the oldest run of each tail that is longer than recent + run among the staged ones; starts say where to.

        Sequences without such a tail have a start beyond every cache.
        """
        exact, staged = self.exact[side], self.staged[side]
        args = (
            *(exact.pointer, staged.pointer, self.lengths.pointer, self.packed.pointer, self.starts.pointer),
            *(self.n_heads, exact.shape[3], self.slots, self.sinks, self.recent, self.run),
            *(kernels.NEVER, int(side == 0)),
        )
        assert len(args) == kernels.N_TAKE_ARGS
        self._launch(kernels.take_kernel(), self.n_seqs * self.n_heads, args, stream)

    def settle(
        self,
        what: int,
        stream: int,
        *,
        n_tokens: int = 0,
        counts: DeviceArray | None = None,
        rows: tuple[DeviceArray, DeviceArray] | None = None,
    ) -> None:
        """Bring the numbers up to date; what : a sum of PLAN, COUNT, MOVE, ROWS of exact_tokens.py."""
        n_rows = 0 if rows is None else rows[0].shape[1]
        args = (
            *(self.lengths.pointer, self.packed.pointer, self.starts.pointer, _pointer(counts)),
            *((0, 0) if rows is None else (rows[0].pointer, rows[1].pointer)),
            *(self.n_seqs, n_tokens, n_rows, self.sinks, self.recent, self.run, what),
        )
        assert len(args) == kernels.N_SETTLE_ARGS
        self._launch(kernels.settle_kernel(), 1, args, stream)

    def _launch(self, kernel: Any, grid: int, args: tuple[Any, ...], stream: int) -> None:
        if grid:
            _launch.launch(kernel, grid, kernels.THREADS, self.device, stream, args)


def _pointer(array: DeviceArray | None) -> Any:
    return 0 if array is None else array.pointer
