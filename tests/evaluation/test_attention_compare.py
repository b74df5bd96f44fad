"""The attention figures against a direct computation with a full softmax in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.conversion import plan_quantize, quantize_dump
from turbocode.dumps import Dump, open_dump, open_quantized
from turbocode.dumps.synthesize import SynthesisSpec, synthesize
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.attention_compare import EncodedNow, StoredBlocks, compare_attention, tile_tokens
from turbocode.evaluation.attention_error import HeadComparison
from turbocode.policies import Recipe

PLENTY = 1 << 30


def softmax(s: np.ndarray) -> np.ndarray:
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def direct(
    q: Any, last: Any, k: Any, v: Any, ck: Any, cv: Any, scale: float, window: int, softcap: float
) -> dict[str, Any]:
    """Every figure of HeadComparison row by row, over the tokens that the row sees."""
    out: dict[str, list[Any]] = {
        key: [] for key in ("kl", "logit_variance", "same_top", "output", "output_k", "output_v", "output_kv")
    }
    for row, position in zip(q.astype(np.float64), last, strict=True):
        seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
        s, cs = scale * (k[seen] @ row), scale * (ck[seen] @ row)
        if softcap:
            s, cs = softcap * np.tanh(s / softcap), softcap * np.tanh(cs / softcap)
        p, cp = softmax(s), softmax(cs)
        out["kl"].append(float((p * (np.log(p) - np.log(cp))).sum()))
        out["logit_variance"].append(float((cs - s).var()))
        out["same_top"].append(float(s.argmax() == cs.argmax()))
        for key, weights, values in (("output", p, v), ("output_k", cp, v), ("output_v", p, cv), ("output_kv", cp, cv)):
            out[key].append(weights @ values[seen])
    return {key: np.array(value) for key, value in out.items()}


@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("softcap", [0.0, 4.0])
@pytest.mark.parametrize("slab", [1, 13, 60])
def test_slabs_accumulate_to_the_full_softmax(window: int, softcap: float, slab: int, rng: np.random.Generator) -> None:
    n, d = 60, 16
    k, v = rng.standard_normal((2, n, d)) * 2
    ck, cv = k + 0.2 * rng.standard_normal((n, d)), v + 0.2 * rng.standard_normal((n, d))
    q, last = rng.standard_normal((9, d)), np.sort(rng.integers(0, n, 9))
    comparison = HeadComparison(q, last, scale=0.5, window=window, softcap=softcap)
    for start in range(0, n, slab):
        part = slice(start, start + slab)
        comparison.add(start, k[part], v[part], ck[part], cv[part])
    result, expected = comparison.result(), direct(q, last, k, v, ck, cv, 0.5, window, softcap)
    assert set(result) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(result[key], value, rtol=1e-9, atol=1e-11, err_msg=key)


def exact_totals(dump: Dump, k: str, v: str) -> dict[str, Any]:
    """The totals of compare_attention, written the short way."""
    plan = plan_quantize(dump, Recipe(k=k, v=v))
    meta = dump.metadata
    group = meta.n_query_heads // meta.n_kv_heads
    kl: list[float] = []
    variance: list[float] = []
    squares = dict.fromkeys(("output", "k", "v", "kv"), 0.0)
    for layer in dump.layers:
        positions = layer.query_positions()
        for seq in range(layer.n_seqs):
            for head in range(meta.n_query_heads):
                kv = head // group
                sides, coded = {}, {}
                for side in ("keys", "values"):
                    codec = plan.codecs[layer.name, side]
                    x = layer.read(side, seq, kv)
                    sides[side] = x.astype(np.float64)
                    coded[side] = codec.decode(codec.encode(x)[0]).astype(np.float64)
                queries = layer.read("queries", seq, head)
                result = direct(
                    queries,
                    positions[seq],
                    sides["keys"],
                    sides["values"],
                    coded["keys"],
                    coded["values"],
                    meta.attention_scale,
                    layer.window,
                    layer.softcap,
                )
                kl += result["kl"].tolist()
                variance += result["logit_variance"].tolist()
                squares["output"] += np.square(result["output"]).sum()
                for key in ("k", "v", "kv"):
                    squares[key] += np.square(result[f"output_{key}"] - result["output"]).sum()
    return {
        "n_rows": len(kl),
        "logit_error": np.sqrt(np.mean(variance)),
        "kl_mean": np.mean(kl),
        "kl_median": np.median(kl),
        "kl_p999": np.percentile(kl, 99.9),
        "kl_max": np.max(kl),
        "output_error": np.sqrt(squares["kv"] / squares["output"]),
        "output_error_k": np.sqrt(squares["k"] / squares["output"]),
        "output_error_v": np.sqrt(squares["v"] / squares["output"]),
    }


def compared(dump: Dump, k: str, v: str, max_memory: int = PLENTY) -> dict[str, Any]:
    return compare_attention(dump, EncodedNow(plan_quantize(dump, Recipe(k=k, v=v))), max_memory=max_memory)


@pytest.mark.parametrize(("k", "v"), [("turbo3", "turbo3"), ("q4_0", "turbo2"), ("q8_0", "q8_0_rot")])
def test_totals_on_the_shipped_dump(k: str, v: str, tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        total, expected = compared(dump, k, v)["total"], exact_totals(dump, k, v)
    for key, value in expected.items():
        assert total[key] == pytest.approx(value, rel=1e-5), key
    assert total["kernel_error"] < 1e-5


def test_windows_softcap_sequences_and_other_head_dims(tmp_path: Path) -> None:
    path = tmp_path / "dump.h5"
    synthesize(
        path,
        SynthesisSpec(
            n_layers=2, n_seqs=2, n_tokens=150, n_query_heads=6, n_kv_heads=2, head_dim=80, n_rows=5, dtype="float32"
        ),
    )
    with open_dump(path) as dump:
        total, expected = compared(dump, "turbo4", "turbo3")["total"], exact_totals(dump, "turbo4", "turbo3")
    for key, value in expected.items():
        assert total[key] == pytest.approx(value, rel=2e-5), key


def test_memory_changes_no_figure(tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        many, few = compared(dump, "turbo3", "turbo3")["total"], compared(dump, "turbo3", "turbo3", 1_500_000)["total"]
    for key, value in many.items():
        assert few[key] == pytest.approx(value, rel=1e-6, abs=2e-7), key


def test_an_exact_cache_gives_exactly_zero(tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        total = compared(dump, "f16", "f16")["total"]
    for key in ("logit_error", "kl_mean", "kl_median", "kl_p999", "kl_max", "output_error_k", "output_error_v"):
        assert total[key] == 0.0
    assert total["same_top"] == 1.0
    assert total["output_error"] < 1e-6


def test_one_sided_coding_hurts_one_side(tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        keys, values = compared(dump, "turbo2", "f16")["total"], compared(dump, "f16", "turbo2")["total"]
    assert keys["output_error_v"] == 0.0
    assert values["output_error_k"] == values["kl_mean"] == 0.0
    assert min(keys["output_error"], values["output_error"]) > 0.1


def test_rotation_lowers_the_error_of_keys(tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        rotated, plain = (
            compared(dump, "turbo3", "f16")["total"],
            compared(dump, "turbo3:rotation=none", "f16")["total"],
        )
    for key in ("kl_mean", "kl_median", "kl_p999", "logit_error", "output_error"):
        assert rotated[key] < 0.9 * plain[key], key


def test_more_bits_are_better(tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        means = [compared(dump, name, name)["total"]["kl_mean"] for name in ("turbo2", "turbo3", "turbo4", "q8_0")]
    assert means == sorted(means, reverse=True)


def test_stored_blocks_give_the_same_figures(tmp_path: Path, tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        quantize_dump(dump, tmp_path / "q.h5", Recipe(k="turbo3", v="turbo4"), max_memory=PLENTY)
        with open_quantized(tmp_path / "q.h5") as quantized:
            stored = compare_attention(dump, StoredBlocks(quantized, dump), max_memory=PLENTY)
        now = compared(dump, "turbo3", "turbo4")
    assert stored["total"]["kl_mean"] == now["total"]["kl_mean"]
    assert [row["k"] for row in stored["layers"]] == ["turbo3"] * 4
    worst = stored["layers"][0]["worst_head"]
    assert worst["kl_mean"] >= stored["layers"][0]["kl_mean"]


def test_a_file_of_another_dump_is_refused(tmp_path: Path, tiny_pride: Path) -> None:
    other = tmp_path / "other.h5"
    synthesize(
        other, SynthesisSpec(n_layers=4, n_seqs=1, n_tokens=64, n_query_heads=4, n_kv_heads=2, head_dim=128, n_rows=2)
    )
    with open_dump(other) as dump:
        quantize_dump(dump, tmp_path / "q.h5", Recipe(), max_memory=PLENTY)
    with (
        open_dump(tiny_pride) as dump,
        open_quantized(tmp_path / "q.h5") as quantized,
        pytest.raises(DataError, match="not made from"),
    ):
        StoredBlocks(quantized, dump)


def test_a_dump_without_queries_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.h5"
    synthesize(
        path, SynthesisSpec(n_layers=1, n_seqs=1, n_tokens=64, n_query_heads=2, n_kv_heads=1, head_dim=64, n_rows=0)
    )
    with open_dump(path) as dump, pytest.raises(DataError, match="no queries"):
        compared(dump, "turbo3", "turbo3")


def test_too_little_memory_says_how_much_is_enough() -> None:
    with pytest.raises(OptionError) as error:
        tile_tokens(512, 128, 1000)
    assert error.value.hint is not None
    assert tile_tokens(512, 128, int(error.value.hint.split()[1])) == 64


def test_memory_stays_under_the_limit(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "long.h5"
    synthesize(
        path,
        SynthesisSpec(n_layers=1, n_seqs=1, n_tokens=16384, n_query_heads=4, n_kv_heads=1, head_dim=64, n_rows=32),
    )
    limit = 4 << 20
    with open_dump(path) as dump:
        compared(dump, "turbo3", "turbo3")  # loads and compiles what is needed
        tracemalloc.start()
        compared(dump, "turbo3", "turbo3", limit)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2 * limit
