"""Encoding and decoding kernels against cpu, bit for bit, which other tests hold against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.fast_decoding import assert_decoded

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.codecs.slab_coder import CpuSlabCoder, SlabCoders
from turbocode.errors import DataError, OptionError
from turbocode.kernels.fwht import cpu as rotation_cpu
from turbocode.kernels.fwht import cuda as rotation_cuda
from turbocode.kernels.fwht import rotation_for
from turbocode.kernels.group import moments_of_facts
from turbocode.kernels.scalar import cpu, cuda
from turbocode.kernels.scalar.decode_lanes import Placement
from turbocode.kernels.trellis.cuda import decode_choice

CASES = [
    *(
        (name, 128)
        for name in ("turbo2", "turbo3", "turbo4", "turbo2_0", "turbo3_0", "turbo4_0", "q8_0", "q4_0", "f16")
    ),
    *(("turbo3", head_dim) for head_dim in (16, 32, 40, 48, 64, 80, 96)),
    *((name, 96) for name in ("turbo2", "turbo4", "q8_0", "q4_0", "f16")),
    *(("turbo4", 64), ("q8_0", 64), ("q4_0", 32), ("f16", 16), ("turbo3:norm=mse", 128), ("turbo3:norm=raw", 64)),
    *(("turbo3:norm=unbiased", 96), ("q8_0", 32)),
    *(("trellis1", 16), ("trellis2", 16), ("trellis3", 16), ("trellis2", 40)),
    *(("turbo3_tcq", 128), ("trellis4_l12", 16)),
]
TYPES = {"float16": np.float16, "float32": np.float32}


def groups(rng: np.random.Generator, codec: Any, dtype: Any, n: int) -> Any:
    """Gaussian groups, of which the first are zero, tiny, large and, as float32, beyond float32's squares."""
    x = rng.standard_normal((n, codec.block_format.group_size)).astype(dtype)
    x[0], x[1], x[2] = 0, x[1] * np.float16(1e-6), x[2] * 1000
    if dtype == np.float32:
        x[3] *= 1e25
    return x


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("name", "head_dim"), CASES)
def test_same_bits_as_the_cpu(name: str, head_dim: int, dtype: str, rng: np.random.Generator) -> None:
    codec = make_codec(name, head_dim)
    is_slow = codec.block_format.is_trellis
    if is_slow and dtype == "float32":
        return
    n = 3 if is_slow else 5
    x = groups(rng, codec, TYPES[dtype], n)
    expected = codec._encode_groups(x, 0)
    gpu = GpuCodec(codec)
    blocks, facts, flags = gpu.encoder().measured(x)
    np.testing.assert_array_equal(blocks, expected.blocks)
    np.testing.assert_array_equal(moments_of_facts(facts, codec.block_format.has_codebook), expected.moments)
    np.testing.assert_array_equal(flags, expected.flags)
    if not is_slow:
        np.testing.assert_array_equal(gpu.encode(x), expected.blocks)
    for unrotate in (True, False):
        values = codec.decode(expected.blocks, unrotate=unrotate)
        np.testing.assert_array_equal(gpu.decode(expected.blocks, dtype="float32", unrotate=unrotate), values)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(gpu.decode(expected.blocks), codec.decode(expected.blocks).astype(np.float16))


