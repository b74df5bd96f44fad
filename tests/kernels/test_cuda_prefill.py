"""Prefill attention on a real GPU, in the layouts that it chooses there: all formats, odd lengths, every option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.attention_cases import AttentionCase, relative_error

from turbocode.codecs.gpu_prefill import GpuPrefill
from turbocode.evaluation.environment import cuda_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_problem() is not None, reason=f"no GPU: {cuda_problem()}"),
]
ERROR = 1e-3
FORMATS = (
    *("turbo2", "turbo3", "turbo4", "turbo2_0", "turbo3_0", "turbo4_0", "q8_0", "q4_0", "f16"),
    *("trellis1", "trellis2", "trellis3", "trellis4", "turbo1_tcq", "turbo2_tcq", "turbo3_tcq", "trellis2_l12"),
)


def prompt(k: str, v: str, head_dim: int, n_tokens: int, n_rows: int, **options: Any) -> AttentionCase:
    last = (tuple(range(n_tokens - n_rows, n_tokens)),) * options.get("n_seqs", 1)
    return AttentionCase(k, v, head_dim, n_tokens=n_tokens, n_rows=n_rows, last=last, **options)


LENGTHS = tuple(tuple(range(n - 40, n)) for n in (300, 41, 17))  # 23 rows of the third see nothing

CASES = {
    **{name: prompt(name, name, 128, 200, 200) for name in FORMATS},
    "64": prompt("turbo3", "turbo2", 64, 333, 77, n_seqs=2, n_heads=6, n_kv_heads=2, dtype="float16"),
    "80": prompt("trellis2", "turbo4", 80, 131, 131, n_heads=2, softcap=8.0, has_gains=True),
    "96, window": prompt("turbo4", "trellis3", 96, 1025, 513, n_heads=3, window=100),
    "256": prompt("turbo3", "turbo4", 256, 129, 65, dtype="float16", spare=3),
    "one row": prompt("turbo4", "turbo4", 128, 1, 1),
    "4,097 tokens": prompt("turbo3", "turbo3", 128, 4097, 300),
    "pages of 16": prompt("turbo3", "turbo4", 128, 1003, 333, n_seqs=2, n_heads=8, n_kv_heads=2, page=16),
    "pages of 64, window": prompt("trellis3", "q8_0", 128, 2049, 600, page=64, window=200, dtype="float16"),
    "pages of 256, softcap": prompt("turbo2", "f16", 256, 700, 129, page=256, softcap=8.0, has_gains=True),
    "pages, other lengths": AttentionCase(
        "turbo4", "trellis2", 80, n_seqs=3, n_heads=2, n_tokens=300, n_rows=40, page=32, last=LENGTHS
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_prefill(name: str, rng: np.random.Generator) -> None:
    from turbocode.kernels._graph import Gpu

    case = CASES[name]
    arrays, gpu = case.build(rng), Gpu(0)

    def up(host: Any) -> Any:
        if host is None:
            return None
        array = gpu.empty(host.shape, str(host.dtype))
        gpu.upload(np.ascontiguousarray(host), array)
        return array

    shape = arrays["queries"].shape
    out, lse = gpu.empty(shape, case.dtype), gpu.empty(shape[:-1], "float32")
    given = [up(arrays[part]) for part in ("queries", "keys", "values", "last_token")]
    attend = GpuPrefill(*case.codecs())
    kept = {name: up(arrays[name]) for name in ("gains", "pages")}
    attend(*given, **kept, out=out, lse=lse, stream=gpu.stream, **case.options())
    found, sums = np.empty(shape, case.dtype), np.empty(shape[:-1], np.float32)
    gpu.download(out, found)
    gpu.download(lse, sums)
    gpu.wait()
    assert relative_error(found, arrays["output"]) <= ERROR
    np.testing.assert_allclose(sums, arrays["lse"], rtol=0, atol=4 * ERROR)
