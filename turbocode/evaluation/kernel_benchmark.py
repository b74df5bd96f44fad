"""How fast the GPU's kernels are, each beside a copy of the same memory that is timed in the same run.

Every kernel runs as a replayed CUDA graph between two events, on Gaussian data larger than the cache. Bandwidth counts
bytes read plus bytes written.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.errors import OptionError
from turbocode.kernels.fwht import Rotation

CODECS = (
    "turbo2",
    "turbo3",
    "turbo4",
    "turbo3_0",
    "q8_0",
    "q4_0",
    "f16",
    "trellis1",
    "trellis2",
    "trellis3",
    "trellis4",
)
FWHT_SIZES = (64, 128, 256)
MIN_VALUES, MAX_VALUES = 1 << 16, 1 << 33
_TRELLIS_SHARE = 16  # a trellis gets that much less to encode: it takes that much longer
_VALUE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_SEED_VALUES = 1 << 22
_LAUNCHES = 200


@dataclass(frozen=True)
class Case:
    """One kernel to time: work(), n_bytes it reads and writes, n_values it handles."""

    name: str
    work: Callable[[], Any]
    n_bytes: int
    n_values: int


def benchmark_kernels(
    device: int,
    *,
    n_values: int = 1 << 28,
    codecs: Sequence[str] = CODECS,
    repeats: int = 20,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """A JSON object: device, copy_gb_per_s, kernels (name, seconds, gb_per_s, share_of_copy, values_per_s), launches.

    n_values : that each kernel handles, trellis encoders a sixteenth
    launches : microseconds of host time of one call from Python
    Raises OptionError where the GPU's memory does not hold the values.
    """
    from turbocode.kernels._graph import Gpu

    if not MIN_VALUES <= n_values <= MAX_VALUES or n_values % MIN_VALUES:
        raise OptionError(f"{n_values} values; allowed are multiples of {MIN_VALUES} from {MIN_VALUES} to {MAX_VALUES}")
    for name in codecs:
        make_codec(name, 128)
    gpu = Gpu(device)
    needed = 12 * n_values
    if needed > 0.9 * gpu.memory_bytes:
        raise OptionError(
            f"{n_values} values need {needed} bytes of GPU memory; {gpu.name} has {gpu.memory_bytes}",
            hint=f"--values {int(0.9 * gpu.memory_bytes / 12) // MIN_VALUES * MIN_VALUES}",
        )
    memory = _Memory(gpu, n_values)
    n_bytes = 4 * n_values
    copy = 2 * n_bytes / gpu.seconds(lambda: gpu.copy(memory.source, memory.target, n_bytes), repeats)
    rows = []
    for case in (*_rotations(memory), *_coders(memory, codecs), *_rivals(memory)):
        seconds = gpu.graph_seconds(case.work, repeats)
        rows.append(
            {
                "name": case.name,
                "seconds": seconds,
                "gb_per_s": case.n_bytes / seconds / 1e9,
                "share_of_copy": case.n_bytes / seconds / copy,
                "values_per_s": case.n_values / seconds,
            }
        )
        if advance:
            advance(1)
    return {
        "device": {"name": gpu.name, "compute_capability": list(gpu.compute_capability)},
        "n_values": n_values,
        "repeats": repeats,
        "copy_gb_per_s": copy / 1e9,
        "kernels": rows,
        "launches": [{"name": name, "microseconds": 1e6 * s} for name, s in _launches(gpu)],
    }


class _Memory:
    """Two float32 arrays' worth of memory and one of float16, filled with Gaussian values."""

    def __init__(self, gpu: Any, n_values: int) -> None:
        self.gpu, self.n_values = gpu, n_values
        self.source, self.target = (gpu.empty((n_values,), "float32") for _ in range(2))
        self.extra = gpu.empty((n_values,), "float16")
        self._seed = np.random.default_rng(0).standard_normal(min(n_values, _SEED_VALUES), dtype=np.float32)

    def fill(self, dtype: str) -> None:
        """Fill the source with Gaussian values of a type."""
        seed = self._seed
        if dtype == "bfloat16":
            stored: Any = (seed.view(np.uint32) >> 16).astype(np.uint16)
        else:
            stored = seed.astype(dtype)
        self.gpu.fill(self.source, stored, self.n_values * _VALUE_BYTES[dtype])

    def view(self, array: Any, shape: tuple[int, ...], dtype: str) -> Any:
        """The beginning of one of the arrays in another shape."""
        from turbocode.kernels.gpu_call import view

        return view(array, shape, dtype)


def _plain_rotation(g: int) -> Rotation:
    """The transform without signs, of sizes that no format has too."""
    ones = np.ones(g, np.float32)
    return Rotation("hadamard", g, g, np.ones((1, 1), np.float32), ones, ones)


