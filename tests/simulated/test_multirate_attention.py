"""Multirate blocks in the plain attention kernel, run as Python: any schedule, beside other formats, in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from turbocode.codecs import decode_attention, make_codec, multirate_codec
from turbocode.codecs.host_attention import HostAttention
from turbocode.errors import OptionError
from turbocode.kernels.attention.plain_kernel import plain_kernel


def coder(heads: int, rates: list[int], seed: int) -> Any:
    rng, d = np.random.default_rng(seed), 8 * len(rates)
    basis = np.stack([np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(heads)])
    return multirate_codec(
        basis, rng.standard_normal((heads, d)), np.exp2(rng.uniform(-1, 1, (heads, d))), rates, "energy"
    )


@pytest.mark.parametrize(
    ("key_rates", "value_rates"),
    [
        ([8, 5, 3, 2, 1, 1, 0, 0], [3, 2, 0, 2, 2, 2, 2, 1]),
        ([0, 1, 0, 0, 0, 0, 0, 1], None),
        (None, [4] * 8),
        ([2] * 5, [3] * 5),
    ],
)
def test_attention_is_the_cpus(key_rates: Any, value_rates: Any, rng: np.random.Generator) -> None:
    d, heads = 8 * len(key_rates or value_rates), 2
    keys = coder(heads, key_rates, 1) if key_rates else make_codec("turbo3", d)
    values = coder(heads, value_rates, 2) if value_rates else make_codec("trellis2", d)
    x = rng.standard_normal((2, 1, heads, 9, d)).astype(np.float32)
    k, v = (
        np.stack([c.encode(part[:, head], head)[0] for head in range(heads)], axis=1)
        for c, part in ((keys, x[0]), (values, x[1]))
    )
    queries, last = rng.standard_normal((1, 4, 2, d)).astype(np.float32), np.array([[8, 3]])
    expected, expected_lse = decode_attention(queries, keys, k, values, v, last, scale=0.2)
    found, lse = HostAttention(0)(queries, keys, k, values, v, last, scale=0.2)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(lse, expected_lse, atol=1e-4)


def test_schedules_share_a_kernel(rng: np.random.Generator) -> None:
    before = plain_kernel.cache_info().misses
    attention, x = HostAttention(0), rng.standard_normal((1, 1, 3, 16)).astype(np.float32)
    for rates in ([3, 1], [0, 2], [8, 8]):
        c = coder(1, rates, 3)
        blocks = c.encode(x)[0]
        attention(x, c, blocks, c, blocks, np.array([[2, 1, 0]]), scale=0.25)
    assert plain_kernel.cache_info().misses <= before + 1
    with pytest.raises(OptionError, match="softcap"):
        attention(x, c, blocks, c, blocks, np.array([[2, 1, 0]]), scale=0.25, softcap=20.0)
