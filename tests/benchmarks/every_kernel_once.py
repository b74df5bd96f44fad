"""Runs each kernel of the GPU on a few groups: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck python tests/benchmarks/every_kernel_once.py [--only NAME ...] [--part I/N]

--only : runs whose name contains NAME, `prefill` or `attend trellis3` for example; --part : every N-th, from the I-th
of 0 to N - 1 on, since the sanitizer is slow; --list : names only. Results are compared with the CPU's, so that a
kernel that does nothing is not called clean. NUMBA_ENABLE_CUDASIM=1 runs them in the simulator.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.attention_cases import AttentionCase, relative_error
from helpers.gpu_arrays import down, up
from helpers.multirate_cases import coder, expected_of, random_blocks

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_attention import GpuAttention
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.codecs.gpu_prefill import GpuPrefill
from turbocode.kernels._cuda import has_bulk_copies
from turbocode.kernels._graph import Gpu
from turbocode.kernels._launch import device_array
from turbocode.kernels.fwht import cuda as rotation_cuda
from turbocode.kernels.fwht import rotation_for
from turbocode.kernels.trellis import Trellis
from turbocode.kernels.trellis import cuda as trellis_cuda

CODECS = [
    *((name, 128) for name in ("turbo2", "turbo3", "turbo4", "turbo3_0", "q8_0", "q4_0", "f16")),
    *(("turbo3", 96), ("q4_0", 96), ("turbo3", 64), ("trellis1", 128), ("trellis2", 128), ("trellis3", 128)),
    *(("trellis4", 128), ("turbo3_tcq", 128), ("trellis2_l12", 128), ("trellis2", 80)),
]
PROMPTS = (
    *(("turbo3", "turbo4", 128, 0), ("trellis3", "q4_0", 128, 0), ("turbo3", "trellis2", 96, 0)),
    *(("f16", "turbo2", 256, 0), ("turbo3", "turbo3", 128, 16)),
)
STEPS = (("turbo3", "turbo3"), ("trellis3", "trellis3"), ("q8_0", "q8_0"), ("f16", "f16"))
RATES = [6, 5, 4, 4, 3, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 0]
N_VECTORS = 21  # no multiple of what a block handles


def coding(name: str, head_dim: int, gpu: Gpu, rng: np.random.Generator) -> None:
    codec = make_codec(name, head_dim)
    x = rng.standard_normal((1, 3, N_VECTORS, head_dim)).astype(np.float16)
    expected = codec.encode(x)[0]
    values = gpu.empty(x.shape, "float16")
    gpu.upload(x, values)
    starts = gpu.empty((1,), "int32")
    gpu.upload(np.array([2], np.int32), starts)
    has_fast = codec.block_format.has_codebook and head_dim == 128
    least = np.square(codec.decode(expected) - x).sum()
    for is_exact in (True, False) if has_fast else (True,):
        coder = GpuCodec(codec, is_exact=is_exact)
        blocks, cache = gpu.empty(expected.shape, "uint8"), gpu.empty((1, 3, 16, expected.shape[-1]), "uint8")
        coder.encode(values, out=blocks, stream=gpu.stream)
        coder.encode(values, out=cache, starts=starts, stream=gpu.stream)
        back = coder.decode(blocks, dtype="float32", stream=gpu.stream)
        if is_exact:
            coder.encoder().measured(values, stream=gpu.stream)
        found, decoded = np.empty(expected.shape, np.uint8), np.empty(x.shape, np.float32)
        part = np.empty((1, 3, 16, expected.shape[-1]), np.uint8)
        gpu.download(blocks, found)
        gpu.download(cache, part)
        gpu.download(device_array(back), decoded)
        gpu.wait()
        if is_exact:
            assert (found == expected).all(), name
        assert np.square(codec.decode(found) - x).sum() <= 1.01 * least, name
        assert (part[:, :, 2:] == found[:, :, :14]).all(), name
        np.testing.assert_allclose(decoded, codec.decode(found), rtol=0, atol=1e-5 if is_exact else 5e-4)


def rotating(group_size: int, gpu: Gpu, rng: np.random.Generator) -> None:
    x = rng.standard_normal((N_VECTORS, group_size)).astype(np.float32)
    values, back = gpu.empty(x.shape, "float32"), np.empty(x.shape, np.float32)
    gpu.upload(x, values)
    rotation = rotation_for(group_size)
    rotated = rotation_cuda.rotate(values, rotation, stream=gpu.stream)
    gpu.download(device_array(rotation_cuda.unrotate(rotated, rotation, stream=gpu.stream)), back)
    gpu.wait()
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-5)


def searching(trellis: Trellis, rng: np.random.Generator) -> None:
    from turbocode.kernels.trellis import cpu

    table = rng.standard_normal(trellis.n_states).astype(np.float32)
    u = rng.standard_normal((N_VECTORS, 32)).astype(np.float32)
    assert (trellis_cuda.viterbi(u, table, trellis)[0] == cpu.viterbi(u, table, trellis)[0]).all()


def attending(attention: Any, case: AttentionCase, gpu: Gpu, rng: np.random.Generator) -> None:
    """Decode attention or prefill of a case, whose cache ends where its memory does."""
    arrays = case.build(rng)
    given = [up(gpu, arrays[name]) for name in ("queries", "keys", "values", "last_token")]
    options = {} if arrays["pages"] is None else {"pages": up(gpu, arrays["pages"])}
    out, lse = gpu.empty(arrays["queries"].shape, case.dtype), gpu.empty(arrays["lse"].shape, "float32")
    attention(*given, **case.options(), **options, out=out, lse=lse, stream=gpu.stream)
    assert relative_error(down(gpu, out), arrays["output"]) <= 1e-3
    np.testing.assert_allclose(down(gpu, lse), arrays["lse"], rtol=0, atol=4e-3)


def prompting(k: str, v: str, head_dim: int, page: int, gpu: Gpu, rng: np.random.Generator) -> None:
    last = (tuple(range(7, 151)),)
    case = AttentionCase(
        k, v, head_dim, n_heads=6, n_kv_heads=2, n_tokens=151, n_rows=144, last=last, page=page, dtype="float16"
    )
    attending(GpuPrefill(*case.codecs()), case, gpu, rng)


def stepping(k: str, v: str, page: int, is_bulk: bool, gpu: Gpu, rng: np.random.Generator) -> None:
    """Two new tokens of two sequences of odd lengths."""
    last = ((75, 76), (299, 300))
    case = AttentionCase(
        k, v, n_seqs=2, n_heads=6, n_kv_heads=2, n_rows=2, n_tokens=301, last=last, page=page, dtype="float16"
    )  # fmt: skip
    attention = GpuAttention(*case.codecs())
    attention._attend.is_bulk = is_bulk
    attending(attention, case, gpu, rng)


def stepping_rates(rates: list[int], v: str, gpu: Gpu, rng: np.random.Generator) -> None:
    """The same of multirate keys, whose rows begin at any byte."""
    keys, values = coder(2, rates, 0), make_codec(v, 8 * len(rates))
    blocks = [random_blocks(codec, 2, 2, 301, rng) for codec in (keys, values)]
    queries = rng.standard_normal((2, 6, 2, 8 * len(rates))).astype(np.float16)
    last = np.array(((75, 76), (299, 300)), np.int32)
    expected = expected_of(queries, keys, blocks[0], values, blocks[1], last, 0.1, 0)
    out, lse = gpu.empty(queries.shape, "float16"), gpu.empty(queries.shape[:-1], "float32")
    given = [up(gpu, array) for array in (queries, *blocks, last)]
    GpuAttention(keys, values)(*given, scale=0.1, out=out, lse=lse, stream=gpu.stream)
    assert relative_error(down(gpu, out), expected) <= 1e-3


def every_run(gpu: Gpu, rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is run, by name."""
    for name, head_dim in CODECS:
        yield f"code {name} {head_dim}", functools.partial(coding, name, head_dim, gpu, rng)
    for group_size in (16, 80, 128):
        yield f"rotate {group_size}", functools.partial(rotating, group_size, gpu, rng)
    for trellis in (Trellis(1, 4, True), Trellis(2, 12, False)):
        yield f"search k = {trellis.bits}, L = {trellis.states_log2}", functools.partial(searching, trellis, rng)
    for k, v, head_dim, page in PROMPTS:
        name = f"prefill {k} {v} {head_dim}" + (", paged" if page else "")
        yield name, functools.partial(prompting, k, v, head_dim, page, gpu, rng)
    for k, v in STEPS:
        for page in (0, 16):
            for is_bulk in (False, True) if has_bulk_copies(gpu.number) else (False,):
                name = f"attend {k} {v}" + (", paged" if page else "") + (", bulk copies" if is_bulk else "")
                yield name, functools.partial(stepping, k, v, page, is_bulk, gpu, rng)
    for v in ("trellis3:rotation=none", "f16"):
        yield f"attend multirate {v}", functools.partial(stepping_rates, RATES, v, gpu, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME")
    parser.add_argument("--part", default="0/1", metavar="I/N")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    first, step = map(int, args.part.split("/"))
    runs = [
        (name, run) for name, run in every_run(Gpu(0), np.random.default_rng(0)) if any(x in name for x in args.only)
    ]
    for name, run in runs[first::step]:
        print(name, flush=True)
        if not args.list:
            run()
    if not args.list:
        print(f"{len(runs[first::step])} of {len(runs)} runs agree with the CPU")


if __name__ == "__main__":
    main()
