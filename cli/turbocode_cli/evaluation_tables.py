"""How `turbocode evaluate` shows its figures: all of one codec, or the main ones of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turbocode_cli.output import number_text, table

if TYPE_CHECKING:
    from rich.console import Console

_PERPLEXITY = {
    "ppl": "perplexity, coded",
    "ppl_base": "perplexity, exact",
    "ln_ppl_correlation": "correlation of their logarithms",
    "ln_ppl_ratio": "ln of the ratio",
    "ppl_ratio": "ratio",
    "ppl_difference": "difference",
}
_DIVERGENCE = {
    "kl_mean": "KL mean",
    "kl_max": "KL max",
    "kl_p999": "KL 99.9 %",
    "kl_p99": "KL 99 %",
    "kl_p95": "KL 95 %",
    "kl_p90": "KL 90 %",
    "kl_median": "KL median",
    "kl_p10": "KL 10 %",
    "kl_p5": "KL 5 %",
    "kl_p1": "KL 1 %",
    "kl_min": "KL min",
}
_PROBABILITY = {
    "delta_p_mean": "Δp mean, %",
    "delta_p_max": "Δp max, %",
    "delta_p_p999": "Δp 99.9 %, %",
    "delta_p_p99": "Δp 99 %, %",
    "delta_p_p95": "Δp 95 %, %",
    "delta_p_p90": "Δp 90 %, %",
    "delta_p_p75": "Δp 75 %, %",
    "delta_p_median": "Δp median, %",
    "delta_p_p25": "Δp 25 %, %",
    "delta_p_p10": "Δp 10 %, %",
    "delta_p_p5": "Δp 5 %, %",
    "delta_p_p1": "Δp 1 %, %",
    "delta_p_p01": "Δp 0.1 %, %",
    "delta_p_min": "Δp min, %",
    "delta_p_rms": "Δp RMS, %",
    "same_top": "same top, %",
}
_COMPARED = (
    *("ppl", "kl_mean", "kl_max", "kl_p999", "kl_p99", "kl_p95", "kl_p90", "kl_median", "kl_min"),
    *("delta_p_mean", "delta_p_rms", "same_top"),
)
_NAMES = {**_PERPLEXITY, **_DIVERGENCE, **_PROBABILITY}
_BUCKETS = {
    "n_tokens": "tokens",
    "ppl": "perplexity, coded",
    "ppl_base": "exact",
    "kl_mean": "KL mean",
    "kl_median": "KL median",
    "kl_p999": "KL 99.9 %",
}


def render(console: Console, result: dict[str, Any]) -> None:
    """Print the tables of `evaluate_policies`' result."""
    codecs = result["codecs"]
    if len(codecs) == 1:
        rows = [[name, _figure(codecs[0], key)] for key, name in _NAMES.items()]
        console.print(table(["figure", codecs[0]["name"]], rows))
        console.print(table(["positions", *_BUCKETS.values()], [_bucket(row) for row in codecs[0]["by_position"]]))
    else:
        columns = ["codec", "bits/value", "perplexity", "change, %", *(_NAMES[key] for key in _COMPARED[1:])]
        console.print(table(columns, [_compared(row) for row in codecs]))
    bits = f"; {codecs[0]['bits_per_value']:.4g} bits a value" if len(codecs) == 1 else ""
    console.print(
        f"{result['model']} over {result['n_windows']} x {result['context']:,} tokens of {result['text']}; positions "
        f"{result['first']:,} to {result['last']:,} scored, {codecs[0]['n_tokens']:,} tokens; {result['mode']}, "
        f"{result['compute_dtype']}; perplexity with an exact cache {codecs[0]['ppl_base']:.4f}{bits}"
    )
    if "plot" in result:
        console.print(f"wrote {result['plot']}")


def _compared(row: dict[str, Any]) -> list[object]:
    change = f"{100 * (row['ppl_ratio'] - 1):+.2f} ± {100 * row['ppl_ratio_error']:.2f}"
    return [
        row["name"],
        row["bits_per_value"],
        number_text(row["ppl"], 5),
        change,
        *(_figure(row, k) for k in _COMPARED[1:]),
    ]


def _figure(row: dict[str, Any], key: str) -> str:
    """A figure with its standard error, probabilities in percent."""
    factor = 100 if key in _PROBABILITY else 1
    value = number_text(factor * row[key], 5 if key in ("ppl", "ppl_base", "ppl_ratio", "same_top") else 4)
    error = row.get(f"{key}_error")
    return value if error is None else f"{value} ± {number_text(factor * error, 2)}"


def _bucket(row: dict[str, Any]) -> list[object]:
    return [f"{row['first']:,} to {row['last']:,}", *(row[key] for key in _BUCKETS)]
