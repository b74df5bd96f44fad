"""q8_0 and q4_0 from packed float16 against cpu, bit for bit, on hard values: ties, zeros, subnormal numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.kernels import _ptx
from turbocode.kernels.scalar.ggml_blocks import inverse_of, over_127

N = 75  # groups: a block works on 32 at a time


def hard_groups(rng: np.random.Generator, g: int) -> Any:
    x = rng.standard_normal((N, g)).astype(np.float16)
    signs, size = rng.choice([-1.0, 1.0], (6, g)), np.float16(65504)
    x[:8] = np.array([[0], [-0.0], [size], [-size], [6e-8], [-6e-8], [1], [-1]], np.float16)
    x[8:11] = signs[:3] * np.array([[1], [size], [6e-8]])  # equal magnitudes: the first one's sign counts
    x[11] = rng.choice([0, -0.0, 6e-8, -6e-8], g)
    x[12:16] = rng.integers(-254, 255, (4, g)) / 2  # q8_0 levels that end in .5
    x[12:16, 5::32] = [[127], [-127], [63.5], [127]]
    x[16:20] = rng.integers(-16, 17, (4, g)) / 2  # q4_0 levels that end in .5
    x[16:20, 7::32] = [[8], [-8], [8], [-8]]
    x[20:22], x[22] = rng.integers(-3, 4, (2, g)), np.arange(g)
    x[23:27] *= np.array([[1e4], [3e-6], [3e-7], [1e-5]], np.float16)
    patterns = rng.integers(0, 0x7C00, (4, g)) | rng.choice([0, 0x8000], (4, g))
    x[27:31] = patterns.astype(np.uint16).view(np.float16)
    x[31:33] = (rng.integers(0, 0x400, (2, g)) | rng.choice([0, 0x8000], (2, g))).astype(np.uint16).view(np.float16)
    x[33, 3], x[34, g - 1], x[35, 0], x[74, 1] = np.inf, np.nan, -np.inf, np.nan
    return x


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_bytes_of_the_cpu(name: str, head_dim: int, rng: np.random.Generator) -> None:
    codec = make_codec(name, head_dim)
    x = hard_groups(rng, codec.block_format.group_size)
    np.testing.assert_array_equal(GpuCodec(codec).encode(x), codec._encode_groups(x, 0).blocks)


def test_quotients_are_exact_however_the_reciprocal_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    q8_scales, q4_scales = halves / np.float32(127), halves / np.float32(8)
    np.testing.assert_array_equal(over_127(halves), q8_scales)
    for off in range(-2, 3):

        def reciprocal(x: Any, off: int = off) -> Any:
            return ((1 / x.astype(np.float64)).astype(np.float32).view(np.int32) + off).view(np.float32)

        monkeypatch.setattr(_ptx, "reciprocal", reciprocal)
        for scales in (q8_scales, q4_scales):
            np.testing.assert_array_equal(inverse_of(scales), np.float32(1) / scales)
