"""Every metric against its definition, written out token by token in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from turbocode.errors import DataError, OptionError
from turbocode.evaluation.divergence_statistics import by_position, mean_and_error, summarise
from turbocode.evaluation.token_divergence import ROW_BYTES, ReferenceBlock, TokenFigures, block_rows

N, WORDS = 60, 37


@pytest.fixture
def logits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(reference, coded, targets) of peaked and flat distributions that differ a little."""
    reference = rng.standard_normal((N, WORDS)) * rng.uniform(0.5, 8, (N, 1)) + rng.uniform(-50, 50, (N, 1))
    coded = reference + 0.3 * rng.standard_normal((N, WORDS))
    return reference.astype(np.float32), coded.astype(np.float32), rng.integers(0, WORDS, N)


def slow_figures(reference: np.ndarray, coded: np.ndarray, targets: np.ndarray) -> list[dict[str, float]]:
    rows = []
    for base, other, target in zip(reference, coded, targets, strict=True):
        p = [math.exp(float(x) - float(max(base))) for x in base]
        q = [math.exp(float(x) - float(max(other))) for x in other]
        p, q = [x / math.fsum(p) for x in p], [x / math.fsum(q) for x in q]
        rows.append(
            {
                "nll": -math.log(q[target]),
                "nll_base": -math.log(p[target]),
                "p": q[target],
                "p_base": p[target],
                "kl": math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)),
                "same_top": p.index(max(p)) == q.index(max(q)),
            }
        )
    return rows


