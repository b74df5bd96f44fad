"""A cache spread over several devices, which the simulator has in one memory: plans, parts, and what they add up to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.attention_cases import AttentionCase, relative_error

from turbocode.codecs.split_attention import CachePart, SplitAttention, SplitPlan, split_heads, split_tokens
from turbocode.errors import OptionError
from turbocode.kernels.attention import cuda

CASE = AttentionCase(
    "turbo4", "turbo3", 64, n_seqs=2, n_heads=6, n_kv_heads=3, n_rows=2, n_tokens=80, last=((78, 79), (40, 41))
)


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "SHAPES", (cuda.Shape(1, 1, 2),))


def test_plans() -> None:
    assert split_heads(8, 3).parts == ((0, 2), (2, 5), (5, 8))
    assert split_tokens(100, 3).parts == ((0, 32), (32, 64), (64, 100))
    assert split_tokens(131072, 8).parts[-1] == (114688, 131072)
    for make, n, n_parts in ((split_heads, 2, 3), (split_heads, 2, 0), (split_tokens, 33, 3)):
        with pytest.raises(OptionError, match="allowed are 1 to 2"):
            make(n, n_parts)


def parts_of(plan: SplitPlan, arrays: dict[str, Any]) -> list[CachePart]:
    """The arrays as each part of a plan has them, in memory of their own."""
    found = []
    for first, stop in plan.parts:
        queries, keys, values = (arrays[name] for name in ("queries", "keys", "values"))
        if plan.by == "heads":
            per_head = CASE.n_heads // CASE.n_kv_heads
            queries = queries[:, first * per_head : stop * per_head]
            keys, values = keys[:, first:stop], values[:, first:stop]
        else:
            keys, values = keys[:, :, first:stop], values[:, :, first:stop]
        found.append(CachePart(*(np.ascontiguousarray(x) for x in (queries, keys, values)), arrays["last_token"]))
    return found


@pytest.mark.parametrize("plan", [split_heads(3, 2), split_tokens(80, 3)], ids=lambda plan: plan.by)
def test_parts_add_up(plan: SplitPlan, rng: np.random.Generator) -> None:
    arrays = CASE.build(rng)
    attention = SplitAttention(*CASE.codecs(), plan)
    output, lse = attention(parts_of(plan, arrays), scale=CASE.scale)
    assert output.dtype == arrays["queries"].dtype and relative_error(output, arrays["output"]) < 1e-3
    np.testing.assert_allclose(lse, arrays["lse"], rtol=0, atol=4e-3)
    with pytest.raises(OptionError, match="the plan has"):
        attention([], scale=1.0)
