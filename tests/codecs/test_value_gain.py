"""Gains on attention's output: what they say, and what they do to the figures of a comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from turbocode.codecs.value_gain import ValueGain
from turbocode.conversion import plan_quantize
from turbocode.dumps import open_dump
from turbocode.dumps.synthesize import SynthesisSpec, synthesize
from turbocode.errors import OptionError
from turbocode.evaluation.attention_compare import EncodedNow, compare_attention
from turbocode.policies import Recipe


@pytest.mark.parametrize(
    ("text", "n_seen", "expected"),
    [
        ("1.02", [1, 50], [[1.02, 1.02], [1.02, 1.02]]),
        ("1.1484,-0.01443,0.98,1.06", [1, 2048, 10**7], [[1.06, 1.1484 - 0.01443 * np.log(2048), 0.98]] * 2),
        ("heads:0.9,1.1", [7], [[0.9], [1.1]]),
    ],
)
def test_gains_are_what_the_text_says(text: str, n_seen: list[int], expected: list[list[float]]) -> None:
    np.testing.assert_allclose(ValueGain.parse(text).of(np.array(n_seen), 2), expected, rtol=1e-6)


@pytest.mark.parametrize("text", ["", "a", "1,2,3", "heads:", "1,2,3,4,5", "nan", "1,0,2,1", "1,0,-1,1"])
def test_what_is_no_gain_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="gain"):
        ValueGain.parse(text)


def test_the_best_gain_is_the_best(tmp_path: Path) -> None:
    spec = SynthesisSpec(n_layers=2, n_tokens=60, n_query_heads=2, n_kv_heads=1, head_dim=32, n_rows=8)
    synthesize(tmp_path / "d.h5", spec)
    with open_dump(tmp_path / "d.h5") as dump:
        source = EncodedNow(plan_quantize(dump, Recipe(k="turbo2", v="turbo2")))

        def compare(gain: ValueGain) -> dict[str, dict[str, float]]:
            found = compare_attention(dump, source, max_memory=1 << 30, gain=gain)
            return {"total": found["total"], "layer": found["layers"][0]}

        plain = compare(ValueGain())
        best = plain["total"]["best_v_gain"]
        found = {factor: compare(ValueGain((factor * best,))) for factor in (0.99, 1.0, 1.01)}
        at_best = found[1.0]["total"]
        assert at_best["output_error"] == pytest.approx(plain["total"]["best_v_gain_error"], rel=1e-5)
        assert at_best["output_error"] < min(found[f]["total"]["output_error"] for f in (0.99, 1.01))
        assert at_best["output_error"] < plain["total"]["output_error"]
        assert at_best["best_v_gain"] == best and at_best["kernel_error"] < 1e-5
        by_head = compare(ValueGain(tuple(plain["layer"]["best_v_gain_by_head"])))["layer"]  # type: ignore[arg-type]
        assert by_head["output_error"] <= plain["layer"]["best_v_gain_error"] + 1e-9
        with pytest.raises(OptionError, match="2 query heads"):
            compare(ValueGain((1.0, 1.0, 1.0)))
