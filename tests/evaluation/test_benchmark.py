"""The benchmark's own arithmetic: its baseline is attention, and its figures are complete."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.compare import relative_error

from turbocode.errors import OptionError
from turbocode.evaluation.attention_shapes import AttentionShape
from turbocode.evaluation.benchmark import benchmark_attention, numpy_attention
from turbocode.kernels.attention import reference
from turbocode.kernels.attention.skipping import Skipping


def test_the_baseline_is_attention(rng: np.random.Generator) -> None:
    q = rng.standard_normal((2, 6, 1, 32)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, 3, 50, 32)).astype(np.float32)
    expected, _ = reference.decode_attention(q, k, v, np.full((2, 1), 49), scale=0.3)
    assert relative_error(numpy_attention(q, k, v, 0.3), expected) < 1e-6


def test_figures_are_complete() -> None:
    shape = AttentionShape(batch=2, tokens=300, q_heads=4, kv_heads=2, head_dim=64)
    result = benchmark_attention(shape, [("turbo3", "turbo2"), ("f16", "f16")], repeats=2, max_memory=1 << 30)
    assert result["machine"]["cores"] >= 1
    for row, bits in zip(result["codecs"], (2.75, 16.0), strict=True):
        assert row["bits_per_value"] == bits
        assert row["ratio"] == row["numpy_float32_s"] / row["attention_s"]
        assert row["relative_error"] < 1e-5
        assert min(row["encode_vectors_per_s"], row["decode_vectors_per_s"], row["packed_gb_per_s"]) > 0


def test_what_leaving_out_costs_is_shown() -> None:
    shape = AttentionShape(batch=1, tokens=400, q_heads=4, kv_heads=2, head_dim=64)
    options = {"skipping": Skipping(0.01, 0.01), "logit_scale": 4.0}
    result = benchmark_attention(shape, [("turbo3", "turbo2")], repeats=1, max_memory=1 << 30, **options)  # type: ignore[arg-type]
    row = result["codecs"][0]
    assert result["sparse_v"] == 0.01 and result["skip_tiles"] == 0.01 and result["logit_scale"] == 4.0
    assert row["whole_s"] > 0 and row["whole_error"] < 1e-5 and 1e-5 < row["relative_error"] < 0.1


@pytest.mark.parametrize("change", [{"batch": 0}, {"tokens": -1}, {"q_heads": 5}, {"kv_heads": 0}])
def test_shapes_that_mean_nothing_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(OptionError):
        AttentionShape(**change)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match="bytes of memory"):
        benchmark_attention(AttentionShape(tokens=1 << 20), [("turbo3", "turbo3")], max_memory=1 << 26)