def test_figures_of_tokens(logits: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    reference, coded, targets = logits
    figures = ReferenceBlock(reference, targets).compare(coded)
    slow = slow_figures(*logits)
    for name in slow[0]:
        np.testing.assert_allclose(getattr(figures, name), [row[name] for row in slow], rtol=1e-9, atol=1e-13)
    assert 0 < figures.same_top.sum() < N and (figures.kl > 0).all()


def test_equal_logits_differ_by_exactly_nothing(logits: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    reference, _, targets = logits
    summary = summarise(ReferenceBlock(reference, targets).compare(reference.copy()))
    assert {summary[key] for key in summary if key.startswith(("kl_", "delta_p"))} == {0.0}
    assert summary["same_top"] == summary["ppl_ratio"] == summary["ln_ppl_correlation"] == 1.0
    assert summary["ln_ppl_ratio_error"] == summary["ppl_difference_error"] == summary["same_top_error"] == 0.0


def test_blocks_of_any_size_give_the_same(logits: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    reference, coded, targets = logits
    whole = ReferenceBlock(reference, targets).compare(coded)
    parts = [ReferenceBlock(reference[i : i + 7], targets[i : i + 7]).compare(coded[i : i + 7]) for i in range(0, N, 7)]
    joined = TokenFigures.joined(parts)
    np.testing.assert_allclose(joined.kl, whole.kl, rtol=1e-12)
    assert np.array_equal(joined.same_top, whole.same_top)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(bad: float) -> None:
    odd = np.zeros((2, 3), np.float32)
    odd[1, 2] = bad
    with pytest.raises(DataError, match="NaN or an infinity"):
        ReferenceBlock(np.zeros((2, 3), np.float32), np.zeros(2, np.int64)).compare(odd)


def test_summary_by_definition(logits: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    slow = slow_figures(*logits)
    kl = [row["kl"] for row in slow]
    delta = [row["p"] - row["p_base"] for row in slow]
    nll, base = [row["nll"] for row in slow], [row["nll_base"] for row in slow]

    def mean(x: list[float]) -> float:
        return math.fsum(x) / len(x)

    def covariance_of_means(x: list[float], y: list[float]) -> float:
        products = [(a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True)]
        return math.fsum(products) / (len(x) - 1) / len(x)

    def quantile(x: list[float], share: float) -> float:
        ordered, place = sorted(x), share / 100 * (len(x) - 1)
        low = math.floor(place)
        high = min(low + 1, len(x) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    ppl, ppl_base = math.exp(mean(nll)), math.exp(mean(base))
    v_q, v_b, shared = (covariance_of_means(x, y) for x, y in ((nll, nll), (base, base), (nll, base)))
    ratio_error = math.sqrt(v_q + v_b - 2 * shared)
    rms = math.sqrt(mean([d * d for d in delta]))
    same = mean([float(row["same_top"]) for row in slow])
    expected = {
        "n_tokens": N,
        "ppl": ppl,
        "ppl_error": ppl * math.sqrt(v_q),
        "ppl_base": ppl_base,
        "ppl_base_error": ppl_base * math.sqrt(v_b),
        "ln_ppl_correlation": shared / math.sqrt(v_q * v_b),
        "ln_ppl_ratio": math.log(ppl / ppl_base),
        "ln_ppl_ratio_error": ratio_error,
        "ppl_ratio": ppl / ppl_base,
        "ppl_ratio_error": ppl / ppl_base * ratio_error,
        "ppl_difference": ppl - ppl_base,
        "ppl_difference_error": math.sqrt(ppl**2 * v_q + ppl_base**2 * v_b - 2 * ppl * ppl_base * shared),
        "kl_mean": mean(kl),
        "kl_mean_error": math.sqrt(covariance_of_means(kl, kl)),
        "kl_max": max(kl),
        "kl_min": min(kl),
        "delta_p_mean": mean(delta),
        "delta_p_mean_error": math.sqrt(covariance_of_means(delta, delta)),
        "delta_p_max": max(delta),
        "delta_p_min": min(delta),
        "delta_p_rms": rms,
        "delta_p_rms_error": math.sqrt(covariance_of_means([d * d for d in delta], [d * d for d in delta])) / (2 * rms),
        "same_top": same,
        "same_top_error": math.sqrt(same * (1 - same) / (N - 1)),
    }
    shares = {"p999": 99.9, "p99": 99, "p95": 95, "p90": 90, "median": 50, "p10": 10, "p5": 5, "p1": 1}
    expected |= {f"kl_{name}": quantile(kl, share) for name, share in shares.items()}
    more = {"p75": 75, "p25": 25, "p01": 0.1}
    expected |= {f"delta_p_{name}": quantile(delta, share) for name, share in (shares | more).items()}
    reference, coded, targets = logits
    found = summarise(ReferenceBlock(reference, targets).compare(coded))
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-12), name


def test_rows_stand_in_the_order_of_llama_perplexity(logits: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    reference, coded, targets = logits
    keys = [key for key in summarise(ReferenceBlock(reference, targets).compare(coded)) if not key.endswith("_error")]
    assert keys[1:7] == ["ppl", "ppl_base", "ln_ppl_correlation", "ln_ppl_ratio", "ppl_ratio", "ppl_difference"]
    divergence = ["mean", "max", "p999", "p99", "p95", "p90", "median", "p10", "p5", "p1", "min"]
    assert keys[7:18] == [f"kl_{name}" for name in divergence]
    assert keys[18:20] == ["delta_p_mean", "delta_p_max"] and keys[-2:] == ["delta_p_rms", "same_top"]


def test_a_single_token_has_no_error() -> None:
    assert mean_and_error(np.array([3.0])) == (3.0, 0.0)
    figures = ReferenceBlock(np.zeros((1, 3), np.float32), np.zeros(1, np.int64)).compare(np.ones((1, 3), np.float32))
    summary = summarise(figures)
    assert summary["kl_mean_error"] == summary["same_top_error"] == summary["ppl_error"] == 0.0


def test_buckets_of_positions(logits: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    reference, coded, targets = logits
    figures = ReferenceBlock(reference, targets).compare(coded)
    positions = np.tile(np.arange(100, 100 + N // 2), 2)  # two windows
    rows = by_position(figures, positions, 4)
    assert sum(row["n_tokens"] for row in rows) == N
    assert rows[0]["first"] == 100 and rows[-1]["last"] == 129
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        assert after is None or after["first"] == row["last"] + 1
        inside = (positions >= row["first"]) & (positions <= row["last"])
        assert row["kl_mean"] == pytest.approx(figures.kl[inside].mean())
        assert row["ppl"] == pytest.approx(np.exp(figures.nll[inside].mean()))
        assert row["same_top"] == pytest.approx(figures.same_top[inside].mean())
    assert len(by_position(figures[:3], positions[:3])) <= 3


def test_memory_bounds_the_rows() -> None:
    assert block_rows(150_000, 64 << 20) == (64 << 20) // (ROW_BYTES * 150_000) >= 1
    assert block_rows(150_000, 1 << 40) == block_rows(150_000, 256 << 20)
    with pytest.raises(OptionError, match="logits of one position"):
        block_rows(10_000_000, 64 << 20)
