"""Runs each kernel of the GPU on a few groups: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck python tests/benchmarks/every_kernel_once.py [PART PARTS]

Results are compared with the CPU's, so that a kernel that does nothing is not called clean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.codecs.gpu_prefill import GpuPrefill
from turbocode.kernels._graph import Gpu
from turbocode.kernels._launch import device_array
from turbocode.kernels.attention.reference import decode_attention
from turbocode.kernels.fwht import cuda as rotation_cuda
from turbocode.kernels.fwht import rotation_for
from turbocode.kernels.trellis import Trellis
from turbocode.kernels.trellis import cuda as trellis_cuda

CODECS = [
    *((name, 128) for name in ("turbo2", "turbo3", "turbo4", "turbo3_0", "q8_0", "q4_0", "f16")),
    *(("turbo3", 96), ("q4_0", 96), ("turbo3", 64), ("trellis1", 128), ("trellis2", 128), ("trellis3", 128)),
    *(("trellis4", 128), ("turbo3_tcq", 128), ("trellis2_l12", 128), ("trellis2", 80)),
]
PROMPTS = (("turbo3", "turbo4", 128), ("trellis3", "q4_0", 128), ("turbo3", "trellis2", 96), ("f16", "turbo2", 256))
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


def prompting(k: str, v: str, head_dim: int, gpu: Gpu, rng: np.random.Generator, n_tokens: int = 150) -> None:
    codecs = [make_codec(name, head_dim) for name in (k, v)]
    keys, values = rng.standard_normal((2, 1, 2, n_tokens, head_dim)).astype(np.float16)
    queries = rng.standard_normal((1, 6, n_tokens - 7, head_dim)).astype(np.float16)
    blocks = [codec.encode(x)[0] for codec, x in zip(codecs, (keys, values), strict=True)]
    given = []
    for host in (queries, *blocks):
        given.append(gpu.empty(host.shape, str(host.dtype)))
        gpu.upload(host, given[-1])
    out, lse = gpu.empty(queries.shape, "float16"), gpu.empty(queries.shape[:-1], "float32")
    GpuPrefill(*codecs)(*given, scale=head_dim**-0.5, out=out, lse=lse, stream=gpu.stream)
    found = np.empty(queries.shape, np.float16)
    gpu.download(out, found)
    gpu.wait()
    decoded = [codec.decode(part) for codec, part in zip(codecs, blocks, strict=True)]
    expected, _ = decode_attention(queries, *decoded, np.arange(7, n_tokens)[None], scale=head_dim**-0.5)
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected), (k, v)


def main() -> None:
    part, parts = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (0, 1)
    gpu, rng = Gpu(0), np.random.default_rng(0)
    work: list[Callable[[], Any]] = [
        *(lambda n=name, d=head_dim: coding(n, d, gpu, rng) for name, head_dim in CODECS),  # type: ignore[misc]
        *(lambda g=g: rotating(g, gpu, rng) for g in (16, 80, 128)),  # type: ignore[misc]
        *(lambda t=t: searching(t, rng) for t in (Trellis(1, 4, True), Trellis(2, 12, False))),  # type: ignore[misc]
        *(lambda p=p: prompting(*p, gpu, rng) for p in PROMPTS),  # type: ignore[misc]
    ]
    for run in work[part::parts]:
        run()
    print(f"{len(work[part::parts])} of {len(work)} runs agree with the CPU")


if __name__ == "__main__":
    main()