def test_bfloat16(rng: np.random.Generator) -> None:
    codec = make_codec("turbo3", 128)
    bits = (rng.standard_normal((5, 128)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    blocks = GpuCodec(codec).encode(bits.view(np.int16))
    np.testing.assert_array_equal(blocks, codec.encode(exact)[0])
    decoded = GpuCodec(codec).decode(blocks, dtype="bfloat16").view(np.uint16)
    np.testing.assert_allclose((decoded.astype(np.uint32) << 16).view(np.float32), codec.decode(blocks), rtol=2**-8)


@pytest.mark.parametrize("placement", Placement)
def test_placements_of_a_table(placement: Placement, rng: np.random.Generator) -> None:
    codec = make_codec("trellis3", 16)
    table = codec.tables(0)[0]
    blocks = codec.encode(rng.standard_normal((3, 16)).astype(np.float16))[0]
    decoder = cuda.Decoder(codec.block_format, codec.rotation, table, decode_choice(placement, table))
    np.testing.assert_array_equal(decoder(blocks, dtype="float32"), codec.decode(blocks))


@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize(("name", "head_dim"), [("turbo3", 128), ("turbo3", 192), ("turbo4", 160), ("trellis2", 32)])
def test_strided_input_and_appended_tokens(name: str, head_dim: int, is_exact: bool, rng: np.random.Generator) -> None:
    if name == "trellis2" and not is_exact:
        return
    codec = make_codec(name, head_dim)
    stored = rng.standard_normal((2, 3, 2, head_dim)).astype(np.float16)  # (n_seqs, n_tokens, n_kv_heads, head_dim)
    values = stored.transpose(0, 2, 1, 3)
    gpu = GpuCodec(codec, is_exact=is_exact)
    expected = codec.encode(values)[0]
    np.testing.assert_array_equal(gpu.encode(values), expected)
    cache = np.full((2, 2, 5, codec.bytes_per_vector), 0xEE, np.uint8)
    starts = np.array([1, 3], np.int32)
    assert gpu.encode(values, out=cache, starts=starts) is cache
    np.testing.assert_array_equal(cache[0, :, 1:4], expected[0])
    np.testing.assert_array_equal(cache[1, :, 3:], expected[1, :, :2])  # the last token does not fit
    assert (cache[0, :, :1] == 0xEE).all() and (cache[0, :, 4:] == 0xEE).all() and (cache[1, :, :3] == 0xEE).all()
    out = np.zeros((2, 3, 2, head_dim), np.float32)
    gpu.decode(cache[:1, :, 1:4], out=out[:1].transpose(0, 2, 1, 3))
    decoded = codec.decode(expected[:1])
    assert_decoded(codec, out[:1].transpose(0, 2, 1, 3), decoded)


def test_a_codebook_per_head(rng: np.random.Generator) -> None:
    books = [make_codec(f"turbo3:codebook={book}", 128).codebooks[0] for book in ("gaussian-3", "sphere128-3")]
    codec = make_codec("turbo3", 128, codebooks=books)
    values = rng.standard_normal((1, 2, 3, 128)).astype(np.float16)
    expected = np.stack([codec.encode(values[0, head], head)[0] for head in range(2)])[None]
    gpu, blocks = GpuCodec(codec), np.zeros((1, 2, 3, codec.bytes_per_vector), np.uint8)
    gpu.encode(values, out=blocks)
    np.testing.assert_array_equal(blocks, expected)
    decoded = np.zeros_like(values)
    gpu.decode(blocks, out=decoded)
    np.testing.assert_array_equal(decoded[0, 1], codec.decode(expected[0, 1], 1).astype(np.float16))
    with pytest.raises(OptionError, match="give `out`"):
        gpu.encode(values)
    with pytest.raises(OptionError, match="one per KV head"):
        gpu.encode(values[0], out=blocks[0])


@pytest.mark.parametrize("kind", ["signed", "hadamard", "none"])
@pytest.mark.parametrize("group_size", [16, 32, 40, 48, 64, 80, 96, 128])
def test_rotation(group_size: int, kind: str, rng: np.random.Generator) -> None:
    rotation = rotation_for(group_size, kind)
    x = rng.standard_normal((2, 3, 2 * group_size)).astype(np.float32)
    flat = x.reshape(-1, group_size)
    if kind == "none":
        return
    rotated = rotation_cuda.rotate(x, rotation)
    np.testing.assert_array_equal(rotated.reshape(flat.shape), rotation_cpu.rotate(flat, rotation))
    back = rotation_cuda.unrotate(rotated, rotation)
    np.testing.assert_array_equal(
        back.reshape(flat.shape), rotation_cpu.unrotate(rotation_cpu.rotate(flat, rotation), rotation)
    )
    strided = np.zeros((3, 2, 2 * group_size), np.float16)
    rotation_cuda.rotate(x.transpose(1, 0, 2), rotation, out=strided)
    np.testing.assert_array_equal(strided, rotated.transpose(1, 0, 2).astype(np.float16))


@pytest.mark.parametrize("name", ["turbo3", "q8_0", "trellis2"])
def test_slabs_of_a_file(name: str, rng: np.random.Generator) -> None:
    codec = make_codec(name, 32)
    slabs = [
        rng.standard_normal((n, 32)).astype(dtype) for n, dtype in ((5, np.float16), (3, np.float32), (6, np.float16))
    ]
    here, there = CpuSlabCoder(codec), SlabCoders(0).of(codec)
    under_way: list[Any] = []
    for slab in [*slabs, None, None, None]:
        if len(under_way) == there.depth or slab is None:
            values, job = under_way.pop(0)
            (blocks, report), (expected, expected_report) = job.result(), here.submit_encode(values, 0).result()
            np.testing.assert_array_equal(blocks, expected)
            assert report.to_json() == expected_report.to_json()
            np.testing.assert_array_equal(
                there.submit_decode(blocks.copy(), 0).result(), here.submit_decode(expected, 0).result()
            )
        if slab is not None:
            under_way.append((slab, there.submit_encode(slab, 0)))
    bad = slabs[0].copy()
    bad[3, 2] = np.nan
    with pytest.raises(DataError, match=r"vector \(3,\)"):
        SlabCoders(0).of(codec).submit_encode(bad, 0).result()


def test_what_the_gpu_refuses(rng: np.random.Generator) -> None:
    codec, x = make_codec("turbo3", 128), rng.standard_normal((2, 128)).astype(np.float16)
    gpu = GpuCodec(codec)
    cases: list[tuple[str, Any]] = [
        ("not in GPU memory", lambda: gpu.encode([1.0])),
        ("multiples of 128", lambda: gpu.encode(x[:, :100])),
        ("allowed are float16", lambda: gpu.encode(x.view(np.uint8)[:, :128])),
        ("stride of 4 bytes", lambda: gpu.encode(np.zeros((2, 256), np.float16)[:, ::2])),
        ("16 bytes", lambda: gpu.encode(np.zeros(2 * 136 + 1, np.float16)[1:].reshape(2, 136)[:, :128])),
        ("blocks are uint8", lambda: gpu.encode(x, out=np.zeros((2, 50), np.int32))),
        ("50 bytes a vector", lambda: gpu.encode(x, out=np.zeros((2, 51), np.uint8))),
        ("do not fill", lambda: gpu.encode(x, out=np.zeros((3, 50), np.uint8))),
        ("`out` is not given", lambda: gpu.encode(x, starts=np.zeros(1, np.int32))),
        (
            "int32",
            lambda: gpu.encode(x[None, None], out=np.zeros((1, 1, 4, 50), np.uint8), starts=np.zeros(1, np.uint8)),
        ),
        ("up to three", lambda: gpu.encode(np.zeros((1, 1, 1, 1, 128), np.float16))),
        ("multiples of 50 bytes", lambda: gpu.decode(np.zeros((2, 49), np.uint8))),
        ("not one of float16", lambda: gpu.decode(np.zeros((2, 50), np.uint8), dtype="float64")),
        ("no CUDA stream", lambda: gpu.encode(x, stream="mine")),
        ("last axis a multiple", lambda: rotation_cuda.rotate(x, rotation_for(96))),
        ("viterbi with one gain", lambda: GpuCodec(make_codec("trellis2:search=greedy", 64))),
    ]
    for message, call in cases:
        with pytest.raises(OptionError, match=message):
            call()
    assert gpu.encode(x[:0]).shape == (0, 50) and cuda.Encoder and cpu.encode
