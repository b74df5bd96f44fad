"""The fast scalar kernels against cpu: the same blocks but for values at a boundary, values within a proven bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.fast_decoding import assert_decoded

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.kernels.scalar.by_cell import cells
from turbocode.kernels.scalar.encode_tensor import is_symmetric

CODECS = ["turbo2", "turbo3", "turbo4", "turbo2_0", "turbo3_0", "turbo4_0", "turbo3:norm=mse", "turbo4:norm=unbiased"]
MORE_THAN_A_TURN = 75  # groups: a block encodes 32 at a time, decodes 64


def check(codec: Any, x: Any) -> None:
    gpu, expected = GpuCodec(codec, is_exact=False), codec._encode_groups(x, 0).blocks
    np.testing.assert_array_equal(gpu.encode(x), expected)
    assert_decoded(codec, gpu.decode(expected, dtype="float32"), codec.decode(expected))


def groups(rng: np.random.Generator, n: int, g: int) -> Any:
    x = rng.standard_normal((n, g)).astype(np.float16)
    x[0], x[1], x[2] = 0, x[1] * np.float16(1e-4), x[2] * 1000
    x[3, 1], x[4, 0], x[5, g - 1] = np.inf, np.nan, -np.inf
    return x


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("name", CODECS)
def test_same_blocks_as_the_cpu(name: str, head_dim: int, rng: np.random.Generator) -> None:
    if "_0" in name and head_dim != 128:
        return
    codec = make_codec(name, head_dim)
    check(codec, groups(rng, 11, codec.block_format.group_size))


@pytest.mark.parametrize("name", ["turbo2", "turbo3", "turbo4", "turbo3_0"])
def test_more_groups_than_are_worked_on_at_a_time(name: str, rng: np.random.Generator) -> None:
    codec = make_codec(name, 128)
    check(codec, groups(rng, MORE_THAN_A_TURN, 128))


@pytest.mark.parametrize("name", ["turbo2", "turbo3", "turbo4", "turbo3_0"])
def test_bfloat16_of_any_size(name: str, rng: np.random.Generator) -> None:
    codec = make_codec(name, 128)
    x = rng.standard_normal((13, 128), dtype=np.float32)
    sizes = (0, 1e-25, 3e-8, 1e-7, 1e5, 1e18, 1e25, 1e36)
    for row, size in enumerate(sizes):
        x[row] *= np.float32(size)
    x[8, 3], x[9, 5] = np.inf, np.nan
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    blocks = GpuCodec(codec, is_exact=False).encode(bits.view(np.int16))
    np.testing.assert_array_equal(blocks, codec._encode_groups(exact, 0).blocks)


@pytest.mark.parametrize("name", ["turbo2", "turbo3", "turbo4"])
def test_a_value_of_exactly_zero_may_take_either_sign(name: str) -> None:
    codec = make_codec(name, 128)
    x = np.full((2, 128), 65504, np.float16)  # half of the rotated values are 0
    x[1] = np.float16(6e-8)
    expected, found = codec.encode(x)[0], GpuCodec(codec, is_exact=False).encode(x)
    values, others = (np.abs(codec.decode(blocks, unrotate=False)) for blocks in (expected, found))
    np.testing.assert_array_equal(values, others)


def test_codebooks_that_the_fast_kernels_do_not_know() -> None:
    centroids, boundaries = make_codec("turbo4", 128).tables(0)
    assert is_symmetric(centroids, boundaries) and cells(boundaries) is not None
    assert not is_symmetric(centroids + np.float32(0.01), boundaries)
    crowded = boundaries * np.float32(0.3)
    crowded[[0, -1]] = boundaries[[0, -1]]  # the inner boundaries are closer than a cell is wide
    assert cells(crowded) is None and not is_symmetric(centroids, crowded)
    kept = cells(boundaries)
    assert kept is not None
    scaled = np.linspace(boundaries[0], boundaries[-1], 4001, dtype=np.float32) * np.float32(1.2)
    places = np.clip(scaled * (np.float32(0.5) / (boundaries[-1] * np.float32(33 / 32))) + np.float32(0.5), 0, 1)
    patterns = (places.astype(np.float32) * np.float32(1 - 2.0**-22) + np.float32(1)).view(np.uint32)
    with np.errstate(over="ignore"):
        found = (patterns + kept[patterns >> 18 & 31]) >> 28
    expected = np.searchsorted(boundaries, scaled, side="right")
    assert np.abs(found.astype(int) - expected).max() <= 1 and (found != expected).sum() <= 15  # at a boundary
