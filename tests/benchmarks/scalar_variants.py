"""Times the scalar kernels compiled for different numbers of threads a block and blocks a multiprocessor.

    python tests/benchmarks/scalar_variants.py [--values 268435456] [-o variants.json] [--only 'turbo3 ']

Each variant is first held against the CPU on some thousand groups; one that fails, or spills, is said to and not timed.
A row is one kernel: threads, blocks asked for, registers, blocks that run at once, microseconds, share of a copy. The
defaults, marked with a star, are the constants of encode_tensor.py, decode_tensor.py and encode_ggml.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.kernels import _launch
from turbocode.kernels._cuda import multiprocessors
from turbocode.kernels._graph import Gpu
from turbocode.kernels.gpu_call import view
from turbocode.kernels.scalar import decode_tensor, encode_ggml, encode_tensor

N_CHECKED = 4099  # groups, no multiple of what a block handles
G = 128
MAX_WRONG_GROUPS = 0.01  # of the fast encoders: a group is off if one index or the norm is; tests/kernels/test_cuda.py
MAX_ERROR = 2e-4  # of the fast decoders, relative to the largest value
ENCODINGS = ((64, 10), (128, 4), (128, 5), (128, 6), (256, 2), (256, 3))  # with 7 blocks of 128 they spill
DECODINGS = ((128, 4), (128, 6), (256, 2), (256, 3))
GGML = ((128, 4), (128, 8), (256, 4))


@dataclass
class Row:
    kernel: str
    threads: int
    blocks: int
    is_default: bool
    registers: int = 0
    resident: float = 0.0
    microseconds: float = 0.0
    gb_per_s: float = 0.0
    share_of_copy: float = 0.0
    problem: str = ""


def variants() -> Iterator[tuple[str, str, ModuleType, int, int]]:
    """(codec, encode or decode, the module whose constants are changed, threads, blocks)"""
    for name in ("turbo2", "turbo3", "turbo4", "turbo3_0"):
        for threads, blocks in ENCODINGS:
            yield name, "encode", encode_tensor, threads, blocks
        for threads, blocks in DECODINGS:
            if name != "turbo4" or threads >= 256:  # its table takes 32 KiB of a block
                yield name, "decode", decode_tensor, threads, blocks
    for name in ("q8_0", "q4_0"):
        for threads, blocks in GGML:
            yield name, "encode", encode_ggml, threads, blocks


def attributes(function: Any) -> tuple[int, int]:
    """(registers, bytes of local memory) of a thread of a loaded kernel."""
    from cuda.bindings import driver

    names = driver.CUfunction_attribute
    wanted = (names.CU_FUNC_ATTRIBUTE_NUM_REGS, names.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
    registers, local_bytes = (int(driver.cuFuncGetAttribute(name, function)[1]) for name in wanted)
    return registers, local_bytes


class Bench:
    """Memory of one GPU, and the speed of a copy within it."""

    def __init__(self, n_values: int, repeats: int) -> None:
        self.gpu, self.n, self.repeats = Gpu(0), n_values // G, repeats
        self.values, self.back = (self.gpu.empty((self.n, G), "float16") for _ in range(2))
        self.blocks = self.gpu.empty((self.n * 2 * G,), "uint8")
        self.rng = np.random.default_rng(0)
        self.gpu.fill(self.values, self.rng.standard_normal((1 << 15, G)).astype(np.float16), n_values * 2)
        n_bytes = n_values * 2
        copy = self.gpu.seconds(lambda: self.gpu.copy(self.values, self.back, n_bytes), repeats)
        self.copy = 2 * n_bytes / copy

    def run(self, name: str, kind: str, module: ModuleType, threads: int, blocks: int) -> Row:
        """The row of one variant; the module's constants are put back afterwards."""
        kept: Any = module.THREADS, module.BLOCKS_PER_MULTIPROCESSOR
        row = Row(f"{kind} {name}", threads, blocks, kept == (threads, blocks))
        make = module.decode_kernel if kind == "decode" else module.encode_kernel
        module.THREADS, module.BLOCKS_PER_MULTIPROCESSOR = threads, blocks  # type: ignore[attr-defined]
        make.cache_clear()
        try:
            self._time(row, name, kind)
        except Exception as problem:
            row.problem = f"{type(problem).__name__}: {str(problem).splitlines()[0][:90]}"
        finally:
            module.THREADS, module.BLOCKS_PER_MULTIPROCESSOR = kept  # type: ignore[attr-defined]
            make.cache_clear()
        return row

    def _time(self, row: Row, name: str, kind: str) -> None:
        codec = make_codec(name, G)
        coder, gpu = GpuCodec(codec, is_exact=not codec.block_format.has_codebook), self.gpu
        before = set(_launch._loaded)
        row.problem = self._check(codec, coder, kind)
        (kernel, device) = (set(_launch._loaded) - before).pop()
        function, resident = _launch._loaded[kernel, device]
        row.registers, local_bytes = attributes(function)
        row.resident = resident / multiprocessors()
        if local_bytes:
            row.problem = row.problem or f"{local_bytes} bytes a thread in local memory"
        if row.problem:
            return
        stored = view(self.blocks, (self.n, codec.bytes_per_vector), "uint8")
        coder.encode(self.values, out=stored, stream=gpu.stream)
        if kind == "encode":
            seconds = gpu.graph_seconds(lambda: coder.encode(self.values, out=stored, stream=gpu.stream), self.repeats)
        else:
            seconds = gpu.graph_seconds(lambda: coder.decode(stored, out=self.back, stream=gpu.stream), self.repeats)
        speed = self.n * (2 * G + codec.bytes_per_vector) / seconds
        row.microseconds, row.gb_per_s, row.share_of_copy = seconds * 1e6, speed / 1e9, speed / self.copy

    def _check(self, codec: Any, coder: GpuCodec, kind: str) -> str:
        """What is wrong with the variant's results on some thousand groups; nothing if all is well."""
        gpu = self.gpu
        x = self.rng.standard_normal((N_CHECKED, G)).astype(np.float16)
        x[0], x[1, 5] = 0, np.inf
        expected = codec._encode_groups(x, 0).blocks
        source, stored = gpu.empty(x.shape, "float16"), gpu.empty(expected.shape, "uint8")
        gpu.upload(x, source)
        if kind == "encode":
            coder.encode(source, out=stored, stream=gpu.stream)
            found = np.empty_like(expected)
            gpu.download(stored, found)
            gpu.wait()
            wrong = float((found != expected).any(axis=1).mean())
            return f"{wrong:.2%} of groups differ" if wrong > MAX_WRONG_GROUPS * (not coder.is_exact) else ""
        gpu.upload(expected, stored)
        coder.decode(stored, out=source, stream=gpu.stream)
        values, back = codec.decode(expected), np.empty_like(x)
        gpu.download(source, back)
        gpu.wait()
        error = np.abs(back - values).max() / np.abs(values).max() - 2.0**-11
        return "" if error <= MAX_ERROR else f"error {error:.1e}"


@click.command()
@click.option("--values", default=1 << 28)
@click.option("--repeats", default=10)
@click.option("--only", default="", help="times only kernels whose name, `encode turbo3 `, contains this")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write")
def main(values: int, repeats: int, only: str, output: Path | None) -> None:
    bench = Bench(values, repeats)
    print(f"{bench.gpu.name}, copy {bench.copy / 1e9:,.0f} GB/s, {values} values")
    print(f"{'kernel':18} threads blocks registers resident       us    GB/s  % of copy")
    rows = []
    for name, kind, module, threads, blocks in variants():
        if only in f"{kind} {name} ":
            row = bench.run(name, kind, module, threads, blocks)
            rows.append(row)
            star = "*" if row.is_default else " "
            shown = f"{row.microseconds:8.0f} {row.gb_per_s:7,.0f} {100 * row.share_of_copy:10.1f}"
            print(
                f"{row.kernel:17}{star} {threads:7} {blocks:6} {row.registers:9} {row.resident:8.0f} "
                f"{row.problem or shown}",
                flush=True,
            )
    if output:
        facts = {"device": bench.gpu.name, "copy_gb_per_s": bench.copy / 1e9, "n_values": values}
        output.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
