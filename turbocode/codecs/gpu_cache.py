"""The cache of one layer in GPU memory: packed tokens, and exact ones before and behind them.

The first `sinks` tokens of a sequence stay in float16, and so do at least its latest `recent` ones; tokens between are
packed, in runs of `run`, once and for good. Attention over packed and exact tokens is merged by log-sum-exp, which is
the attention over both. Sequences may have different lengths. What changes from step to step is read and written on the
GPU: a step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs.catalog import make_codec
from turbocode.codecs.codec import Codec
from turbocode.codecs.gpu_any_rows import MOST_IN_A_STEP, AnyRows
from turbocode.codecs.gpu_attention import merge_on_gpu
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.errors import OptionError

RUN = 32
ALIGNED_RUN = 8  # tokens after which rows of any format begin at multiples of 16 bytes again


class GpuCache:
    """Keys and values of one layer.

    key_codec, value_codec : of one head_dim; value_codec None : values are the keys, and attention reads the key blocks
        for both. That holds where a model's attention is given one array as keys and as values. A model that turns its
        keys by their position (RoPE) and its values not has two arrays, even if one projection makes both.
    n_seqs, n_kv_heads, capacity : tokens that each sequence has room for
    like : any array of the library (torch, CuPy, numba-cuda) and the GPU that the cache's memory is to be of
    sinks, recent : tokens kept in float16; with neither every token is packed as it enters
    run : tokens that are packed together, a multiple of 8; so many more than `recent` may be exact
    is_exact : encode with the CPU's bits (GpuCodec), which takes longer
    """

    def __init__(
        self,
        key_codec: Codec,
        value_codec: Codec | None,
        n_seqs: int,
        n_kv_heads: int,
        capacity: int,
        *,
        like: Any,
        sinks: int = 0,
        recent: int = 0,
        run: int = RUN,
        is_exact: bool = False,
    ) -> None:
        from turbocode.kernels import _launch
        from turbocode.kernels.attention.exact_cuda import ExactTokens

        if min(n_seqs, n_kv_heads, capacity) < 1 or min(sinks, recent) < 0 or run < 1 or run % ALIGNED_RUN:
            raise OptionError(
                f"{n_seqs} sequences, {n_kv_heads} KV heads, capacity {capacity}, sinks {sinks}, recent {recent}, run "
                f"{run}: allowed are 1 and more, 0 and more for sinks and recent, multiples of {ALIGNED_RUN} for run"
            )
        self.codecs = [key_codec] if value_codec is None else [key_codec, value_codec]
        self.n_seqs, self.n_kv_heads, self.capacity = n_seqs, n_kv_heads, capacity
        self.sinks, self.recent, self.run = sinks, recent, run
        self.lengths: NDArray[np.int64] = np.zeros(n_seqs, np.int64)  # tokens of each sequence, as the host knows
        self._packed = np.zeros(n_seqs, np.int64)
        self._like = _launch.device_array(like)
        n_blocks = -(-max(capacity - sinks - recent, 1) // run) * run if sinks or recent else capacity
        shape = (n_seqs, n_kv_heads, n_blocks)
        self.blocks = [_launch.empty(self._like, (*shape, c.bytes_per_vector), "uint8") for c in self.codecs]
        self._coders = [GpuCodec(codec, is_exact=is_exact) for codec in self.codecs]
        self._attention = AnyRows(self.codecs[0], self.codecs[-1])
        dims = [codec.head_dim for codec in self.codecs]
        self._exact = ExactTokens(self._like, n_seqs, n_kv_heads, dims, sinks, recent, run)
        float16 = make_codec("f16", dims[0])
        self._exact_attention = AnyRows(float16, float16)
        self._rows: dict[int, tuple[Any, Any]] = {}
        self._parts: dict[tuple[int, ...], tuple[Any, Any, Any, Any]] = {}

    @property
    def has_exact_tokens(self) -> bool:
        """Whether some tokens stay in float16."""
        return bool(self.sinks or self.recent)

    @property
    def n_bytes(self) -> int:
        """Bytes of GPU memory of blocks and exact tokens."""
        from turbocode.kernels._launch import device_array

        shapes = [device_array(part).shape for part in self.blocks]
        total = sum(int(np.prod(shape)) for shape in shapes)
        if self.has_exact_tokens:
            total += sum(2 * int(np.prod(part.shape)) for part in (*self._exact.exact, *self._exact.staged))
        return total

    def append(
        self,
        keys: Any,
        values: Any = None,
        *,
        counts: Sequence[int] | None = None,
        is_captured: bool = False,
        stream: Any = None,
    ) -> None:
        """Add new tokens of every sequence.

        keys, values : float16, bfloat16 or float32 (n_seqs, n_kv_heads, n_tokens, head_dim); no values where they are
            the keys. What is kept exactly is rounded to float16; infinities beyond 65504 are the caller's to avoid
        counts : how many of the tokens each sequence gets, the first ones; all by default. Into a cache that holds
            tokens already, so many only at most `run`
        is_captured : the call is recorded in a graph: the host does not count its tokens (`replayed` does), and each
            replay looks on the GPU whether a run is to be packed
        Raises OptionError for shapes that do not fit and tokens beyond the capacity.
        """
        from turbocode.kernels import _launch

        given = [keys] if values is None else [keys, values]
        if len(given) != len(self.codecs):
            raise OptionError("keys and values are needed, or the keys alone where values are the keys")
        sides = [_launch.device_array(array) for array in given]
        n_tokens = sides[0].shape[2] if len(sides[0].shape) == 4 else 0
        for side, codec in zip(sides, self.codecs, strict=True):
            if side.shape != (self.n_seqs, self.n_kv_heads, n_tokens, codec.head_dim):
                raise OptionError(
                    f"new tokens have shape {side.shape}; allowed is ({self.n_seqs}, {self.n_kv_heads}, n_tokens, "
                    f"{codec.head_dim}), the same n_tokens for both"
                )
        handle = _launch.stream_handle(stream, sides[0].stream)
        numbers = self._numbers(counts, n_tokens)
        if (self.lengths + numbers).max() > self.capacity:
            raise OptionError(f"{(self.lengths + numbers).max()} tokens; the cache has room for {self.capacity}")
        device_counts = None if counts is None else _launch.upload(numbers.astype(np.int32), self._like.device)
        if not self.has_exact_tokens:
            self._encode(sides, self._exact.lengths, handle)
            self._settle_count(n_tokens, device_counts, handle)
            self.lengths += 0 if is_captured else numbers
        elif not self.lengths.any() and not is_captured:
            self._fill(sides, numbers, device_counts, handle)
        else:
            self._step(sides, numbers, device_counts, is_captured, handle)

    def _numbers(self, counts: Sequence[int] | None, n_tokens: int) -> NDArray[np.int64]:
        numbers = np.full(self.n_seqs, n_tokens) if counts is None else np.asarray(counts, np.int64)
        if numbers.shape != (self.n_seqs,) or (n_tokens and not 0 <= numbers.min() <= numbers.max() <= n_tokens):
            raise OptionError(f"counts {numbers.tolist()}; allowed are {self.n_seqs} numbers from 0 to {n_tokens}")
        return numbers.astype(np.int64)

    def _settle_count(self, n_tokens: int, counts: Any, stream: int) -> None:
        from turbocode.kernels.attention.exact_tokens import COUNT

        self._exact.settle(COUNT, stream, n_tokens=n_tokens, counts=counts)

    def _encode(self, sides: list[Any], starts: Any, stream: int) -> None:
        for coder, side, blocks in zip(self._coders, sides, self.blocks, strict=True):
            coder.encode(side, out=blocks, starts=starts, stream=stream)

    def _fill(self, sides: list[Any], numbers: NDArray[np.int64], counts: Any, stream: int) -> None:
        """The first tokens: whole runs between sinks and recent ones are packed at once."""
        from turbocode.kernels.attention.exact_tokens import PLAN

        n_tokens = sides[0].shape[2]
        self._exact.settle(PLAN, stream, n_tokens=n_tokens, counts=counts)
        for number, side in enumerate(sides):
            self._exact.place(number, side, counts, stream)
        packed = np.maximum(numbers - self.sinks - self.recent, 0) // self.run * self.run
        most = int(packed.max())
        if most:
            # Of shorter sequences that is more than is packed; it lies behind, unseen, and is written again later.
            parts = [side.part(2, self.sinks, self.sinks + most) for side in sides]
            self._encode(parts, self._exact.lengths, stream)
        self._settle_count(n_tokens, counts, stream)
        self.lengths += numbers
        self._packed = packed

    def _step(self, sides: list[Any], numbers: NDArray[np.int64], counts: Any, is_captured: bool, stream: int) -> None:
        n_tokens = sides[0].shape[2]
        if n_tokens > self.run and (counts is not None or is_captured):
            raise OptionError(f"{n_tokens} tokens with counts or in a graph; allowed are {self.run}, the run")
        for start in range(0, n_tokens, self.run):
            stop = min(start + self.run, n_tokens)
            for number, side in enumerate(sides):
                self._exact.place(number, side.part(2, start, stop), counts, stream)
            self._settle_count(stop - start, counts, stream)
            if is_captured:
                self._move(stream)
                continue
            self.lengths += np.minimum(numbers, stop - start)
            is_due = self._is_due()
            if is_due.any():
                self._move(stream)
                self._packed[is_due] += self.run

    def _is_due(self) -> NDArray[np.bool_]:
        return np.asarray(self.lengths - self.sinks - self._packed >= self.recent + self.run)

    def _move(self, stream: int) -> None:
        """Pack the oldest run of every tail that is long enough; the GPU knows which."""
        from turbocode.kernels.attention.exact_tokens import MOVE

        for number in range(len(self.codecs)):
            self._exact.take(number, stream)
        self._encode(self._exact.staged, self._exact.starts, stream)
        self._exact.settle(MOVE, stream)

    def replayed(self, n_tokens: int = 1) -> None:
        """Tell the host that a captured append of n_tokens was replayed. Raises OptionError beyond the capacity."""
        self.lengths += n_tokens
        if self.has_exact_tokens:
            self._packed[self._is_due()] += self.run
        if self.lengths.max() > self.capacity:
            raise OptionError(f"{self.lengths.max()} tokens were appended; the cache has room for {self.capacity}")

    def attend(
        self,
        queries: Any,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        gains: Any = None,
        out: Any = None,
        lse: Any = None,
        stream: Any = None,
    ) -> tuple[Any, Any]:
        """(output, lse) of the latest tokens' queries over the cache: type and shape of queries, float32 without
        head_dim.

        queries : (n_seqs, n_query_heads, n_rows, head_dim); row r belongs to token length - n_rows + r of its sequence
            and sees the tokens up to it, as they are kept: of a prompt that was appended, most are packed
        window : tokens seen, 0 for all; only where no tokens are kept exactly
        Other arguments are GpuAttention's.
        """
        from turbocode.kernels import _launch
        from turbocode.kernels.attention.exact_tokens import ROWS
        from turbocode.kernels.gpu_call import view

        if window and self.has_exact_tokens:
            raise OptionError("a sliding window needs a cache without sinks and recent tokens")
        rows = _launch.device_array(queries)
        handle = _launch.stream_handle(stream, rows.stream)
        last_packed, last_exact = self._row_numbers(rows.shape[2] if len(rows.shape) == 4 else 0)
        self._exact.settle(ROWS, handle, rows=(last_packed, last_exact))
        options = {"scale": scale, "softcap": softcap, "gains": gains, "stream": handle}
        keys, values = self.blocks[0], self.blocks[-1]
        if not self.has_exact_tokens:
            return self._attention(queries, keys, values, last_exact, window=window, out=out, lse=lse, **options)
        outputs, lses, first, second = self._two_parts(rows.shape)
        self._attention(queries, keys, values, last_packed, out=first[0], lse=first[1], **options)
        exact = [view(part, (*part.shape[:3], 2 * part.shape[3]), "uint8") for part in self._exact.exact]
        self._exact_attention(queries, exact[0], exact[-1], last_exact, out=second[0], lse=second[1], **options)
        if out is None:
            out = _launch.empty(rows, rows.shape, rows.dtype)
        if lse is None:
            lse = _launch.empty(rows, rows.shape[:-1], "float32")
        return merge_on_gpu(outputs, lses, out=out, lse=lse, stream=handle)

    def _row_numbers(self, n_rows: int) -> tuple[Any, Any]:
        from turbocode.kernels import _launch

        if n_rows not in self._rows:
            shape = (self.n_seqs, n_rows)
            first, second = (_launch.upload(np.zeros(shape, np.int32), self._like.device) for _ in range(2))
            self._rows[n_rows] = first, second
        return self._rows[n_rows]

    def _two_parts(self, shape: tuple[int, ...]) -> tuple[Any, Any, tuple[Any, Any], tuple[Any, Any]]:
        """Outputs and log-sum-exps of both parts, together, of the packed and of the exact one; a step's are kept."""
        from turbocode.kernels import _launch

        if shape in self._parts:
            return self._parts[shape]
        sizes = (2, *shape), (2, *shape[:-1])
        outputs, lses = (_launch.device_array(_launch.empty(self._like, size, "float32")) for size in sizes)
        first, second = ((outputs.part(0, i), lses.part(0, i)) for i in range(2))
        found = outputs, lses, first, second
        if shape[2] <= MOST_IN_A_STEP:
            self._parts[shape] = found
        return found
