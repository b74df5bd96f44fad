"""A picture of an attention benchmark: time by context, ratio to float16 by bits per value, and the roofline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from turbocode.evaluation.attention_shapes import AttentionShape
from turbocode.evaluation.plots import DPI, AnyPath, save_figure

MAX_SHOWN = 8  # shapes whose ratios are drawn


def plot_attention(path: AnyPath, result: dict[str, Any], *, force: bool = False) -> None:
    """Write a PNG of three panels; result is that of `benchmark_attention_on_gpu`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(19.0, 5.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 3)
    _draw_times(panels[0], result)
    _draw_ratios(panels[1], result)
    _draw_roofline(panels[2], result)
    figure.suptitle(f"Decode attention over packed blocks, {result['device']['name']}")
    save_figure(figure, path, force)


def _rows(shape: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, figures) of the codecs of a shape that have figures."""
    for row in shape["codecs"]:
        if row["problem"] is None:
            yield (row["k"] if row["k"] == row["v"] else f"{row['k']} / {row['v']}"), row


def _best(shape: dict[str, Any]) -> dict[str, Any] | None:
    return next((row for row in shape["float16"] if row["name"] == shape["best_float16"]), None)


def _draw_times(axes: Any, result: dict[str, Any]) -> None:
    """Microseconds against tokens; shapes that differ in tokens alone are joined by lines."""
    curves: dict[tuple[str, tuple[int, ...]], list[tuple[int, float]]] = {}
    for shape in result["shapes"]:
        size = shape["shape"]
        heads = size["batch"], size["q_heads"], size["kv_heads"], size["head_dim"]
        best = _best(shape)
        timed = [*_rows(shape), *([("best float16", best)] if best else [])]
        for name, row in timed:
            curves.setdefault((name, heads), []).append((size["tokens"], 1e6 * row["seconds"]))
    names = list(dict.fromkeys(name for name, _ in curves))
    n_batches = len({sizes[0] for _, sizes in curves})
    for (name, sizes), points in curves.items():
        points.sort()
        color = "black" if name == "best float16" else f"C{names.index(name) % 10}"
        axes.loglog([x for x, _ in points], [y for _, y in points], marker="o", ms=4, lw=1, color=color, label=name)
        if n_batches > 1 and len(points) > 1:
            axes.annotate(f"{sizes[0]} x", points[-1], xytext=(5, -2), textcoords="offset points", fontsize=6)
    axes.set(xlabel="tokens in the cache of each sequence", ylabel="microseconds of a call")
    axes.grid(visible=True, which="both", alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    first = dict(reversed(list(zip(labels, handles, strict=True))))
    if first:
        axes.legend(list(first.values()), list(first), fontsize=7)


def _draw_ratios(axes: Any, result: dict[str, Any]) -> None:
    """How many times faster than the best float16, and what the bytes allow."""
    shapes = [shape for shape in result["shapes"] if shape["best_float16"]]
    if len(shapes) > MAX_SHOWN:
        _draw_ratios_of_many(axes, shapes)
        return
    for number, shape in enumerate(shapes):
        rows = sorted((row for _, row in _rows(shape)), key=lambda row: row["bits_per_value"])
        x = [row["bits_per_value"] for row in rows]
        axes.plot(x, [row["ratio"] for row in rows], "o", ms=5, color=f"C{number}", label=shape["name"])
    rates = sorted({row["bits_per_value"] for shape in shapes for _, row in _rows(shape)})
    axes.plot(rates, [16 / bits for bits in rates], color="black", lw=1, ls=":", label="what the bytes allow")
    axes.set(xlabel="stored bits per value", ylabel="times faster than the best float16", ylim=(0, None))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7)


def _draw_ratios_of_many(axes: Any, shapes: Sequence[dict[str, Any]]) -> None:
    """How many times faster than the best float16, against tokens, a line for each codec and batch."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for shape in shapes:
        for name, row in _rows(shape):
            label = f"{name}, {shape['shape']['batch']} x"
            curves.setdefault(label, []).append((shape["shape"]["tokens"], row["ratio"]))
    for label, points in curves.items():
        axes.semilogx(*zip(*sorted(points), strict=True), marker="o", ms=4, lw=1, label=label)
    axes.set(xlabel="tokens in the cache of each sequence", ylabel="times faster than the best float16", ylim=(0, None))
    axes.grid(visible=True, alpha=0.3)
    if len(curves) <= MAX_SHOWN:
        axes.legend(fontsize=7)


def _draw_roofline(axes: Any, result: dict[str, Any]) -> None:
    """Arithmetic against operations per byte, under the bandwidth of a copy."""
    reached: dict[str, list[tuple[float, float]]] = {}
    for shape in result["shapes"]:
        flops = AttentionShape(**shape["shape"]).flops
        best = _best(shape)
        for name, row in [*_rows(shape), *([("best float16", best)] if best else [])]:
            n_bytes = row["gb_per_s"] * 1e9 * row["seconds"]
            reached.setdefault(name, []).append((flops / n_bytes, flops / row["seconds"] / 1e12))
    for number, (name, points) in enumerate(reached.items()):
        color = "black" if name == "best float16" else f"C{number % 10}"
        axes.loglog([x for x, _ in points], [y for _, y in points], "o", ms=4, color=color, label=name)
    intensities = [x for points in reached.values() for x, _ in points]
    if intensities:
        reach = [0.7 * min(intensities), 1.4 * max(intensities)]
        axes.plot(reach, [x * result["copy_gb_per_s"] / 1e3 for x in reach], color="0.3", lw=1, ls=":", label="a copy")
        axes.legend(fontsize=7)
    axes.set(xlabel="operations per byte read or written", ylabel="10^12 operations per second")
    axes.grid(visible=True, which="both", alpha=0.3)
