"""The kernels on a real GPU: everything that the simulator checks at small sizes, and what only a GPU can show."""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from helpers.fast_decoding import assert_decoded, decoding_bound
from helpers.fast_trellis import fast_blocks

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.codecs.slab_coder import CpuSlabCoder, SlabCoders
from turbocode.errors import OptionError
from turbocode.evaluation.environment import cuda_problem
from turbocode.formats.block_format import Layout
from turbocode.formats.packing import unpack_bits
from turbocode.kernels.fwht import cpu as rotation_cpu
from turbocode.kernels.fwht import rotation_for
from turbocode.kernels.group import moments_of_facts
from turbocode.kernels.scalar.decode_lanes import Placement
from turbocode.kernels.trellis import Trellis, cpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_problem() is not None, reason=f"no GPU: {cuda_problem()}"),
]
N_VALUES = int(os.environ.get("TURBOCODE_GPU_TEST_VALUES", 10**7))  # fewer under compute-sanitizer, which is slow
SCALAR = ("turbo2", "turbo3", "turbo4", "turbo2_0", "turbo3_0", "turbo4_0", "q8_0", "q4_0", "f16")
TRELLISES = ("trellis1", "trellis2", "trellis3", "trellis4", "turbo1_tcq", "turbo2_tcq", "turbo3_tcq", "trellis2_l12")
FORMATS = [
    *((name, 128) for name in SCALAR + TRELLISES),
    *(("turbo3", 96), ("turbo4", 80), ("q4_0", 96), ("turbo3", 64), ("turbo2", 16), ("trellis3", 96)),
]


@pytest.fixture(scope="module")
def gpu() -> Any:
    from turbocode.kernels._graph import Gpu

    return Gpu(0)


def up(gpu: Any, host: Any) -> Any:
    array = gpu.empty(host.shape, str(host.dtype))
    gpu.upload(np.ascontiguousarray(host), array)
    gpu.wait()
    return array


def down(gpu: Any, array: Any) -> Any:
    from turbocode.kernels._launch import device_array

    array = device_array(array)
    host = np.empty(array.shape, array.dtype)
    gpu.wait()
    gpu.download(array, host)
    gpu.wait()
    return host


def groups(rng: np.random.Generator, n: int, g: int, dtype: Any) -> Any:
    x = (rng.standard_normal((n, g), dtype=np.float32) * np.exp(rng.standard_normal((n, 1), dtype=np.float32))).astype(
        dtype
    )
    x[0] = 0
    x[1:40] *= np.float16(1e-5)
    return x


