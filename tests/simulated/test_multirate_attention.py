"""Multirate blocks in the attention kernels, run as Python: any schedule, beside other formats, in pages and pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.attention_cases import relative_error
from helpers.multirate_cases import coder, expected_of, random_blocks

from turbocode.codecs import decode_attention, make_codec
from turbocode.codecs.gpu_attention import GpuAttention
from turbocode.codecs.host_attention import HostAttention
from turbocode.errors import OptionError
from turbocode.kernels.attention.attend_kernel import attend_kernel
from turbocode.kernels.attention.cuda import Shape

FAST_ERROR, PLAIN_ERROR = 1e-3, 2e-5
FALLING, WITH_ZEROS = [8, 5, 3, 2, 1, 1, 0, 0], [3, 2, 0, 2, 2, 2, 2, 1]
PAIRS: dict[str, tuple[Any, Any]] = {
    "falling": (FALLING, WITH_ZEROS),
    "few bits, the seam in several runs": ([0, 1, 0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0, 0]),
    "two bytes": ([0, 0, 2, 0], [2, 0, 0, 0]),
    "all bits": ([8] * 4, [8, 0, 0, 8]),
    "keys alone": ([7, 6, 5, 4, 3, 2, 1, 0], "turbo3"),
    "values alone": ("trellis2", [4] * 8),
    "rising": ([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8], [1] * 12),
    "wide": ([6, 4, 3, 3] + [2] * 28, [5] * 8 + [0] * 8 + [1] * 16),
}


def codec_of(kind: Any, heads: int, d: int, seed: int) -> Any:
    return make_codec(kind, d) if isinstance(kind, str) else coder(heads, kind, seed)


def dim_of(*kinds: Any) -> int:
    return next(8 * len(kind) for kind in kinds if not isinstance(kind, str))


@pytest.mark.parametrize("name", PAIRS)
def test_attention_is_the_cpus(name: str, rng: np.random.Generator) -> None:
    key_kind, value_kind = PAIRS[name]
    d, heads = dim_of(key_kind, value_kind), 2
    keys, values = codec_of(key_kind, heads, d, 1), codec_of(value_kind, heads, d, 2)
    k, v = (random_blocks(codec, 1, heads, 9, rng) for codec in (keys, values))
    queries, last = rng.standard_normal((1, 4, 2, d)).astype(np.float32), np.array([[8, 3]])
    expected, expected_lse = decode_attention(queries, keys, k, values, v, last, scale=0.2)
    attention = HostAttention(0)
    found, lse = attention(queries, keys, k, values, v, last, scale=0.2)
    assert not next(iter(attention._attentions.values()))[0].is_plain
    assert relative_error(found, expected.astype(np.float64)) <= FAST_ERROR
    np.testing.assert_allclose(lse, expected_lse, atol=4e-3)


@pytest.mark.parametrize("rates", [[2] * 5, [3, 1]])
def test_other_sizes_get_the_plain_kernel(rates: list[int], rng: np.random.Generator) -> None:
    c, d = coder(1, rates, 3), 8 * len(rates)
    blocks, queries = random_blocks(c, 1, 1, 5, rng), rng.standard_normal((1, 2, 1, d)).astype(np.float32)
    assert GpuAttention(c, c).is_plain
    found, _ = HostAttention(0)(queries, c, blocks, c, blocks, np.array([[4]]), scale=0.3)
    expected, _ = decode_attention(queries, c, blocks, c, blocks, np.array([[4]]), scale=0.3)
    assert relative_error(found, expected.astype(np.float64)) <= PLAIN_ERROR


@pytest.mark.parametrize("seed", range(4))
def test_random_schedules(seed: int) -> None:
    """Odd lengths, several rows and columns, windows, rows at any byte, in several blocks and pieces."""
    rng = np.random.default_rng(seed)
    n_runs, heads, n_tokens = int(rng.choice([4, 8, 12])), 2, int(rng.integers(40, 80))
    kinds = [rng.integers(0, 9, n_runs) * (rng.random(n_runs) < 0.8) for _ in range(2)]
    keys, values = (coder(heads, [2, *(int(rate) for rate in kind[1:])], seed) for kind in kinds)
    k, v = (random_blocks(codec, 2, heads, n_tokens, rng) for codec in (keys, values))
    n_rows, window = int(rng.integers(1, 4)), int(rng.choice([0, 33]))
    queries = rng.standard_normal((2, 2 * heads, n_rows, keys.head_dim)).astype(np.float32)
    last = rng.integers(0, n_tokens, (2, n_rows)).astype(np.int32)
    fast, plain = (GpuAttention(keys, values, is_plain=is_plain) for is_plain in (False, True))
    fast._attend.shape = Shape(int(rng.integers(1, 4)), 1, int(rng.integers(2, 4)))
    fast._attend.is_bulk = bool(seed % 2)
    options = {"scale": 0.2, "window": window}
    expected = expected_of(queries, keys, k, values, v, last, 0.2, window)
    found, lse = fast(queries, k, v, last, n_blocks=int(rng.integers(1, 4)), **options)
    near, near_lse = plain(queries, k, v, last, n_blocks=1, **options)
    assert relative_error(near, expected) <= PLAIN_ERROR
    assert relative_error(found, expected) <= FAST_ERROR
    np.testing.assert_allclose(lse, near_lse, atol=4e-3)


@pytest.mark.parametrize("is_bulk", [True, False])
@pytest.mark.parametrize("page", [16, 32])
def test_pages(page: int, is_bulk: bool, rng: np.random.Generator) -> None:
    keys, values, heads = coder(2, FALLING, 1), coder(2, WITH_ZEROS, 2), 2
    last = np.array([[69], [36]], np.int32)
    k, v = (random_blocks(codec, 2, heads, 80, rng) for codec in (keys, values))
    n_pages = -(-80 // page)
    pages = rng.permutation(2 * n_pages).reshape(2, n_pages).astype(np.int32)
    paged = []
    for blocks in (k, v):
        padded = np.concatenate((blocks, np.zeros((2, heads, n_pages * page - 80, blocks.shape[-1]), np.uint8)), axis=2)
        whole = np.empty((2 * n_pages, heads, page, blocks.shape[-1]), np.uint8)
        for seq in range(2):
            for number in range(n_pages):
                whole[pages[seq, number]] = padded[seq, :, number * page : (number + 1) * page]
        paged.append(whole)
    queries = rng.standard_normal((2, 4, 1, 64)).astype(np.float16)
    attention = GpuAttention(keys, values)
    attention._attend.shape, attention._attend.is_bulk = Shape(2, 1, 2), is_bulk
    found, _ = attention(queries, *paged, last, pages=pages, scale=0.2, n_blocks=3)
    expected = expected_of(queries, keys, k, values, v, last, 0.2, 0)
    assert relative_error(found.astype(np.float64), expected) <= FAST_ERROR


def test_schedules_share_a_kernel(rng: np.random.Generator) -> None:
    before = attend_kernel.cache_info().misses
    attention, x = HostAttention(0), rng.standard_normal((1, 1, 16, 32)).astype(np.float32)
    last = np.array([[2, 1, 0]])
    for rates in ([3, 1, 0, 0], [0, 2, 5, 5], [8, 8, 8, 8]):
        c = coder(1, rates, 3)
        blocks = random_blocks(c, 1, 1, 16, rng)
        attention(x[:, :, :3], c, blocks, c, blocks, last, scale=0.25)
    assert attend_kernel.cache_info().misses <= before + 1
    with pytest.raises(OptionError, match="softcap"):
        attention(x[:, :, :3], c, blocks, c, blocks, last, scale=0.25, softcap=20.0)
