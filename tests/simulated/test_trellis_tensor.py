"""The trellis encoder that searches on the tensor cores: operands, and blocks against the CPU's with whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.fast_trellis import fast_blocks

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.kernels.fwht.lanes import FLOAT16
from turbocode.kernels.kernel_table import _encode_variant
from turbocode.kernels.trellis import Trellis, encode_tensor, whole_numbers
from turbocode.kernels.trellis.tensor_layout import CYCLES
from turbocode.kernels.trellis.tensor_operands import COARSE, tensor_operands

# (name, head_dim): every layout of decisions, and both kinds of ends
CASES = [
    *((name, 16) for name in ("trellis1", "trellis3", "trellis4", "trellis2_l9")),
    *(("trellis2", 64), ("turbo3_tcq", 128)),
]


def groups(rng: np.random.Generator, n: int, g: int) -> Any:
    """Gaussian groups, and among them zeros, tiny, large, not finite, with an outlier, all equal."""
    x = rng.standard_normal((n, g)).astype(np.float16)
    x[0], x[1], x[2] = 0, x[1] * np.float16(1e-6), x[2] * 1000
    x[3, 5], x[4, 3], x[5] = np.inf, 9, 1
    return x


@pytest.mark.parametrize(("k", "length"), [(1, 8), (2, 8), (2, 9), (3, 9), (4, 10)])
def test_products_are_whole_and_below_2_24(k: int, length: int, rng: np.random.Generator) -> None:
    g, trellis = 128, Trellis(k, length, True)
    operands, cycle = tensor_operands(trellis, g), CYCLES[k]
    limit = whole_numbers.LIMITS[k]
    scale = float(whole_numbers.sample_scale(k, g))
    coordinates = np.array([*rng.uniform(-1, 1, 30) * limit, limit, -limit, 3 * limit, 0, 1, 0.49]) / scale
    values = np.array([*rng.uniform(-1, 1, 30) * limit, limit, -limit, -2 * limit, 0, 0.5, 7]) / scale
    u = whole_numbers.whole_samples(np.resize(coordinates, (1, g)).astype(np.float32), k)[0].astype(np.int64)
    w = whole_numbers.whole_values(values.astype(np.float32), k, g).astype(np.int64)

    def halves(word: int) -> list[float]:
        return np.array([word], np.uint32).view(np.float16).astype(np.float64).tolist()

    for i, value in enumerate(values.astype(np.float32)):
        branch, phase = i % (1 << k), i % cycle
        states = [half for t in range(4) for half in halves(operands.state_word(value, branch, t))]
        first, last = (halves(operands.constant_word(t, phase)) for t in (1, 3))
        for j, coordinate in enumerate(coordinates.astype(np.float32)):
            word = halves(operands.sample_word(coordinate))
            products = np.array(states) * [*word, *first, *word, *last]
            assert (products == np.rint(products)).all() and (np.abs(products) < 2**24).all()
            coarse = int(np.rint(u[j] ** 2 / 4 / (1 << COARSE))) << COARSE
            cost = w[i] ** 2 - u[j] * w[i] + coarse
            assert products.sum() == (cost << k * cycle) + (branch << k * phase)
            assert coarse - u[j] ** 2 / 4 >= -(1 << COARSE) / 2


@pytest.mark.parametrize(("name", "head_dim"), CASES)
def test_blocks_are_those_of_the_search_with_whole_numbers(name: str, head_dim: int, rng: np.random.Generator) -> None:
    codec = make_codec(name, head_dim)
    x = groups(rng, 9, head_dim)
    np.testing.assert_array_equal(GpuCodec(codec, is_exact=False).encode(x), fast_blocks(codec, x))


def test_types_norms_strides_and_caches(rng: np.random.Generator) -> None:
    codec = make_codec("trellis2:norm=l2", 32)
    gpu = GpuCodec(codec, is_exact=False)
    stored = rng.standard_normal((2, 3, 2, 32)).astype(np.float32)  # (n_seqs, n_tokens, n_kv_heads, head_dim)
    values = stored.transpose(0, 2, 1, 3)
    expected = fast_blocks(codec, values.reshape(-1, 32)).reshape(2, 2, 3, -1)
    cache = np.full((2, 2, 5, codec.bytes_per_vector), 0xEE, np.uint8)
    gpu.encode(values, out=cache, starts=np.array([1, 3], np.int32))
    np.testing.assert_array_equal(cache[0, :, 1:4], expected[0])
    np.testing.assert_array_equal(cache[1, :, 3:], expected[1, :, :2])  # the last token does not fit
    assert (cache[0, :, :1] == 0xEE).all() and (cache[0, :, 4:] == 0xEE).all() and (cache[1, :, :3] == 0xEE).all()
    bits = (stored[0, :, 0].view(np.uint32) >> 16).astype(np.uint16)
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(gpu.encode(bits.view(np.int16)), fast_blocks(codec, exact))


def test_what_is_searched_on_the_tensor_cores() -> None:
    names = ("trellis1", "trellis2", "trellis3", "trellis4", "turbo1_tcq", "turbo2_tcq", "turbo3_tcq", "trellis2_l9")
    for name in names:
        assert encode_tensor.can_encode(_encode_variant(name, 128, FLOAT16))
    assert encode_tensor.can_encode(_encode_variant("trellis3", 64, FLOAT16))
    for name, head_dim in (("trellis1_l9", 128), ("trellis3_l10", 128), ("trellis4_l12", 128), ("trellis2", 96)):
        assert not encode_tensor.can_encode(_encode_variant(name, head_dim, FLOAT16))
    assert not encode_tensor.can_encode(_encode_variant("trellis2", 128, FLOAT16, is_measured=True))
