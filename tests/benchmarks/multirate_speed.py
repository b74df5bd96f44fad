"""Decode attention over multirate blocks on a GPU, beside trellis3 and the best float16, at the project's shapes.

    python tests/benchmarks/multirate_speed.py FILE.json [--shape NAME ...] [--schedule NAME ...] [--warps N]

Blocks are random bytes of one gain: any bytes are blocks, and what a kernel does depends on the schedules alone. All in
one process, as replayed graphs that find the L2 cache cold. Needs torch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = ("long", "batch-16", "wide-groups", "wide-heads")
# Bits of the runs of 8 channels of 128, keys and values; other head_dims repeat or leave out.
SCHEDULES = {
    "tuned 3.2": ((6, 4, *(3,) * 10, *(2,) * 4), (7, 5, 5, 5, 5, 4, 4, 4, 3, 3, 2, 2, 2, 1, 1, 0)),
    "tuned 2.8": ((8, 5, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 2, 2, 1), (6, 5, 5, 4, 3, 3, 3, 2, 2, 1, 1, 1, 0, 0, 0, 0)),
    "steep 3": ((8, 7, 6, 5, 4, 4, 3, 3, 2, 2, 1, 1, 1, 1, 0, 0),) * 2,
    "flat 3": ((3,) * 16,) * 2,
    "flat 2": ((2,) * 16,) * 2,
    "flat 4": ((4,) * 16,) * 2,
}
GAIN_ONE = 145  # the byte of gain 1
BESIDE = ("trellis3", "trellis2", "turbo3")


def rates_of(schedule: Sequence[int], head_dim: int) -> list[int]:
    """The schedule for another head_dim, in the same order of rates."""
    n = head_dim // 8
    return [schedule[number * len(schedule) // n] for number in range(n)]


def codec_of(rates: Sequence[int], n_heads: int) -> Any:
    """A codec in the basis in which its vectors stand, without sigma."""
    from turbocode.codecs import multirate_codec

    d = 8 * len(rates)
    ones = np.ones((n_heads, d), np.float32)
    return multirate_codec(np.tile(np.eye(d), (n_heads, 1, 1)), 0 * ones, ones, rates, "whitened")


class Bench:
    """One shape's inputs."""

    def __init__(self, memory: Any, shape: Any, repeats: int) -> None:
        from turbocode.evaluation.cold_timing import ColdTimer

        self.memory, self.gpu, self.shape, self.timer = memory, memory.gpu, shape, ColdTimer(memory, repeats)
        self.scale = shape.head_dim**-0.5
        self.rows = (shape.batch, shape.q_heads, 1, shape.head_dim)
        self.queries = memory.normal(self.rows)
        self.last = memory.integers(np.full((shape.batch, 1), shape.tokens - 1, np.int32))
        self.out, self.lse = memory.empty(self.rows, "float16"), memory.empty(self.rows[:-1], "float32")

    def float16(self) -> float:
        """Seconds of the best attention over float16."""
        from turbocode.evaluation.gpu_attention_rivals import float16_attention

        shape, memory = self.shape, self.memory
        side = (shape.batch, shape.kv_heads, shape.tokens, shape.head_dim)
        n_copies = self.timer.n_copies(shape.float16_bytes)
        copies = [(memory.normal(side), memory.normal(side)) for _ in range(n_copies)]
        best = float("inf")
        for rival in float16_attention(memory, shape, self.queries, copies, self.scale):
            try:
                with rival.context():
                    best = min(best, self.timer.seconds(rival.work, n_copies, is_torch=True))
            except RuntimeError as failure:  # torch knows not every way
                print(f"  {rival.name}: {str(failure).splitlines()[0][:100]}", flush=True)
        return best

    def blocks(self, codec: Any) -> Any:
        """Random blocks of one gain."""
        shape, torch = self.shape, self.memory.torch
        size = (shape.batch, shape.kv_heads, shape.tokens, codec.bytes_per_vector)
        found = torch.randint(0, 256, size, dtype=torch.uint8, device=self.memory.device)
        if codec.block_format.name == "multirate":
            found[..., 0] = GAIN_ONE
        else:  # float16 norms of about one
            found[..., 1] = 0x3C
        torch.cuda.synchronize()
        return found

    def packed(self, keys: Any, values: Any, layout: Any) -> tuple[float, Any]:
        """(seconds, relative error of one head or None) of the fast kernel."""
        from turbocode.codecs.gpu_attention import GpuAttention

        n_bytes = self.shape.n_vectors * (keys.bytes_per_vector + values.bytes_per_vector)
        n_copies = self.timer.n_copies(n_bytes)
        copies = [(self.blocks(keys), self.blocks(values)) for _ in range(n_copies)]
        attention: Any = GpuAttention(keys, values)
        assert not attention.is_plain
        if layout is not None and keys.block_format.name == "multirate":
            attention._attend.shape = layout

        def work(i: int) -> None:
            attention(
                *(self.queries, *copies[i % n_copies], self.last),
                **{"scale": self.scale, "out": self.out, "lse": self.lse, "stream": self.gpu.stream},
            )

        seconds = self.timer.seconds(work, n_copies)
        work(0)
        self.gpu.wait()
        return seconds, self._error(keys, values, *copies[0]) if keys.block_format.name == "multirate" else None

    def _error(self, keys: Any, values: Any, key_blocks: Any, value_blocks: Any) -> float:
        from turbocode.evaluation.gpu_attention_error import exact_output

        per_head = self.shape.q_heads // self.shape.kv_heads
        sides = [
            codec.decode(part[0, 0].cpu().numpy(), 0, unrotate=False).astype(np.float64)
            for codec, part in ((keys, key_blocks), (values, value_blocks))
        ]
        rows = self.queries[0, :per_head, 0].double().cpu().numpy()
        tiles = [lambda start, stop, side=side: side[start:stop] for side in sides]
        expected = exact_output(np, rows, *tiles, self.shape.tokens, self.scale)
        found = self.out[0, :per_head, 0].double().cpu().numpy()
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", action="append")
    parser.add_argument("--schedule", action="append", choices=SCHEDULES)
    parser.add_argument("--warps", type=int)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from turbocode.codecs import make_codec
    from turbocode.evaluation.attention_shapes import TARGET_SHAPES
    from turbocode.evaluation.gpu_memory import GpuMemory
    from turbocode.kernels._graph import Gpu
    from turbocode.kernels.attention.cuda import Shape

    gpu = Gpu(0)
    memory, start, result = GpuMemory(gpu, 0), time.perf_counter(), []
    layout = Shape(args.warps, 1, 2) if args.warps else None
    for name in args.shape or SHAPES:
        shape = TARGET_SHAPES[name]
        bench = Bench(memory, shape, args.repeats)
        best = bench.float16()
        print(f"{gpu.name}, {name}: {shape}; best float16 {1e6 * best:.1f} us", flush=True)
        pairs = {codec: (make_codec(codec, shape.head_dim),) * 2 for codec in BESIDE}
        for label in args.schedule or SCHEDULES:
            sides = (codec_of(rates_of(rates, shape.head_dim), shape.kv_heads) for rates in SCHEDULES[label])
            pairs[label] = tuple(sides)  # type: ignore[assignment]
        times = {}
        for label, (keys, values) in pairs.items():
            seconds, error = bench.packed(keys, values, layout)
            times[label] = seconds
            n_bytes = keys.bytes_per_vector + values.bytes_per_vector
            share = times["trellis3"] / seconds
            result.append({"shape": name, "codec": label, "seconds": seconds, "float16": best, "error": error})
            print(
                f"  {label:12s} {4 * n_bytes / shape.head_dim:4.2f} bits {1e6 * seconds:8.1f} us "
                f"{best / seconds:5.2f}x float16 {share:5.2f}x trellis3"
                f"{'' if error is None else f', error {error:.1e}'} [{time.perf_counter() - start:.0f} s]",
                flush=True,
            )
            args.file.write_text(json.dumps(result, indent=1) + "\n")
        memory.release()


if __name__ == "__main__":
    main()
