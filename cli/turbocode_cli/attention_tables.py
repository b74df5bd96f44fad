"""The tables of `turbocode attend benchmark`, on a GPU and on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turbocode_cli.output import table

if TYPE_CHECKING:
    from rich.console import Console


def render_cpu(console: Console, result: dict[str, Any]) -> None:
    """Print what `benchmark_attention` found."""
    columns = ["K", "V", "bits/value", "encode M vec/s", "decode M vec/s", "attention ms", "NumPy ms", "ratio", "error"]
    rows = [
        [
            row["k"],
            row["v"],
            row["bits_per_value"],
            row["encode_vectors_per_s"] / 1e6,
            row["decode_vectors_per_s"] / 1e6,
            row["attention_s"] * 1e3,
            row["numpy_float32_s"] * 1e3,
            row["ratio"],
            row["relative_error"],
        ]
        for row in result["codecs"]
    ]
    console.print(table(columns, rows))
    for row in result["codecs"]:
        if row["whole_s"] is not None:
            times = f"{row['whole_s'] * 1e3:,.2f} ms instead of {row['attention_s'] * 1e3:,.2f}"
            console.print(f"  {_pair_text(row)} with nothing left out: {times}, error {row['whole_error']:.1e}")
    machine = result["machine"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores; {_shape_text(result['shape'])}; median of {result['repeats']}"
    )


def render_gpu(console: Console, result: dict[str, Any]) -> None:
    """Print what `benchmark_attention_on_gpu` found: a table a shape, and below it what could not be timed."""
    for shape in result["shapes"]:
        console.print(f"{shape['name']}: {_shape_text(shape['shape'])}")
        if shape["problem"]:
            console.print(f"  left out: {shape['problem']}")
            continue
        console.print(table(_COLUMNS, list(_gpu_rows(shape))))
        for row in shape["codecs"]:
            if not row["problem"] and row["default_seconds"] is not None:
                times = f"{row['default_seconds'] * 1e6:,.1f} us instead of {row['seconds'] * 1e6:,.1f}"
                console.print(f"  {_pair_text(row)} by default: {times}, error {row['default_error']:.1e}")
        left_out = [row for part in ("float16", "rivals", "codecs") for row in shape[part] if row["problem"]]
        for row in left_out:
            console.print(f"  {row.get('name') or _pair_text(row)} left out: {row['problem']}")
    device = result["device"]
    console.print(
        f"{device['name']}: copy {result['copy_gb_per_s']:,.0f} GB/s; median of {result['repeats']} replays; L2 cache "
        f"{result['l2']}; errors against float64 attention over the decoded values, allowed {result['error_bound']:g}"
    )


_COLUMNS = [
    "attention over",
    "bits/value",
    "us",
    "GB/s",
    "% of copy",
    "x float16",
    "% of bytes' ratio",
    "error",
    "in bound",
    "host us",
    "plain us",
    "decode us",
    "decode + attend us",
]


def _gpu_rows(shape: dict[str, Any]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    best = next((row["seconds"] for row in shape["float16"] if row["name"] == shape["best_float16"]), None)
    for row in (*shape["float16"], *shape["rivals"]):
        if row["problem"] is None:
            name = f"{row['name']} (best)" if row["name"] == shape["best_float16"] else row["name"]
            ratio = best / row["seconds"] if best else None
            rows.append([*_speed(name, row, ratio), None, None, None, _us(row["host_seconds"]), None, None, None])
    for row in shape["codecs"]:
        if row["problem"] is None:
            rows.append(
                [
                    *_speed(_pair_text(row), row, row["ratio"]),
                    _percent(row["share_of_bytes"]),
                    row["relative_error"],
                    row["is_within_bound"],
                    _us(row["host_seconds"]),
                    _us(row["plain_seconds"]),
                    _us(row["decode_seconds"]),
                    _us(row["decoded_attention_seconds"]),
                ]
            )
    return rows


def _speed(name: str, row: dict[str, Any], ratio: float | None) -> list[Any]:
    return [name, row["bits_per_value"], _us(row["seconds"]), row["gb_per_s"], _percent(row["share_of_copy"]), ratio]


def _pair_text(row: dict[str, Any]) -> str:
    return str(row["k"]) if row["k"] == row["v"] else f"{row['k']} / {row['v']}"


def _us(seconds: float | None) -> float | None:
    return None if seconds is None else 1e6 * seconds


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _shape_text(shape: dict[str, Any]) -> str:
    from turbocode.evaluation.attention_shapes import AttentionShape

    return str(AttentionShape(**shape))
