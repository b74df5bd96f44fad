"""Prefill attention against float64 attention over the decoded values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.attention_cases import AttentionCase, relative_error

from turbocode.codecs.gpu_prefill import GpuPrefill
from turbocode.errors import OptionError
from turbocode.kernels.attention.prefill_cuda import PrefillShape

ERROR = 1e-3


def rows_of(n_tokens: int, n_rows: int) -> tuple[int, ...]:
    """The last token of each of the last rows of a prompt."""
    return tuple(range(n_tokens - n_rows, n_tokens))


# Pairs cover every layout, head_dim and option, each with another.
CASES = {
    "causal, two heads a group": AttentionCase(n_heads=2, n_tokens=40, n_rows=20, last=(rows_of(40, 20),)),
    "64, rows at odd places, window": AttentionCase(
        "turbo2", "turbo4", 64, n_heads=2, n_kv_heads=2, n_tokens=43, n_rows=12, last=(rows_of(43, 12),), window=9,
        spare=3, dtype="float16",
    ),
    "80, softcap": AttentionCase(
        "turbo3", "trellis3", 80, n_heads=1, n_tokens=21, n_rows=17, last=(rows_of(21, 17),), softcap=4.0
    ),
    "96, two sequences, gains": AttentionCase(
        "trellis2", "turbo3", 96, n_seqs=2, n_heads=3, n_tokens=20, n_rows=3, has_gains=True,
        last=((17, 18, 19), (4, -1, 5)),
    ),
    "pages, two sequences, window": AttentionCase(
        "turbo3", "trellis2", 64, n_seqs=2, n_heads=4, n_kv_heads=2, n_tokens=20, n_rows=3, page=16, window=11,
        last=((17, 18, 19), (4, 5, 6)),
    ),
    "pages longer than a tile": AttentionCase(
        "q8_0", "turbo4", 64, n_heads=1, n_tokens=20, n_rows=3, page=32, last=(rows_of(20, 3),)
    ),
    "256": AttentionCase("turbo4", "turbo2", 256, n_heads=1, n_tokens=20, n_rows=16, last=(rows_of(20, 16),)),
    "ggml": AttentionCase("q8_0", "q4_0", 64, n_heads=1, n_tokens=20, n_rows=9, last=(rows_of(20, 9),)),
    "ggml, turned": AttentionCase("q4_0_rot", "q8_0", 64, n_heads=1, n_tokens=17, n_rows=5, last=(rows_of(17, 5),)),
    "planes, float16": AttentionCase("turbo3_0", "f16", n_heads=1, n_tokens=17, n_rows=5, last=(rows_of(17, 5),)),
    "forks' trellises": AttentionCase(
        "turbo3_tcq", "turbo2_tcq", n_heads=1, n_tokens=17, n_rows=4, last=(rows_of(17, 4),)
    ),
    "4,096 states, one bit": AttentionCase(
        "trellis2_l12", "trellis1", 64, n_heads=1, n_tokens=17, n_rows=3, last=(rows_of(17, 3),)
    ),
    "four bits a state, float32 queries": AttentionCase(
        "trellis4", "turbo4_0", 128, n_heads=1, n_tokens=9, n_rows=2, last=(rows_of(9, 2),)
    ),
}  # fmt: skip


def attend(case: AttentionCase, arrays: dict[str, Any], shape: PrefillShape, **options: Any) -> Any:
    prefill = GpuPrefill(*case.codecs())
    prefill._attend.shape = shape
    kept = {name: arrays[name] for name in ("last_token", "gains", "pages")}
    given = {**kept, **case.options(), **options}
    return prefill(arrays["queries"], arrays["keys"], arrays["values"], given.pop("last_token"), **given)


def check(found: Any, arrays: dict[str, Any]) -> None:
    output, lse = found
    assert relative_error(output, arrays["output"]) <= ERROR
    is_seen = np.isfinite(arrays["lse"])
    np.testing.assert_array_equal(np.isfinite(lse), is_seen)
    np.testing.assert_allclose(lse[is_seen], arrays["lse"][is_seen], rtol=0, atol=4 * ERROR)
    assert not np.any(output[~is_seen])


@pytest.mark.parametrize("name", CASES)
def test_prefill(name: str, rng: np.random.Generator) -> None:
    case = CASES[name]
    arrays = case.build(rng)
    check(attend(case, arrays, PrefillShape(16, 2 if case.n_tokens > 20 or case.head_dim > 128 else 1, 1)), arrays)


def test_a_tile_may_lie_in_several_pages_and_what_no_row_sees_may_be_nowhere(rng: np.random.Generator) -> None:
    last = (rows_of(37, 2), (14, 15))
    case = AttentionCase("turbo3", "f16", 64, n_seqs=2, n_heads=1, n_tokens=37, n_rows=2, last=last, page=16)
    arrays = case.build(rng)
    arrays["pages"][1, 1:] = 1 << 30
    check(attend(case, arrays, PrefillShape(32, 1, 1)), arrays)


def test_without_last_token_it_is_causal(rng: np.random.Generator) -> None:
    case = AttentionCase("turbo3", "turbo3", 64, n_heads=2, n_tokens=36, n_rows=10, last=(rows_of(36, 10),))
    arrays = case.build(rng)
    check(attend(case, arrays, PrefillShape(32, 1, 1), last_token=None), arrays)


def test_options_that_make_no_sense_are_refused(rng: np.random.Generator) -> None:
    case = AttentionCase("turbo3", "turbo3", 64, n_heads=1, n_tokens=4, n_rows=5, last=((0, 1, 2, 3, 3),))
    arrays = case.build(rng)
    for options, message in (
        ({"last_token": None}, "5 rows are more than the cache's 4 tokens"),
        ({"scale": 0.0}, "a scale above 0"),
        ({"window": -1}, "window -1"),
        ({"last_token": np.zeros((1, 4), np.int32)}, "last_token is int32"),
    ):
        with pytest.raises(OptionError, match=message):
            attend(case, arrays, PrefillShape(16, 1, 1), **options)
    paged = AttentionCase("turbo3", "turbo3", 64, n_heads=1, n_tokens=20, page=8)
    arrays = paged.build(rng)
    for options, message in (({}, "pages of 8 tokens"), ({"last_token": None}, "give last_token")):
        with pytest.raises(OptionError, match=message):
            attend(paged, arrays, PrefillShape(16, 1, 1), **options)
    with pytest.raises(OptionError, match="has no prefill kernel"):
        GpuPrefill(*AttentionCase(head_dim=40).codecs())
