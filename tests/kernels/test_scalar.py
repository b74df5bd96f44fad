"""Scalar encoding: cpu against the float64 reference, edge cases, laws of the norm modes."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from helpers.compare import assert_within
from helpers.poison import poisoned_outputs

from turbocode.codecs import STANDARD_CODECS, Codec, make_codec
from turbocode.formats import FLOAT16_MAX, BlockFormat, Layout, block_format
from turbocode.formats.packing import unpack_bits, unpack_nibbles
from turbocode.kernels.fwht import reference as fwht_reference
from turbocode.kernels.scalar import NORM_MODES, cpu, reference

# Formats with a trellis are test_trellis.py's.
SCALAR = [name for name in STANDARD_CODECS if not block_format(name.removesuffix("_rot")).is_trellis]
CASES = [
    (name, group, mode)
    for name in SCALAR
    for group in (64, 80, 96, 128)
    for mode in (NORM_MODES if name in ("turbo2", "turbo3", "turbo4") else ("l2",))
    if not (name.startswith("turbo") and name.endswith("_0") and group != 128)
    if not (name.startswith("q") and group % 32)
]


def codec_for(name: str, group: int, mode: str = "l2") -> Codec:
    return make_codec(f"{name}:norm={mode}" if name.startswith("turbo") else name, group)


def encode_both(codec: Codec, x: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    centroids, boundaries = codec.tables()
    expected = reference.encode(x, codec.block_format, codec.rotation, centroids, boundaries, NORM_MODES[mode])
    actual = cpu.encode(x, codec.block_format, codec.rotation, centroids, boundaries, NORM_MODES[mode]).blocks
    return actual.view(codec.block_format.dtype).reshape(expected.shape), expected


def indices_of(blocks: np.ndarray, layout: BlockFormat) -> np.ndarray:
    """The integers (n, g) that structured blocks (n, blocks_per_group) hold."""
    if layout.layout is Layout.SPLIT_PLANES:
        indices = unpack_bits(blocks["low_bits"], 2) + 4 * unpack_bits(blocks["high_bits"], 1).astype(int)
    elif layout.layout is Layout.BITSTREAM:
        indices = unpack_bits(blocks["indices"], layout.bits)
    elif layout.layout is Layout.Q4_0:
        indices = unpack_nibbles(blocks["quants"])
    else:
        indices = blocks["quants" if layout.layout is Layout.Q8_0 else "values"]
    return indices.reshape(len(blocks), -1).astype(np.int64 if layout.layout is not Layout.FLOAT16 else np.float64)


def tie_distances(x: np.ndarray, codec: Codec) -> np.ndarray:
    """Float64 (n, g): how far each rotated value is from the nearest tie between two indices.

    In units of a group's norm where there is a codebook, of the block's step in the ggml formats.
    """
    y = fwht_reference.rotate(x, codec.rotation)
    if codec.block_format.has_codebook:
        norm = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        u = np.divide(y, norm, out=np.zeros_like(y), where=norm > 0)
        return np.abs(u[..., None] - codec.tables()[1]).min(-1)
    rows = y.reshape(-1, 32)
    largest = np.abs(rows).max(-1, keepdims=True)
    steps = 127 if codec.block_format.layout is Layout.Q8_0 else 8
    scaled = np.divide(steps * rows, largest, out=np.zeros_like(rows), where=largest > 0)
    return np.abs(scaled - np.floor(scaled) - 0.5).reshape(y.shape)


def check_against_reference(x: np.ndarray, codec: Codec, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """The cpu blocks and where their indices differ: by one, and only where float32 rounding decides a tie."""
    actual, expected = encode_both(codec, x, mode)
    layout = codec.block_format
    if codec.rotation.is_identity:
        np.testing.assert_array_equal(actual, expected)
        return actual, np.zeros(x.shape, bool)
    indices, wanted = indices_of(actual, layout), indices_of(expected, layout)
    is_off = indices != wanted
    assert np.abs(indices - wanted).max() <= 1
    tolerance = 3e-7 if layout.has_codebook else 1e-4
    assert bool((tie_distances(x, codec)[is_off] <= tolerance).all())
    field = "norm" if layout.has_codebook else "scale"
    ulps = np.abs(actual[field].view(np.int16).astype(int) - expected[field].view(np.int16))
    assert ulps[~is_off.any(axis=1)].max(initial=0) <= 1
    return actual, is_off


@pytest.mark.parametrize(("name", "group", "mode"), CASES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_cpu_agrees_with_reference(name: str, group: int, mode: str, dtype: type, rng: np.random.Generator) -> None:
    codec = codec_for(name, group, mode)
    x = (rng.standard_normal((1001, group)) * np.exp(rng.standard_normal((1001, 1)))).astype(dtype)
    actual, is_off = check_against_reference(x, codec, mode)
    assert is_off.sum() <= max(1, 1e-5 * is_off.size)

    blocks, centroids = actual.view(np.uint8).reshape(len(x), -1), codec.tables()[0]
    rotated = reference.dequantize(actual, codec.block_format, centroids)
    np.testing.assert_array_equal(codec.decode(blocks, unrotate=False), rotated.astype(np.float32))
    expected = reference.decode(actual, codec.block_format, codec.rotation, centroids)
    assert_within(codec.decode(blocks), expected, 1e-6 * np.linalg.norm(expected, axis=1, keepdims=True))


@pytest.mark.parametrize(("name", "group", "mode"), CASES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e25])
def test_moments_are_sums_over_the_decoded_groups(
    name: str, group: int, mode: str, scale: float, rng: np.random.Generator
) -> None:
    codec = codec_for(name, group, mode)
    x = (scale * rng.standard_normal((65, group))).astype(np.float32)
    encoded = cpu.encode(x, codec.block_format, codec.rotation, *codec.tables(), NORM_MODES[mode])
    blocks = encoded.blocks.view(codec.block_format.dtype).reshape(len(x), -1)
    y = reference.decode(blocks, codec.block_format, codec.rotation, codec.tables()[0])
    x64 = x.astype(np.float64)
    energy, error, product, decoded_energy = encoded.moments.T
    true_energy, true_decoded = np.square(x64).sum(1), np.square(y).sum(1)
    assert_within(energy, true_energy, 2e-6 * true_energy)
    assert_within(error, np.square(x64 - y).sum(1), 1e-3 * np.square(x64 - y).sum(1))
    assert_within(product, (x64 * y).sum(1), 2e-6 * np.sqrt(true_energy * true_decoded))
    assert_within(decoded_energy, true_decoded, 2e-6 * true_decoded)
    assert encoded.flags.tolist() == [1 if scale > 1e6 else 0] * 65


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("n", [1, 63, 129])
def test_every_byte_of_the_outputs_is_written(name: str, n: int, rng: np.random.Generator) -> None:
    codec, x = make_codec(name, 128), rng.standard_normal((n, 128)).astype(np.float32)
    x[n // 2] = 0
    arguments = (codec.block_format, codec.rotation, *codec.tables(), NORM_MODES["l2"])
    expected = cpu.encode(x, *arguments)
    decoded = codec.decode(expected.blocks)
    for byte in (0x00, 0xFF):
        with poisoned_outputs(byte):
            actual = cpu.encode(x, *arguments)
            actual_decoded = codec.decode(expected.blocks)
        np.testing.assert_array_equal(actual.blocks, expected.blocks)
        np.testing.assert_array_equal(actual.moments, expected.moments)
        np.testing.assert_array_equal(actual.flags, expected.flags)
        np.testing.assert_array_equal(actual_decoded, decoded)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 129])
@pytest.mark.parametrize("name", SCALAR)
def test_any_number_of_groups_and_any_split_gives_the_same_blocks(name: str, n: int, rng: np.random.Generator) -> None:
    codec = make_codec(name, 128)
    x = rng.standard_normal((n, 128)).astype(np.float16)
    blocks, _ = codec.encode(x)
    one_by_one = np.concatenate([codec.encode(row[None])[0] for row in x])
    np.testing.assert_array_equal(blocks, one_by_one)
    np.testing.assert_array_equal(codec.decode(blocks), np.concatenate([codec.decode(row[None]) for row in blocks]))


def test_threads_do_not_change_a_byte(rng: np.random.Generator) -> None:
    codec, x = make_codec("turbo3", 128), rng.standard_normal((5000, 128)).astype(np.float32)
    threads, results = numba.get_num_threads(), []
    try:
        for count in sorted({1, threads}):
            numba.set_num_threads(count)
            blocks = codec.encode(x)[0]
            results.append(blocks.tobytes() + codec.decode(blocks).tobytes())
    finally:
        numba.set_num_threads(threads)
    assert len(set(results)) == 1


def awkward(group: int) -> np.ndarray:
    one_hot = np.eye(1, group)[0]
    alternating = np.where(np.arange(group) % 2, -1.0, 1.0)
    rows = [0 * one_hot, one_hot, -one_hot, 0 * one_hot + 1, alternating, np.linspace(-1, 1, group)]
    scales = [1e-45, 1e-30, 1e-10, 5.9e-8, 6e-8, 1e-3, 1.0, 5790.0, 65504.0, 1e10, 1e20, 1e38, 3.4e38]
    return np.array([scale * row for row in rows for scale in scales], dtype=np.float32)


@pytest.mark.parametrize(("name", "group", "mode"), CASES)
def test_awkward_groups_never_give_nan(name: str, group: int, mode: str) -> None:
    codec, x = codec_for(name, group, mode), awkward(group)
    blocks, report = codec.encode(x)
    decoded = codec.decode(blocks)
    assert np.isfinite(decoded).all()
    assert np.isfinite([report.nmse, report.mean_cosine, report.energy, report.error]).all()
    assert not decoded[~x.any(axis=1)].any()
    norms = np.linalg.norm(x.astype(np.float64), axis=1)
    assert not decoded[norms < 2.0**-25].any()
    assert report.saturated_vectors > 0


@pytest.mark.parametrize(("name", "group", "mode"), CASES)
def test_awkward_groups_agree_with_reference(name: str, group: int, mode: str) -> None:
    codec, x = codec_for(name, group, mode), awkward(group)
    if name.endswith("_rot"):
        largest = np.abs(x).max(axis=1)
        x = x[(largest == 0) | (largest >= 1e-30) & (largest <= 1e30)]  # float32 rotates these without loss
    if name == "q4_0_rot":  # of a constant, rounding decides which sign the extreme of a rotated block has
        x = x[(np.ptp(np.abs(x), axis=1) > 0) | ~x.any(axis=1)]
    check_against_reference(x, codec, mode)


@pytest.mark.parametrize("name", ["turbo2", "turbo3", "turbo4"])
def test_a_norm_above_float16_is_cut_and_counted(name: str, rng: np.random.Generator) -> None:
    codec = make_codec(name, 128)
    x = rng.standard_normal((10, 128)).astype(np.float32)
    x[3] *= 1e5
    blocks, report = codec.encode(x)
    norms = blocks.view(codec.block_format.dtype)["norm"].ravel()
    assert report.saturated_vectors == 1
    assert norms[3] == FLOAT16_MAX
    assert np.isfinite(norms).all()
    direction = codec.decode(blocks)[3].astype(np.float64)
    assert direction @ x[3] / np.linalg.norm(direction) / np.linalg.norm(x[3].astype(np.float64)) > 0.9


def test_norm_modes_keep_their_promises(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4000, 128)).astype(np.float32)
    error = {}
    for mode in NORM_MODES:
        codec = make_codec(f"turbo2:norm={mode}", 128)
        decoded = codec.decode(codec.encode(x)[0]).astype(np.float64)
        error[mode] = np.square(decoded - x).sum(axis=1)
        if mode == "l2":
            assert_within(np.linalg.norm(decoded, axis=1) / np.linalg.norm(x, axis=1), 1.0, 2.0**-11 + 1e-6)
        if mode == "unbiased":
            assert_within((decoded * x).sum(axis=1) / np.square(x).sum(axis=1), 1.0, 2.0**-11 + 1e-6)
    for mode, total in error.items():
        assert error["mse"].sum() <= total.sum(), mode


@pytest.mark.parametrize("name", SCALAR)
def test_the_report_is_what_decoding_shows(name: str, rng: np.random.Generator) -> None:
    codec = make_codec(name, 256)
    x = rng.standard_normal((300, 256)).astype(np.float32) * np.exp(rng.standard_normal((300, 1))).astype(np.float32)
    x[7] = 0
    blocks, report = codec.encode(x)
    y, x64 = codec.decode(blocks).astype(np.float64), x.astype(np.float64)
    kept = np.arange(300) != 7
    cosine = (x64 * y).sum(1)[kept] / np.linalg.norm(x64, axis=1)[kept] / np.linalg.norm(y, axis=1)[kept]
    assert report.n_vectors == 300
    assert report.zero_vectors == 1
    assert report.nmse == pytest.approx(np.square(y - x64).sum() / np.square(x64).sum(), rel=2e-4)
    assert report.mean_cosine == pytest.approx(cosine.mean(), abs=1e-6)
    assert report.cosine_min == pytest.approx(cosine.min(), abs=1e-6)


def test_layout_numbers_are_frozen() -> None:
    assert [
        layout.value for layout in (Layout.BITSTREAM, Layout.SPLIT_PLANES, Layout.Q8_0, Layout.Q4_0, Layout.FLOAT16)
    ] == [0, 1, 2, 3, 4]
