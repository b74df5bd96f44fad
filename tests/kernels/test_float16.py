"""The float16 conversions of the kernels, over every pattern."""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.kernels._cpu import float16_from_float32, float32_from_float16, strict


@strict
def _to_float32(halves: Any, out: Any) -> None:
    for i in range(halves.shape[0]):
        out[i] = float32_from_float16(halves[i])


@strict
def _to_float16(values: Any, out: Any) -> None:
    for i in range(values.shape[0]):
        out[i] = float16_from_float32(values[i])


ALL_HALVES = np.arange(1 << 16, dtype=np.uint16)


def test_every_float16_becomes_its_float32() -> None:
    out = np.full(1 << 16, np.nan, np.float32)
    _to_float32(ALL_HALVES, out)
    expected = ALL_HALVES.view(np.float16).astype(np.float32)
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(out[~is_nan].view(np.uint32), expected[~is_nan].view(np.uint32))
    assert np.isnan(out[is_nan]).all()


def test_every_kind_of_float32_is_rounded_to_nearest_even(rng: np.random.Generator) -> None:
    exact = ALL_HALVES.view(np.float16).astype(np.float32)
    exact = exact[np.isfinite(exact)]
    sorted_exact = np.unique(exact)
    halfway = (sorted_exact[:-1].astype(np.float64) + sorted_exact[1:]) / 2
    near = [np.nextafter(exact, np.float32(direction)) for direction in (np.inf, -np.inf)]
    patterns = rng.integers(0, 1 << 32, 1_000_000, dtype=np.uint32).view(np.float32)
    edges = np.float32([65504, 65519.996, 65520, 1e38, np.inf, -np.inf, 2**-24, 2**-25, 2**-26, 0.0, -0.0])
    values = np.concatenate([exact, halfway.astype(np.float32), *near, patterns[~np.isnan(patterns)], edges])
    out = np.empty(values.size, np.uint16)
    _to_float16(values, out)
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_array_equal(out, values.astype(np.float16).view(np.uint16))


def test_nan_stays_nan() -> None:
    out = np.zeros(1, np.uint16)
    _to_float16(np.float32([np.nan]), out)
    assert np.isnan(out.view(np.float16)[0])