def _rotations(memory: _Memory) -> Iterator[Case]:
    from turbocode.kernels.fwht import cuda

    stream = memory.gpu.stream
    for dtype, size in _VALUE_BYTES.items():
        memory.fill(dtype)
        for g in FWHT_SIZES:
            shape = (memory.n_values // g, g)
            x, y = (memory.view(a, shape, dtype) for a in (memory.source, memory.target))
            rotation = _plain_rotation(g)
            yield Case(
                f"FWHT {g} {dtype}",
                lambda x=x, y=y, rotation=rotation: cuda.rotate(x, rotation, out=y, stream=stream),  # type: ignore[misc]
                2 * size * memory.n_values,
                memory.n_values,
            )


def _coders(memory: _Memory, codecs: Sequence[str]) -> Iterator[Case]:
    memory.fill("float16")
    stream = memory.gpu.stream
    for name in codecs:
        codec = make_codec(name, 128)
        is_trellis = codec.block_format.is_trellis
        n_values = max(MIN_VALUES, memory.n_values // _TRELLIS_SHARE) if is_trellis else memory.n_values
        n = n_values // 128
        x, y = (memory.view(a, (n, 128), "float16") for a in (memory.source, memory.extra))
        blocks = memory.view(memory.target, (n, codec.bytes_per_vector), "uint8")
        n_bytes = n * (256 + codec.bytes_per_vector)
        has_fast = codec.block_format.has_codebook
        for is_exact in (True, False) if has_fast else (True,):
            gpu = GpuCodec(codec, is_exact=is_exact)
            kind = "exact" if is_exact else "fast"
            yield Case(
                f"encode {name} {kind}",
                lambda gpu=gpu, x=x, blocks=blocks: gpu.encode(x, out=blocks, stream=stream),  # type: ignore[misc]
                n_bytes,
                n_values,
            )
            if is_exact and is_trellis:
                yield from _placements(codec, blocks, y, n_bytes, n_values, stream)
            if is_exact or not is_trellis:
                yield Case(
                    f"decode {name} {kind}",
                    lambda gpu=gpu, blocks=blocks, y=y: gpu.decode(blocks, out=y, stream=stream),  # type: ignore[misc]
                    n_bytes,
                    n_values,
                )


def _placements(codec: Any, blocks: Any, y: Any, n_bytes: int, n_values: int, stream: int) -> Iterator[Case]:
    """Decoding a trellis with its table elsewhere than in shared memory, where it is by default."""
    from turbocode.kernels.scalar.cuda import Decoder
    from turbocode.kernels.scalar.decode_lanes import Placement
    from turbocode.kernels.trellis.cuda import decode_choice

    table = codec.tables(0)[0]
    for placement, where in ((Placement.CACHED, "the cache"), (Placement.CONSTANT, "constant memory")):
        decoder = Decoder(codec.block_format, codec.rotation, table, decode_choice(placement, table))
        yield Case(
            f"decode {codec.name} exact, table in {where}",
            lambda decoder=decoder: decoder(blocks, out=y, stream=stream),  # type: ignore[misc]
            n_bytes,
            n_values,
        )


def _rivals(memory: _Memory) -> Iterator[Case]:
    """Dao's fast_hadamard_transform, where it is installed."""
    try:
        import torch
        from fast_hadamard_transform import hadamard_transform
    except ImportError:
        return
    for dtype in ("float16", "bfloat16", "float32"):
        for g in FWHT_SIZES:
            x = torch.randn(memory.n_values // g, g, device="cuda", dtype=getattr(torch, dtype))
            stream = torch.cuda.ExternalStream(memory.gpu.stream)

            def work(x: Any = x, stream: Any = stream) -> None:
                with torch.cuda.stream(stream):
                    hadamard_transform(x)

            yield Case(
                f"fast_hadamard_transform {g} {dtype}", work, 2 * _VALUE_BYTES[dtype] * memory.n_values, memory.n_values
            )


def _launches(gpu: Any) -> Iterator[tuple[str, float]]:
    """(what, seconds of host time a call) for one new token of eight heads."""
    codec = GpuCodec(make_codec("turbo3", 128))
    values = gpu.empty((1, 8, 1, 128), "float16")
    out, cache = gpu.empty((1, 8, 1, 50), "uint8"), gpu.empty((1, 8, 64, 50), "uint8")
    starts = gpu.empty((1,), "int32")
    gpu.upload(np.zeros(1, np.int32), starts)
    gpu.wait()
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("encode, pointers", lambda: codec.encode(values, out=out, stream=gpu.stream)),
        ("encode into a cache, pointers", lambda: codec.encode(values, out=cache, starts=starts, stream=gpu.stream)),
    ]
    try:
        import torch

        x = torch.randn(1, 8, 1, 128, device="cuda", dtype=torch.float16)
        y = torch.zeros(1, 8, 1, 50, device="cuda", dtype=torch.uint8)
        room = torch.zeros(1, 8, 64, 50, device="cuda", dtype=torch.uint8)
        begin = torch.zeros(1, device="cuda", dtype=torch.int32)
        cases += [
            ("encode, torch tensors", lambda: codec.encode(x, out=y)),
            ("encode into a cache, torch tensors", lambda: codec.encode(x, out=room, starts=begin)),
            ("encode to a new torch tensor", lambda: codec.encode(x)),
        ]
    except ImportError:
        pass
    codec.encode(values, out=out, stream=gpu.stream)
    gpu.wait()
    graph = gpu.capture(cases[0][1])
    cases.append(("encode, replayed graph", lambda: gpu.replay(graph)))
    for name, work in cases:
        yield name, host_seconds(work, gpu.wait, _LAUNCHES)


def host_seconds(work: Callable[[], Any], wait: Callable[[], None], n_calls: int) -> float:
    """Median seconds of host time of a call, from rounds of n_calls that `wait` ends, so that the queue stays short."""
    for _ in range(n_calls):
        work()
    found = []
    for _ in range(11):
        wait()
        start = time.perf_counter()
        for _ in range(n_calls):
            work()
        found.append((time.perf_counter() - start) / n_calls)
    wait()
    return statistics.median(found)


def n_cases(codecs: Sequence[str]) -> int:
    """How many kernels `benchmark_kernels` times, for a progress bar."""
    formats = [make_codec(name, 128).block_format for name in codecs]
    counts = [5 if form.is_trellis else 4 if form.has_codebook else 2 for form in formats]
    return len(_VALUE_BYTES) * len(FWHT_SIZES) + sum(counts)
