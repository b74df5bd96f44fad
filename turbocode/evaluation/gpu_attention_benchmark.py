"""How fast a GPU attends over packed blocks, beside float16 attention, a copy and the ways around a packed kernel.

Everything runs in one process, each attention as a replayed CUDA graph over copies of the cache that do not fit the L2
cache (cold_timing.py). Bandwidth counts bytes read plus bytes written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from turbocode.codecs import Codec, make_codec
from turbocode.codecs.gpu_attention import GpuAttention
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.errors import OptionError, TurbocodeError
from turbocode.evaluation.attention_shapes import AttentionShape
from turbocode.evaluation.cold_timing import COLD_CACHES, ColdTimer, Work
from turbocode.evaluation.gpu_attention_error import ERROR_BOUND, ExactAttention, some_heads
from turbocode.evaluation.gpu_attention_rivals import (
    VLLM_BITS,
    Rival,
    flashinfer_attention,
    float16_attention,
    vllm_attention,
)
from turbocode.evaluation.gpu_memory import GpuMemory
from turbocode.evaluation.kernel_benchmark import host_seconds
from turbocode.kernels.attention.lookup import TableKind
from turbocode.kernels.attention.skipping import EVERYTHING, Skipping

SLOW_REPEATS = 3  # of what takes long and is not what is measured
COPY_BYTES = 1 << 30
HOST_CALLS = 20
SPARE_BYTES = 1 << 30  # of the GPU's memory that contexts and libraries take

Pair = tuple[str, str]


def benchmark_attention_on_gpu(
    device: int,
    shapes: Mapping[str, AttentionShape],
    pairs: Sequence[Pair],
    *,
    repeats: int = 20,
    seed: int = 0,
    plain: Sequence[str] | None = None,
    advance: Callable[[int], None] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
    copy_bytes: int = COPY_BYTES,
    skipping: Skipping = EVERYTHING,
    tables: TableKind | None = None,
    logit_scale: float = 1.0,
) -> dict[str, Any]:
    """A JSON object: device, copy_gb_per_s, repeats, seed, error_bound, and shapes, each with float16, rivals, codecs.

    pairs : codecs of keys and values; plain : codecs of keys whose plain kernel is timed too, None: all
    Every entry has `problem`: None, or why it has no figures. Of a codec: seconds, gb_per_s, share_of_copy, ratio (best
    float16 / ours), bytes_allow (the ratio at equal bandwidth), share_of_bytes (ratio / bytes_allow), relative_error
    (L2, against float64 attention over the decoded values of some heads), is_within_bound, host_seconds (of a call
    without a graph), plain_seconds and plain_error, and of decoding everything first, decode_seconds and
    decoded_attention_seconds.
    skipping : what our kernels may leave out; tables : where they look centroids up, None where it is fastest. With
    either there are default_seconds and default_error too, of an attention without. What is left out
    tells where attention is peaked: logit_scale is a factor on all logits, whose standard deviation is else 1.
    advance : called with 1 after each pair of each shape; keep : called with the result so far after each shape
    """
    from turbocode.kernels._graph import Gpu

    gpu = Gpu(device)
    memory = GpuMemory(gpu, seed)
    copy = _copy_bandwidth(memory, repeats, copy_bytes)
    result: dict[str, Any] = {
        "device": {
            "name": gpu.name,
            "compute_capability": list(gpu.compute_capability),
            "l2_bytes": gpu.l2_bytes,
            "memory_bytes": gpu.memory_bytes,
        },
        "torch": None if memory.torch is None else str(memory.torch.__version__),
        "copy_gb_per_s": copy / 1e9,
        "repeats": repeats,
        "seed": seed,
        "l2": f"cold: copies of a cache in turn, together {COLD_CACHES} times the L2 cache",
        "error_bound": ERROR_BOUND,
        **skipping._asdict(),
        "tables": tables.value if tables else None,
        "logit_scale": logit_scale,
        "shapes": [],
    }
    for name, shape in shapes.items():
        result["shapes"].append(
            _Run(memory, name, shape, repeats, copy, skipping, tables, logit_scale).figures(pairs, plain, advance)
        )
        memory.release()
        if keep:
            keep(result)
    return result


def _copy_bandwidth(memory: GpuMemory, repeats: int, n_bytes: int) -> float:
    """Bytes a second, read plus written, of a copy within the device."""
    gpu = memory.gpu
    source, target = (gpu.empty((n_bytes,), "uint8") for _ in range(2))
    return 2 * n_bytes / gpu.seconds(lambda: gpu.copy(source, target, n_bytes), repeats)


class _Run:
    """One shape: its inputs, and what each attention over them takes."""

    def __init__(
        self,
        memory: GpuMemory,
        name: str,
        shape: AttentionShape,
        repeats: int,
        copy: float,
        skipping: Skipping,
        tables: TableKind | None,
        logit_scale: float,
    ) -> None:
        self.memory, self.gpu, self.name, self.shape = memory, memory.gpu, name, shape
        self.timer, self.copy = ColdTimer(memory, repeats), copy
        self.skipping, self.tables = skipping, tables
        self.scale = logit_scale * shape.head_dim**-0.5

    def figures(
        self, pairs: Sequence[Pair], plain: Sequence[str] | None, advance: Callable[[int], None] | None
    ) -> dict[str, Any]:
        """The shape's part of the result."""
        found: dict[str, Any] = {"name": self.name, "shape": asdict(self.shape), "problem": self._does_not_fit(pairs)}
        if found["problem"]:
            if advance:
                advance(len(pairs))
            return {**found, "float16": [], "best_float16": None, "rivals": [], "codecs": []}
        shape, memory = self.shape, self.memory
        cache_shape = (shape.batch, shape.kv_heads, shape.tokens, shape.head_dim)
        rows = (shape.batch, shape.q_heads, 1, shape.head_dim)
        self.keys, self.values, self.queries = (memory.normal(s) for s in (cache_shape, cache_shape, rows))
        self.last = memory.integers(np.full((shape.batch, 1), shape.tokens - 1, np.int32))
        self.out = memory.empty(rows, "float16")
        self.lse = memory.empty(rows[:-1], "float32")
        heads = some_heads(shape.batch, shape.kv_heads, memory.seed)
        self.exact = ExactAttention(memory, heads, self.queries, shape.kv_heads, self.scale)
        float16 = self._float16_rows()
        timed = [row for row in float16 if row["problem"] is None]
        best = min(timed, key=lambda row: row["seconds"]) if timed else None
        self.best_seconds = best["seconds"] if best else None
        self.best_rival = self._best(best["name"]) if best else None
        rivals = self._rival_rows()
        codecs = []
        for pair in pairs:
            codecs.append(self._pair_row(pair, plain is None or pair[0] in plain))
            if advance:
                advance(1)
        return {
            **found,
            "float16": float16,
            "best_float16": best["name"] if best else None,
            "rivals": rivals,
            "codecs": codecs,
        }

    def _does_not_fit(self, pairs: Sequence[Pair]) -> str | None:
        """Why the GPU's memory does not hold the inputs, or None."""
        cache = self.shape.float16_bytes
        blocks = max((_block_bytes(pair, self.shape) for pair in pairs), default=0)
        cold = COLD_CACHES * self.gpu.l2_bytes
        # Decoding everything first takes as much again.
        needed = 2 * cache + 2 * cold + blocks + SPARE_BYTES
        free = self.memory.free_bytes
        return f"needs {needed >> 20:,} MiB of GPU memory, of which {free >> 20:,} are free" if needed > free else None

    def _float16_rows(self) -> list[dict[str, Any]]:
        n_copies = self.timer.n_copies(self.shape.float16_bytes)
        n_bytes = self.shape.float16_bytes // 2
        copies = [(self.keys, self.values)]
        if self.memory.torch is not None:
            for _ in range(n_copies - 1):
                copies.append((self.memory.copy(self.keys, n_bytes), self.memory.copy(self.values, n_bytes)))
            self.gpu.wait()
        self.copies = copies
        rivals = float16_attention(self.memory, self.shape, self.queries, copies, self.scale)
        return [self._rival_row(rival, n_copies) for rival in rivals]

    def _best(self, name: str) -> Callable[[Any, Any], Rival]:
        """The best float16 attention, over other keys and values."""

        def over(keys: Any, values: Any) -> Rival:
            rivals = float16_attention(self.memory, self.shape, self.queries, [(keys, values)], self.scale)
            return next(rival for rival in rivals if rival.name == name)

        return over

    def _rival_rows(self) -> list[dict[str, Any]]:
        makers: dict[str, Callable[[], Rival]] = {
            "FlashInfer": lambda: flashinfer_attention(self.memory, self.shape, self.queries, self.copies, self.scale),
            **{
                f"vLLM Triton, {bits} bits": lambda bits=bits: vllm_attention(  # type: ignore[misc]
                    self.memory, self.shape, self.queries, bits, self.scale
                )
                for bits in VLLM_BITS
            },
        }
        rows = []
        for name, make in makers.items():
            try:
                rival = make()
            except Exception as failure:  # of another project's code, whatever it raises
                rival = Rival(name, None, 0, problem=_phrase(failure))
            rows.append(self._rival_row(rival, len(self.copies)))
        del self.copies[1:]
        return rows

    def _rival_row(self, rival: Rival, n_copies: int) -> dict[str, Any]:
        row: dict[str, Any] = {"name": rival.name, "bits_per_value": rival.bits_per_value, "problem": rival.problem}
        row.update(seconds=None, gb_per_s=None, share_of_copy=None, host_seconds=None)
        if rival.work is None:
            return row
        work = rival.work
        try:
            with rival.context():
                seconds = self.timer.seconds(work, n_copies, is_torch=True)
                with self.memory.stream:
                    host = host_seconds(lambda: work(0), self.gpu.wait, HOST_CALLS)
        except Exception as failure:  # of another project's code: torch raises RuntimeError for what it does not know
            return {**row, "problem": _phrase(failure)}
        return {**row, **self._rates(rival.n_bytes, seconds), "host_seconds": host}

    def _rates(self, n_bytes: int, seconds: float) -> dict[str, float]:
        rate = n_bytes / seconds
        return {"seconds": seconds, "gb_per_s": rate / 1e9, "share_of_copy": rate / self.copy}

    def _pair_row(self, pair: Pair, has_plain: bool) -> dict[str, Any]:
        row: dict[str, Any] = {"k": pair[0], "v": pair[1], "problem": None}
        try:
            codecs = [make_codec(name, self.shape.head_dim) for name in pair]
            return {**row, **self._pair_figures(codecs[0], codecs[1], has_plain)}
        except TurbocodeError as failure:
            return {**row, "problem": failure.message}

    def _pair_figures(self, key_codec: Codec, value_codec: Codec, has_plain: bool) -> dict[str, Any]:
        gpu, memory, shape = self.gpu, self.memory, self.shape
        sides = []
        for codec, values in ((key_codec, self.keys), (value_codec, self.values)):
            blocks = memory.empty((*values.shape[:-1], codec.bytes_per_vector), "uint8")
            GpuCodec(codec, is_exact=False).encode(values, out=blocks, stream=gpu.stream)
            sides.append(blocks)
        gpu.wait()
        block_bytes = [shape.n_vectors * codec.bytes_per_vector for codec in (key_codec, value_codec)]
        n_copies = self.timer.n_copies(sum(block_bytes))
        copies = [sides]
        for _ in range(n_copies - 1):
            copies.append([memory.copy(part, n) for part, n in zip(sides, block_bytes, strict=True)])
        gpu.wait()
        expected = self.exact.outputs(key_codec, sides[0], value_codec, sides[1])

        def attend(attention: GpuAttention) -> Work:
            def work(i: int) -> None:
                keys, values = copies[i % n_copies]
                attention(
                    *(self.queries, keys, values, self.last),
                    scale=self.scale,
                    out=self.out,
                    lse=self.lse,
                    stream=gpu.stream,
                )

            return work

        work = attend(GpuAttention(key_codec, value_codec, skipping=self.skipping, tables=self.tables))
        seconds = self.timer.seconds(work, n_copies)
        error = self.exact.error(self.out, expected)
        host = host_seconds(lambda: work(0), gpu.wait, HOST_CALLS)
        bytes_allow = shape.float16_bytes / sum(block_bytes)
        ratio = self.best_seconds / seconds if self.best_seconds else None
        figures = {
            "bits_per_value": (key_codec.bits_per_value + value_codec.bits_per_value) / 2,
            "n_bytes": sum(block_bytes) + shape.row_bytes,
            "n_copies": n_copies,
            **self._rates(sum(block_bytes) + shape.row_bytes, seconds),
            "ratio": ratio,
            "bytes_allow": bytes_allow,
            "share_of_bytes": ratio / bytes_allow if ratio else None,
            "relative_error": error,
            "is_within_bound": error <= ERROR_BOUND,
            "host_seconds": host,
            "plain_seconds": None,
            "plain_error": None,
            "default_seconds": None,
            "default_error": None,
        }
        if self.skipping.is_on or self.tables is not None:
            figures["default_seconds"] = self.timer.seconds(attend(GpuAttention(key_codec, value_codec)), n_copies)
            figures["default_error"] = self.exact.error(self.out, expected)
        if has_plain:
            plain = attend(GpuAttention(key_codec, value_codec, is_plain=True))
            figures["plain_seconds"] = self.timer.seconds(plain, 1, repeats=SLOW_REPEATS)
            figures["plain_error"] = self.exact.error(self.out, expected)
        return {**figures, **self._decoded_first(key_codec, value_codec, copies)}

    def _decoded_first(self, key_codec: Codec, value_codec: Codec, copies: list[list[Any]]) -> dict[str, Any]:
        """Seconds of decoding the whole cache into float16, and of that with the best float16 attention behind it."""
        decoders = [GpuCodec(codec, is_exact=False) for codec in (key_codec, value_codec)]
        decoded = [self.memory.empty(tuple(values.shape), "float16") for values in (self.keys, self.values)]

        def decode(i: int, stream: Any = None) -> None:
            for decoder, blocks, target in zip(decoders, copies[i % len(copies)], decoded, strict=True):
                decoder.decode(blocks, out=target, stream=stream)

        found: dict[str, Any] = {
            "decode_seconds": self.timer.seconds(lambda i: decode(i, self.gpu.stream), len(copies)),
            "decoded_attention_seconds": None,
        }
        if self.best_rival is not None:
            best = self.best_rival(*decoded)
            attend = best.work
            assert attend is not None

            def both(i: int) -> None:
                decode(i)  # in torch's stream
                attend(0)

            with best.context():
                found["decoded_attention_seconds"] = self.timer.seconds(both, len(copies), is_torch=True)
        return found


def _block_bytes(pair: Pair, shape: AttentionShape) -> int:
    """Bytes of a pair's blocks; 0 where a codec cannot hold the head_dim."""
    try:
        return sum(shape.n_vectors * make_codec(name, shape.head_dim).bytes_per_vector for name in pair)
    except OptionError:
        return 0


def _phrase(failure: Exception) -> str:
    """A failure of another project's code in one line."""
    lines = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__}: {lines[0][:200]}"