@pytest.mark.parametrize(("name", "head_dim"), FORMATS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_blocks_of_the_cpu_on_ten_million_values(
    name: str, head_dim: int, dtype: Any, gpu: Any, rng: np.random.Generator
) -> None:
    codec = make_codec(name, head_dim)
    form = codec.block_format
    count = (
        N_VALUES if not form.is_trellis else N_VALUES // (1 if form.states_log2 < 12 and dtype == np.float16 else 10)
    )
    x = groups(rng, count // form.group_size, form.group_size, dtype)
    expected, coder = codec._encode_groups(x, 0), GpuCodec(codec)
    blocks, facts, flags = coder.encoder().measured(up(gpu, x), stream=gpu.stream)
    np.testing.assert_array_equal(down(gpu, blocks), expected.blocks)
    np.testing.assert_array_equal(moments_of_facts(down(gpu, facts), form.has_codebook), expected.moments)
    np.testing.assert_array_equal(down(gpu, flags), expected.flags)
    np.testing.assert_array_equal(down(gpu, coder.encode(up(gpu, x), stream=gpu.stream)), expected.blocks)
    decoded = coder.decode(blocks, dtype="float32", stream=gpu.stream)
    np.testing.assert_array_equal(down(gpu, decoded), codec.decode(expected.blocks))


def indices_of(form: Any, blocks: Any) -> tuple[Any, Any]:
    """(indices (n, group_size), norms as bits (n,)) of blocks of a scalar format."""
    fields = blocks.view(form.dtype)
    if form.layout is Layout.SPLIT_PLANES:
        found = unpack_bits(fields["low_bits"], 2) | unpack_bits(fields["high_bits"], 1) << 2
    else:
        found = unpack_bits(fields["indices"], form.bits)
    assert (fields["norm"] == fields["norm"][:, :1]).all()
    return found.reshape(len(blocks), -1).astype(int), fields["norm"][:, 0].view(np.uint16).astype(int)


@pytest.mark.parametrize(
    ("name", "head_dim"),
    [
        *((name, 128) for name in ("turbo2", "turbo3", "turbo4", "turbo3_0", "turbo3:norm=mse")),
        *(("turbo3", 64), ("turbo4", 32)),
    ],
)
def test_fast_blocks_are_off_by_one_in_at_most_one_index_of_a_hundred_thousand(
    name: str, head_dim: int, gpu: Any, rng: np.random.Generator
) -> None:
    codec = make_codec(name, head_dim)
    form = codec.block_format
    x = groups(rng, N_VALUES // head_dim, head_dim, np.float16)
    x[-1, 3], x[-2, 0], x[-40, 7] = np.nan, np.inf, -np.inf
    expected = codec._encode_groups(x, 0).blocks
    coder = GpuCodec(codec, is_exact=False)
    found = down(gpu, coder.encode(up(gpu, x), stream=gpu.stream))
    (indices, norms), (others, other_norms) = indices_of(form, found), indices_of(form, expected)
    assert np.abs(indices - others).max() <= 1
    assert (indices != others).mean() <= 1e-5
    np.testing.assert_array_equal(found[[-1, -2, -40]], expected[[-1, -2, -40]])
    alike = (indices == others).all(axis=1)  # another index is another |c|, and so another norm
    assert np.abs(norms - other_norms)[alike].max() <= 1
    assert (norms != other_norms)[alike].mean() <= 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "head_dim"),
    [*((name, 128) for name in ("turbo2", "turbo3", "turbo4", "turbo3_0")), ("turbo3", 64), ("turbo4", 32)],
)
def test_fast_values_are_as_near_as_scaled_centroids_are_to_float16(
    name: str, head_dim: int, dtype: str, gpu: Any, rng: np.random.Generator
) -> None:
    codec = make_codec(name, head_dim)
    x = groups(rng, N_VALUES // 10 // head_dim + 5, head_dim, np.float16)
    blocks = codec.encode(x)[0]
    expected, out = codec.decode(blocks), gpu.empty(x.shape, dtype)
    GpuCodec(codec, is_exact=False).decode(up(gpu, blocks), out=out, stream=gpu.stream)
    gpu.wait()
    if dtype == "float32":
        assert_decoded(codec, down(gpu, out), expected)
        return
    host = np.empty(x.shape, np.uint16)
    gpu.download(out, host)
    gpu.wait()
    found = host.view(np.float16) if dtype == "float16" else (host.astype(np.uint32) << 16).view(np.float32)
    half_unit = 2.0**-11 if dtype == "float16" else 2.0**-8
    limit = half_unit * np.abs(expected) + decoding_bound(codec) * np.linalg.norm(expected, axis=1, keepdims=True)
    assert (np.abs(found - expected.astype(np.float64)) <= limit + 2.0**-25).all()


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_every_float16_as_the_extreme_of_a_block(name: str, gpu: Any, rng: np.random.Generator) -> None:
    codec = make_codec(name, 128)
    sizes = np.arange(0x7C00, dtype=np.uint16)
    x = np.empty((len(sizes), 4, 32), np.uint16)
    x[:] = rng.integers(0, sizes[:, None, None] + 1, x.shape) | rng.choice([0, 0x8000], x.shape)
    place = rng.integers(0, 32, x.shape[:2])[..., None]
    np.put_along_axis(x, place, (sizes[:, None, None] | rng.choice([0, 0x8000], place.shape)).astype(np.uint16), 2)
    halves = x.view(np.float16).reshape(-1, 128)
    half_levels = rng.integers(-254, 255, (len(sizes), 128)) / 508  # of the largest value: many levels end in .5
    tied = (half_levels * halves[:, :1].astype(np.float32)).astype(np.float16)
    tied[:, ::32], tied[:, 5::32] = halves[:, :1], -halves[:, :1]  # equal magnitudes of both signs
    for values in (halves, tied, np.array(halves[:999])):
        values[-1, 70] = np.inf
        expected = codec._encode_groups(values, 0).blocks
        found = down(gpu, GpuCodec(codec).encode(up(gpu, values), stream=gpu.stream))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [*TRELLISES[:-1], "trellis2_l9"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_fast_trellises_store_the_paths_of_whole_numbers(
    name: str, dtype: Any, gpu: Any, rng: np.random.Generator
) -> None:
    codec = make_codec(name, 128)
    x = groups(rng, 8001, 128, dtype)  # a million values, of which the last block has one group
    x[50, 3], x[51, 7] = np.nan, np.inf
    fast = down(gpu, GpuCodec(codec, is_exact=False).encode(up(gpu, x), stream=gpu.stream))
    np.testing.assert_array_equal(fast, fast_blocks(codec, x))


@pytest.mark.parametrize("name", TRELLISES[:-1])
def test_fast_trellis_errs_at_most_a_thousandth_more(name: str, gpu: Any, rng: np.random.Generator) -> None:
    codec = make_codec(name, 128)
    x = rng.standard_normal((20000, 128)).astype(np.float16)
    fast = down(gpu, GpuCodec(codec, is_exact=False).encode(up(gpu, x), stream=gpu.stream))
    error, best = (np.square(codec.decode(b) - x.astype(np.float32)).sum() for b in (fast, codec.encode(x)[0]))
    assert error <= best * 1.001


@pytest.mark.parametrize("name", ["trellis1", "trellis3", "trellis4_l12"])
@pytest.mark.parametrize("placement", Placement)
def test_placements_of_a_table(name: str, placement: Placement, gpu: Any, rng: np.random.Generator) -> None:
    from turbocode.kernels.scalar.cuda import Decoder
    from turbocode.kernels.trellis.cuda import decode_choice

    codec = make_codec(name, 128)
    table = codec.tables(0)[0]
    blocks = codec.encode(rng.standard_normal((1000, 128)).astype(np.float16))[0]
    decoder = Decoder(codec.block_format, codec.rotation, table, decode_choice(placement, table))
    values = down(gpu, decoder(up(gpu, blocks), dtype="float32", stream=gpu.stream))
    np.testing.assert_array_equal(values, codec.decode(blocks))


@pytest.mark.parametrize("g", [16, 32, 40, 48, 64, 80, 96, 128])
def test_rotation(g: int, gpu: Any, rng: np.random.Generator) -> None:
    from turbocode.kernels.fwht import cuda

    rotation, x = rotation_for(g), rng.standard_normal((12345, g)).astype(np.float32)
    rotated = cuda.rotate(up(gpu, x), rotation, stream=gpu.stream)
    expected = rotation_cpu.rotate(x, rotation)
    np.testing.assert_array_equal(down(gpu, rotated), expected)
    back = cuda.unrotate(rotated, rotation, stream=gpu.stream)
    np.testing.assert_array_equal(down(gpu, back), rotation_cpu.unrotate(expected, rotation))


@pytest.mark.parametrize(("k", "length"), [(1, 4), (2, 6), (1, 8), (2, 8), (3, 9), (4, 10), (1, 12), (4, 12)])
@pytest.mark.parametrize("is_ring", [False, True])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_search(k: int, length: int, is_ring: bool, is_weighted: bool, rng: np.random.Generator) -> None:
    from turbocode.kernels.trellis import cuda

    trellis = Trellis(k, length, is_ring)
    table = rng.standard_normal(1 << length).astype(np.float32)
    u = rng.standard_normal((1000, 128)).astype(np.float32)
    weights = rng.uniform(0.5, 2, u.shape).astype(np.float32) if is_weighted else None
    states, costs = cuda.viterbi(u, table, trellis, weights=weights)
    expected, expected_costs = cpu.viterbi(u, table, trellis, weights=weights)
    np.testing.assert_array_equal(states, expected)
    np.testing.assert_array_equal(costs, expected_costs)


@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize("name", ["turbo3", "trellis2"])
def test_torch(name: str, is_exact: bool) -> None:
    torch = pytest.importorskip("torch")
    codec = make_codec(name, 128)
    gpu = GpuCodec(codec, is_exact=is_exact)
    stored = torch.randn(2, 37, 4, 128, device="cuda", dtype=torch.float16)
    values = stored.transpose(1, 2)
    blocks = gpu.encode(values)
    host = values.cpu().numpy()
    expected = codec.encode(host)[0]
    if not is_exact and codec.block_format.is_trellis:
        expected = fast_blocks(codec, host.reshape(-1, 128)).reshape(expected.shape)
    is_same = is_exact or codec.block_format.is_trellis
    assert (blocks.cpu().numpy() != expected).any(-1).mean() <= (0 if is_same else 0.02)
    rounded = stored.bfloat16()
    others = gpu.encode(rounded.float()).cpu().numpy()
    assert (gpu.encode(rounded).cpu().numpy() != others).any(-1).mean() <= (0 if is_same else 0.02)
    decoded = gpu.decode(blocks, dtype="bfloat16")
    assert decoded.dtype == torch.bfloat16 and decoded.shape == values.shape
    assert (decoded.float() - gpu.decode(blocks, dtype="float32")).abs().max() < 0.05

    stream = torch.cuda.Stream()
    late = torch.zeros_like(stored)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(stored)
        in_stream = gpu.encode(late.transpose(1, 2))  # takes the current stream, so it waits for the copy
    stream.synchronize()
    assert torch.equal(in_stream, blocks)

    cache = torch.zeros(2, 4, 64, codec.bytes_per_vector, device="cuda", dtype=torch.uint8)
    starts = torch.zeros(2, device="cuda", dtype=torch.int32)
    token = values[:, :, :1].contiguous()
    gpu.encode(token, out=cache, starts=starts)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gpu.encode(token, out=cache, starts=starts)
    cache.zero_()
    for position in range(5):
        token.copy_(values[:, :, position : position + 1])
        starts.fill_(position + 2)
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(cache[:, :, 2:7], blocks[:, :, :5])
    assert not cache[:, :, :2].any() and not cache[:, :, 7:].any()
    with pytest.raises(OptionError, match="copy nothing"):
        gpu.encode(values.cpu())
    with pytest.raises(OptionError, match="not in GPU memory"):
        gpu.encode(values.cpu().numpy())


def test_cupy_numba_and_dlpack() -> None:
    cupy = pytest.importorskip("cupy")
    from numba import cuda

    codec = make_codec("turbo4", 128)
    gpu, host = GpuCodec(codec), np.random.default_rng(0).standard_normal((50, 128)).astype(np.float16)
    expected = codec.encode(host)[0]
    assert isinstance(gpu.encode(cupy.asarray(host)), cupy.ndarray)
    np.testing.assert_array_equal(cupy.asnumpy(gpu.encode(cupy.asarray(host))), expected)
    np.testing.assert_array_equal(gpu.encode(cuda.to_device(host)).copy_to_host(), expected)

    class OnlyDlpack:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    cupy.cuda.Device().synchronize()
    np.testing.assert_array_equal(gpu.encode(OnlyDlpack(cupy.asarray(host))).copy_to_host(), expected)


@pytest.mark.parametrize("is_exact", [True, False])
def test_more_than_two_to_the_31_values(is_exact: bool, gpu: Any, rng: np.random.Generator) -> None:
    codec, n = make_codec("turbo3", 128), (1 << 31) // 128 + 3
    coder, seed = GpuCodec(codec, is_exact=is_exact), rng.standard_normal((1 << 15, 128)).astype(np.float16)
    x = gpu.empty((n, 128), "float16")
    gpu.fill(x, seed, n * 256)
    blocks, back = gpu.empty((n, 50), "uint8"), gpu.empty((n, 128), "float16")
    coder.encode(x, out=blocks, stream=gpu.stream)
    coder.decode(blocks, out=back, stream=gpu.stream)
    from turbocode.kernels.gpu_call import view

    tail, tail_back = (view(a, (4, size), dtype) for a, size, dtype in ((blocks, 50, "uint8"), (back, 128, "float16")))
    tail.pointer, tail_back.pointer = blocks.pointer + (n - 4) * 50, back.pointer + (n - 4) * 256
    last = seed[np.arange(n - 4, n) % len(seed)]
    expected = GpuCodec(codec).encode(up(gpu, last), stream=gpu.stream)
    np.testing.assert_array_equal(down(gpu, tail), down(gpu, expected))
    np.testing.assert_allclose(
        down(gpu, tail_back).astype(np.float32),
        codec.decode(down(gpu, expected)),
        rtol=2**-10,
        atol=1e-6 if is_exact else 1e-3,
    )


@pytest.mark.parametrize("name", ["turbo3", "trellis3", "q8_0"])
def test_slabs_of_a_file(name: str, rng: np.random.Generator) -> None:
    codec = make_codec(name, 128)
    here, there = CpuSlabCoder(codec), SlabCoders(0).of(codec)
    slabs = [rng.standard_normal((n, 128)).astype(np.float16) for n in (3000, 10, 4000, 2999)]
    jobs = [there.submit_encode(slab, 0) for slab in slabs[:2]]
    for number, slab in enumerate(slabs):
        blocks, report = jobs.pop(0).result()
        expected, expected_report = here.submit_encode(slab, 0).result()
        np.testing.assert_array_equal(blocks, expected)
        assert report.to_json() == expected_report.to_json()
        if number + 2 < len(slabs):
            jobs.append(there.submit_encode(slabs[number + 2], 0))
    np.testing.assert_array_equal(there.submit_decode(expected, 0).result(), codec.decode(expected))


@pytest.mark.parametrize(
    "compute", ["prmt", "signs", "popc", "shr", "shf", "left", "choose", "sat", "halves", "sizes", "max", "min", "rz"]
)
def test_instructions_mean_in_python_what_they_do(compute: str, gpu: Any, rng: np.random.Generator) -> None:
    from turbocode.kernels import _launch, _ptx, _ptx_bits
    from turbocode.kernels._cuda import cuda, kernel, types

    uint32, uint64 = types.uint32, types.uint64
    functions = {
        "prmt": lambda a, b: _ptx.select_bytes(a, b, uint32(0x7150)),
        "signs": lambda a, b: _ptx.select_bytes(a, b, uint32(0xFDB9)),
        "popc": lambda a, b: _ptx.count_bits(a),
        "left": lambda a, b: _ptx_bits.funnel_shift_left(a, b, uint32(3)),
        "choose": lambda a, b: _ptx_bits.choose_bits(uint32(0xFF00FF), a, b),
        "sizes": lambda a, b: _ptx_bits.max_sizes(a, b),
        "max": lambda a, b: _ptx_bits.max_halves(a, b),
        "min": lambda a, b: _ptx_bits.min_halves(a, b),
        "rz": lambda a, b: _ptx.float_bits(_ptx.add_toward_zero(_ptx.float_from_bits(a), _ptx.low_half(b))),
        "shr": lambda a, b: _ptx.shift_right_signed(a, uint32(uint32(b) & uint32(31))),
        "shf": lambda a, b: _ptx.funnel_shift_right(a, b, uint32(uint32(b) & uint32(31))),
        "sat": lambda a, b: _ptx.float_bits(
            _ptx.multiply_add_saturated(_ptx.low_half(a), _ptx.high_half(b), _ptx.low_half(b))
        ),
        "halves": lambda a, b: _ptx.pack_halves(_ptx.low_half(b), _ptx.high_half(a)),
    }
    function = cuda.jit(device=True)(functions[compute])

    @kernel()
    def run(a: Any, b: Any, out: Any) -> None:
        i = uint64(cuda.threadIdx.x) * uint64(4)
        _ptx.store_u32(out + i, function(_ptx.load_u32(a + i), _ptx.load_u32(b + i)))

    a, b = (np.float16(rng.standard_normal(512)).view(np.uint32) for _ in range(2))
    if compute in ("sizes", "max", "min"):
        a[:4], b[2:6] = 0x7E003C00, 0xFC00FE01  # (1, NaN), (NaN, -inf)
    out = gpu.empty((256,), "float32")
    _launch.launch(run, 1, 256, 0, gpu.stream, (up(gpu, a).pointer, up(gpu, b).pointer, out.pointer))
    found = down(gpu, out).view(np.uint32)
    meanings = {
        "prmt": lambda x, y: (x & 0xFF) | (x >> 8 & 0xFF) << 16 | (y >> 8 & 0xFF) << 8 | (y >> 24) << 24,
        "signs": lambda x, y: sum(0xFF << 8 * i for i, w in enumerate((x << 16, x, y << 16, y)) if w & 1 << 31),
        "popc": lambda x, y: x.bit_count(),
        "left": lambda x, y: (y << 3 | x >> 29) & 0xFFFFFFFF,
        "choose": lambda x, y: (x & 0xFF00FF) | (y & 0xFF00FF00),
        "shr": lambda x, y: ((x ^ 1 << 31) - (1 << 31)) >> (y & 31) & 0xFFFFFFFF,
        "shf": lambda x, y: (y << 32 | x) >> (y & 31) & 0xFFFFFFFF,
    }
    if compute in meanings:
        # selector 0x7150: bytes 0 of a, 1 of b (5), 1 of a, 3 of b (7)
        expected = [meanings[compute](int(x), int(y)) for x, y in zip(a, b, strict=True)]
        np.testing.assert_array_equal(found, expected)
        return
    (low_a, high_a), (low_b, high_b) = (x.view(np.float16).reshape(-1, 2).T for x in (a, b))
    if compute in ("sizes", "max", "min"):
        extreme = np.minimum if compute == "min" else np.maximum
        x, y = (v.view(np.float16) if compute != "sizes" else np.abs(v.view(np.float16)) for v in (a, b))
        np.testing.assert_array_equal(found.view(np.float16), extreme(x, y))
    elif compute == "rz":
        sums = [Fraction(float(x)) + Fraction(float(y)) for x, y in zip(a.view(np.float32), low_b, strict=True)]
        near = np.array([np.float32(float(exact)) for exact in sums])
        beyond = [abs(Fraction(float(x))) > abs(exact) for x, exact in zip(near, sums, strict=True)]
        expected = np.where(beyond, np.nextafter(near, np.float32(0)), near)
        np.testing.assert_array_equal(found.view(np.float32), expected)
    elif compute == "sat":
        exact = low_a.astype(np.float64) * high_b + low_b
        np.testing.assert_array_equal(found.view(np.float32), np.clip(exact, 0, 1).astype(np.float32))
    else:
        np.testing.assert_array_equal(found.view(np.float16).reshape(-1, 2), np.stack((low_b, high_a), 1))


def test_products_of_whole_numbers_below_2_24_are_exact(gpu: Any, rng: np.random.Generator) -> None:
    """What search_tensor.py relies on: no bit is lost beside products and sums just below 2^24."""
    from turbocode.kernels import _launch, _ptx, _ptx_matrices
    from turbocode.kernels._cuda import cuda, kernel, types

    uint64 = types.uint64

    @kernel()
    def run(words: Any, c: Any, out: Any) -> None:
        w, x = uint64(cuda.threadIdx.x) * uint64(12), uint64(cuda.threadIdx.x) * uint64(16)
        a = (_ptx.load_u32(words + w), _ptx.load_u32(words + (w + uint64(4))), _ptx.load_u32(words + (w + uint64(8))))
        d = _ptx_matrices.multiply_thin_halves(
            a[0],
            a[1],
            a[2],
            _ptx.load_f32(c + x),
            _ptx.load_f32(c + (x + uint64(4))),
            _ptx.load_f32(c + (x + uint64(8))),
            _ptx.load_f32(c + (x + uint64(12))),
        )
        for i in range(4):
            _ptx.store_f32(out + (x + uint64(4 * i)), d[i])

    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    out = gpu.empty((32, 4), "float32")
    for _ in range(100):
        a, b = rng.integers(-512, 513, (16, 8)), rng.integers(-64, 65, (8, 8))
        a[:, 0], b[0] = 8 * rng.choice([-1023, 1023], 16), rng.choice([-2047, 2047], 8)
        a[:, 1], b[1] = -a[:, 0], b[0]  # takes away again what column 0 adds
        c = rng.integers(2**23 + 2**18, 2**24 - 2**18, (16, 8))
        c[:, 3] = np.arange(16) * 8 + 2**24 - 2**18
        halves = np.stack((a[g[:, None], 2 * t[:, None] + [0, 1]], a[g[:, None] + 8, 2 * t[:, None] + [0, 1]]), 1)
        right = b[2 * t[:, None] + [0, 1], g[:, None]][:, None]
        words = np.concatenate((halves, right), 1).astype(np.float16).view(np.uint32)[..., 0]
        rows, columns = g[:, None] + [0, 0, 8, 8], 2 * t[:, None] + [0, 1, 0, 1]
        _launch.launch(
            run,
            1,
            32,
            0,
            gpu.stream,
            (up(gpu, words).pointer, up(gpu, c[rows, columns].astype(np.float32)).pointer, out.pointer),
        )
        np.testing.assert_array_equal(down(gpu, out), (a @ b + c)[rows, columns])
