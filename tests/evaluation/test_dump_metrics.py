"""The metrics of a dump: rows against a direct computation, errors against NumPy, what is held out, intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.dumps import open_dump
from turbocode.dumps.synthesize import SynthesisSpec, synthesize
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.attention_metrics import TILE_TOKENS, TOP_TOKENS, HeadTokens, row_metrics
from turbocode.evaluation.block_entropy import BlockEntropy
from turbocode.evaluation.coding_error import CodingError
from turbocode.evaluation.dump_metrics import measure_dump
from turbocode.policies import Recipe, read_recipe
from turbocode.training.tune import tune_multirate

SPEC = SynthesisSpec(n_layers=1, n_seqs=2, n_tokens=160, n_query_heads=4, head_dim=32, n_rows=24)
PLENTY = 1 << 28


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("dumps") / "dump.h5"
    synthesize(found, SPEC)
    return found


def softmax(s: Any) -> Any:
    e = np.exp(s - s.max())
    return e / e.sum()


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (50, 3.0)])
def test_rows_against_a_direct_computation(window: int, softcap: float, rng: np.random.Generator) -> None:
    n, d = 200, 8
    k, v = rng.standard_normal((2, n, d)) * 1.5
    ck, cv = k + 0.3 * rng.standard_normal((n, d)), v + 0.3 * rng.standard_normal((n, d))
    queries, last = rng.standard_normal((5, d)) * 2, np.array([3, 64, 120, 198, 199])
    found = row_metrics(HeadTokens(k, v, ck, cv, 0.5, window, softcap), queries, last)
    for row, position in enumerate(last):
        seen = np.arange(max(0, position + 1 - window) if window else 0, position + 1)
        s, cs = 0.5 * k[seen] @ queries[row], 0.5 * ck[seen] @ queries[row]
        if softcap:
            s, cs = softcap * np.tanh(s / softcap), softcap * np.tanh(cs / softcap)
        p, q, delta = softmax(s), softmax(cs), cs - s
        o, hat = p @ v[seen], q @ cv[seen]
        top = np.argsort(-cs)[:TOP_TOKENS]
        small = q < 1e-3
        expected = {
            "kl": (p * np.log(p / q)).sum(),
            "logit_square": delta.var(),
            "logit_variance": (p * delta**2).sum() - (p * delta).sum() ** 2,
            "same_top": float(p.argmax() == q.argmax()),
            "top_mass": p[top].sum() / np.sort(p)[::-1][:TOP_TOKENS].sum(),
            "output": o @ o,
            "error": (hat - o) @ (hat - o),
            "error_k": ((q @ v[seen] - o) ** 2).sum(),
            "error_v": ((p @ cv[seen] - o) ** 2).sum(),
            "skipped_0.001": small.mean(),
            "skip_error_0.001": ((q[small] @ cv[seen][small]) ** 2).sum(),
        }
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, rel=1e-9, abs=1e-12), name
        kept, running = np.zeros(len(seen), bool), -np.inf
        for tile in np.unique(seen // TILE_TOKENS):
            inside = seen // TILE_TOKENS == tile
            running = max(running, cs[inside].max())
            kept |= inside & (cs[inside].max() >= running + np.log(1e-2))
        tiles = len(np.unique(seen // TILE_TOKENS))
        left_out = tiles - len(np.unique(seen[kept] // TILE_TOKENS))
        assert found["skipped_tiles_0.01"][row] == pytest.approx(left_out / tiles)
        error = softmax(np.where(kept, cs, -np.inf)) @ cv[seen] - hat
        assert found["tile_error_0.01"][row] == pytest.approx(error @ error, rel=1e-9, abs=1e-15)


def test_coding_errors(rng: np.random.Generator) -> None:
    exact = rng.standard_normal((2, 400, 6))
    bias = np.arange(6.0) * 0.1
    error = 0.2 * rng.standard_normal((2, 400, 6)) + bias
    error[:, 1::2] = error[:, ::2]  # pairs of tokens are off by the same
    sums, parts = CodingError(6), [CodingError(6), CodingError(6)]
    for part, x, e in zip(parts, exact, error, strict=True):
        part.add(x, x + e)
        sums.merge(part)
    found = sums.to_json()
    assert found["nmse"] == pytest.approx((error**2).sum() / (exact**2).sum())
    centred = error - error.mean(axis=1, keepdims=True)
    assert found["nmse_centred"] == pytest.approx((centred**2).sum() / (exact**2).sum())
    assert found["bias_share"] == pytest.approx(1 - (centred**2).sum() / (error**2).sum())
    assert found["projection"] == pytest.approx(((exact + error) * exact).sum(2).__truediv__((exact**2).sum(2)).mean())
    assert found["autocorrelation"][0] > found["autocorrelation"][1] + 0.1
    assert 4 < found["spectrum_rank"] <= 6 and found["kurtosis"] == pytest.approx(3, abs=0.5)
    nothing = CodingError(6)
    nothing.add(exact[0], exact[0])
    assert nothing.to_json()["nmse"] == 0 and nothing.to_json()["bias_share"] is None


def test_entropy_of_blocks(rng: np.random.Generator) -> None:
    entropy = BlockEntropy(16)
    for _ in range(3):
        entropy.add(np.stack([np.full(5000, 7), rng.integers(0, 4, 5000)], axis=1).astype(np.uint8))
    assert entropy.bits_per_value() == pytest.approx(2 / 16, rel=1e-3)
    assert entropy.bits_per_value() < entropy.rans_bits_per_value() < 2 / 16 + 0.005


def test_more_bits_measure_better_and_the_first_has_ratio_one(path: Path) -> None:
    recipes = [(name, Recipe(k=name, v=name)) for name in ("turbo2", "turbo4", "f16")]
    with open_dump(path) as dump:
        result = measure_dump(dump, recipes, max_memory=PLENTY)
        few = measure_dump(dump, recipes[:1], max_memory=1 << 17)  # some rows at a time
    rows = result["codecs"]
    assert result["n_blocks"] == 8 and few["codecs"][0] == rows[0]
    assert rows[0]["ratio_to_first"] == 1 and rows[0]["ratio_to_first_interval"] == [1, 1]
    for row in rows:
        low, high = row["total"]["kl_mean_interval"]
        assert low <= row["total"]["kl_mean"] <= high
    low, high = rows[1]["ratio_to_first_interval"]
    assert low < rows[1]["ratio_to_first"] < high < 0.3
    totals = [row["total"] for row in rows]
    for name in ("kl_mean", "kl_median", "output_error", "kl_mean_last", "logit_error"):
        assert totals[0][name] > 3 * totals[1][name] > 9 * totals[2][name], name
    assert totals[0]["output_error_alpha"] <= totals[0]["output_error_alpha_1"]
    assert totals[2]["kl_mean"] < 1e-6 and totals[2]["alpha"] == pytest.approx(1, abs=1e-4)
    assert rows[0]["layers"][0]["worst_head"]["kl_mean"] >= totals[0]["kl_mean"]


def test_what_was_calibrated_on_is_not_scored(path: Path, tmp_path: Path) -> None:
    with open_dump(path) as dump:
        tune_multirate([dump], 3.0).write([dump], 3.0, tmp_path / "tuned.yaml")
        recipes = [("tuned", read_recipe(tmp_path / "tuned.yaml"))]
        with pytest.raises(OptionError, match="tuned was calibrated on"):
            measure_dump(dump, recipes, max_memory=PLENTY)
        assert measure_dump(dump, recipes, max_memory=PLENTY, allows_same_tokens=True)["codecs"][0]["name"] == "tuned"
        with pytest.raises(OptionError, match="no codec"):
            measure_dump(dump, [], max_memory=PLENTY)


def test_a_dump_without_queries(tmp_path: Path) -> None:
    synthesize(tmp_path / "mute.h5", SynthesisSpec(n_layers=1, n_tokens=32, n_query_heads=2, head_dim=32, n_rows=0))
    with open_dump(tmp_path / "mute.h5") as dump, pytest.raises(DataError, match="no queries"):
        measure_dump(dump, [("turbo3", Recipe())], max_memory=PLENTY)


def test_the_shipped_recipe_is_far_better_than_the_plain_trellis() -> None:
    data = Path(__file__).parents[2] / "data"
    recipes = [
        ("trellis3", Recipe(k="trellis3", v="trellis3")),
        ("tuned", read_recipe(data / "lm-tiny-multirate.yaml")),
    ]
    with open_dump(data / "tiny-pride.h5") as dump:
        plain, tuned = measure_dump(dump, recipes, max_memory=PLENTY)["codecs"]
    assert tuned["total"]["bits_per_value"] <= 3.2
    assert tuned["ratio_to_first_interval"][1] < 0.5
    assert tuned["total"]["output_error"] < plain["total"]["output_error"]
    assert tuned["total"]["keys"]["projection"] == pytest.approx(1, abs=0.002)  # not shrunk, as the plain trellis's are
