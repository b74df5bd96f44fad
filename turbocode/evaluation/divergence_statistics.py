"""The figures of llama-perplexity with --kl-divergence, from those of single tokens, in its order.

Standard errors take tokens for independent, as llama-perplexity does.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from turbocode.evaluation.token_divergence import Array, TokenFigures

PERCENTILES = {"p999": 99.9, "p99": 99.0, "p95": 95.0, "p90": 90.0, "median": 50.0, "p10": 10.0, "p5": 5.0, "p1": 1.0}
PERCENTILES_OF_P = {
    **{name: share for name, share in PERCENTILES.items() if share > 50},
    "p75": 75.0,
    "median": 50.0,
    "p25": 25.0,
    **{name: share for name, share in PERCENTILES.items() if share < 50},
    "p01": 0.1,
}
N_BUCKETS = 8


def mean_and_error(values: Array) -> tuple[float, float]:
    """(mean, standard error of the mean); the error of a single value is 0."""
    n = len(values)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0


def summarise(figures: TokenFigures) -> dict[str, Any]:
    """Perplexity, KL divergence in nats and probability differences, in the order of llama-perplexity, as JSON object.

    ppl, ppl_base, ln_ppl_correlation, ln_ppl_ratio, ppl_ratio, ppl_difference; kl_mean, kl_max, kl_p999 ... kl_min;
    delta_p_mean, delta_p_max ... delta_p_min, delta_p_rms: of p - p_base of the token that came next; same_top: share
    of tokens. `..._error` is the standard error of what stands before it.
    """
    return {**_perplexity(figures), **_divergence(figures), **_probability(figures)}


def _perplexity(figures: TokenFigures) -> dict[str, Any]:
    """Errors of ratio and difference count that both runs score the same tokens."""
    log_ppl, log_error = mean_and_error(figures.nll)
    log_base, base_error = mean_and_error(figures.nll_base)
    n = len(figures.nll)
    # Covariance of the two means.
    shared = float(np.cov(figures.nll, figures.nll_base)[0, 1] / n) if n > 1 else 0.0
    ppl, base = float(np.exp(log_ppl)), float(np.exp(log_base))
    ratio_error = np.sqrt(max(0.0, log_error**2 + base_error**2 - 2 * shared))
    variance = (ppl * log_error) ** 2 + (base * base_error) ** 2 - 2 * ppl * base * shared
    spread = log_error * base_error
    return {
        "n_tokens": n,
        "ppl": ppl,
        "ppl_error": ppl * log_error,
        "ppl_base": base,
        "ppl_base_error": base * base_error,
        "ln_ppl_correlation": shared / spread if spread else 1.0,
        "ln_ppl_ratio": log_ppl - log_base,
        "ln_ppl_ratio_error": float(ratio_error),
        "ppl_ratio": float(np.exp(log_ppl - log_base)),
        "ppl_ratio_error": float(np.exp(log_ppl - log_base) * ratio_error),
        "ppl_difference": ppl - base,
        "ppl_difference_error": float(np.sqrt(max(0.0, variance))),
    }


def _divergence(figures: TokenFigures) -> dict[str, Any]:
    mean, error = mean_and_error(figures.kl)
    return {
        "kl_mean": mean,
        "kl_mean_error": error,
        "kl_max": float(figures.kl.max()),
        **{f"kl_{name}": float(np.percentile(figures.kl, share)) for name, share in PERCENTILES.items()},
        "kl_min": float(figures.kl.min()),
    }


def _probability(figures: TokenFigures) -> dict[str, Any]:
    delta = figures.p - figures.p_base
    mean, error = mean_and_error(delta)
    mean_square, square_error = mean_and_error(delta**2)
    rms = float(np.sqrt(mean_square))
    same, n = float(figures.same_top.mean()), len(delta)
    return {
        "delta_p_mean": mean,
        "delta_p_mean_error": error,
        "delta_p_max": float(delta.max()),
        **{f"delta_p_{name}": float(np.percentile(delta, share)) for name, share in PERCENTILES_OF_P.items()},
        "delta_p_min": float(delta.min()),
        "delta_p_rms": rms,
        "delta_p_rms_error": square_error / (2 * rms) if rms else 0.0,
        "same_top": same,
        "same_top_error": float(np.sqrt(same * (1 - same) / (n - 1))) if n > 1 else 0.0,
    }


def by_position(figures: TokenFigures, positions: Array, n_buckets: int = N_BUCKETS) -> list[dict[str, Any]]:
    """Figures of runs of positions of about equal length, ascending: whether errors grow with the context.

    positions : (n,), where in its window each token stands
    """
    edges = np.linspace(positions.min(), positions.max() + 1, n_buckets + 1).astype(np.int64)
    rows = []
    for first, stop in itertools.pairwise(edges):
        inside = (positions >= first) & (positions < stop)
        if not inside.any():
            continue
        part = figures[inside]
        mean, error = mean_and_error(part.kl)
        rows.append(
            {
                "first": int(first),
                "last": int(stop) - 1,
                "n_tokens": int(inside.sum()),
                "ppl": float(np.exp(part.nll.mean())),
                "ppl_base": float(np.exp(part.nll_base.mean())),
                "kl_mean": mean,
                "kl_mean_error": error,
                "kl_median": float(np.median(part.kl)),
                "kl_p999": float(np.percentile(part.kl, PERCENTILES["p999"])),
                "same_top": float(part.same_top.mean()),
            }
        )
    return rows
