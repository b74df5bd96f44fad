"""Pictures, drawn with Matplotlib into PNG files; every picture is written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from turbocode.dumps import atomic_output
from turbocode.training.dump_codebook import TrainedCodebook
from turbocode.training.trellis_codebook import TrainingState

AnyPath = str | os.PathLike[str]
DPI = 130
_HISTOGRAM_BINS = 1024  # as drawn; the histogram itself is finer
FLOAT32_NOISE = 1e-6
# Side of a family's labels, its colour, its legend, and what `_family_of` calls it.
_FAMILIES = (
    (-1, "C0", "turbo: scalar, one norm a group", "scalar"),
    (-1, "C2", "trellis, one norm a group", "trellis"),
    (1, "C1", "ggml: blocks of 32", "ggml"),
)


def save_figure(figure: Any, path: AnyPath, force: bool, inputs: Iterable[AnyPath] = ()) -> None:
    """Write a Matplotlib figure as a PNG, whole or not at all; inputs : files that `path` must not be."""
    from pathlib import Path

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "turbocode"})
    with atomic_output(path, force=force, inputs=inputs) as part:
        Path(part).write_bytes(buffer.getvalue())


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()


def plot_codebook(
    path: AnyPath, trained: TrainedCodebook, *, force: bool = False, inputs: Iterable[AnyPath] = ()
) -> None:
    """Write a PNG of the histogram that a codebook was trained on, with its centroids and boundaries.

    inputs : files that `path` must not be
    """
    figure, axes = _figure()
    histogram, codebook = trained.training, trained.codebook
    mass = histogram.masses(trained.is_weighted).reshape(_HISTOGRAM_BINS, -1).sum(axis=1)
    centres = histogram.centres.reshape(_HISTOGRAM_BINS, -1).mean(axis=1)
    width = centres[1] - centres[0]
    axes.fill_between(centres, mass / (mass.sum() * width), step="mid", color="0.8", label="rotated coordinates")
    axes.plot(centres, np.exp(-(centres**2) / 2) / np.sqrt(2 * np.pi), color="0.4", lw=1, label="N(0, 1)")
    for number, centroid in enumerate(codebook.centroids):
        axes.axvline(centroid, color="C0", lw=1.2, label="centroids" if number == 0 else None)
    for number, boundary in enumerate(codebook.boundaries):
        axes.axvline(boundary, color="C1", lw=0.8, ls=":", label="boundaries" if number == 0 else None)
    reach = 1.3 * float(np.abs(codebook.centroids).max())
    axes.set(xlim=(-reach, reach), ylim=(0, None), xlabel="coordinate / standard deviation", ylabel="density")
    axes.set_title(f"{codebook.name}: NMSE {codebook.nmse:.5f}")
    axes.legend(loc="upper right")
    save_figure(figure, path, force, inputs)


def _family_of(codec: str) -> str:
    if codec.startswith("trellis") or "_tcq" in codec:
        return "trellis"
    return "scalar" if codec.startswith("turbo") else "ggml"


def plot_error_by_rate(path: AnyPath, rows: Sequence[dict[str, Any]], *, force: bool = False) -> None:
    """Write a PNG of attention error against bits per value, one panel a figure.

    rows : each with `name`, `bits_per_value`, `kl_mean` and `output_error`; errors below what float32 resolves are
    left out, since the axes are logarithmic.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.8), dpi=DPI, layout="constrained")
    labels = {"kl_mean": "mean KL divergence of attention (nats)", "output_error": "relative error of the output"}
    for axes, (key, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        shown = [row for row in rows if row[key] > FLOAT32_NOISE]
        for side, color, name, members in _FAMILIES:
            family = [row for row in shown if _family_of(row["name"]) == members]
            bits, errors = [row["bits_per_value"] for row in family], [row[key] for row in family]
            axes.semilogy(bits, errors, "o", color=color, label=name)
            for row in family:
                # Labels of neighbouring families stand on opposite sides, since their rates are close.
                axes.annotate(
                    row["name"],
                    (row["bits_per_value"], row[key]),
                    xytext=(7 * side, -3),
                    textcoords="offset points",
                    ha="right" if side < 0 else "left",
                    fontsize=8,
                )
        axes.set(xlabel="stored bits per value, everything counted", ylabel=label)
        axes.set_xlim(-0.5, 10.5)
        axes.grid(visible=True, which="major", alpha=0.4)
        axes.legend(loc="lower left")
    figure.suptitle("What coding K and V does to attention")
    save_figure(figure, path, force)


def plot_training_report(
    path: AnyPath,
    rates: Sequence[dict[str, Any]],
    *,
    training: TrainingState | None = None,
    autocorrelation: Sequence[float] = (),
    force: bool = False,
    inputs: Iterable[AnyPath] = (),
) -> None:
    """Write a PNG of the distance to Shannon and, for a trellis, NMSE per iteration and the error's autocorrelation.

    rates : rows of `rate_distortion.distance_to_shannon`
    autocorrelation : r at lags 0, 1, ...
    """
    from matplotlib.figure import Figure

    n_panels = 3 if training else 1
    figure = Figure(figsize=(6.0 * n_panels, 4.8), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(1, n_panels, squeeze=False)[0])
    _draw_distances(panels[-1], rates)
    if training:
        _draw_history(panels[0], training)
        lags = range(1, len(autocorrelation))
        panels[1].stem(lags, list(autocorrelation)[1:], basefmt="0.6")
        reach = 1.3 * max(0.02, *(abs(r) for r in list(autocorrelation)[1:]))
        panels[1].set(ylim=(-reach, reach), xlabel="lag / coordinates", ylabel="autocorrelation of the coding error")
        panels[1].set_title("white within 0.01: order of channels does not matter", fontsize=10)
        panels[1].axhspan(-0.01, 0.01, color="0.9", zorder=0)
    save_figure(figure, path, force, inputs)


def _draw_history(axes: Any, training: TrainingState) -> None:
    for restart in sorted({entry["restart"] for entry in training.history}):
        entries = [entry for entry in training.history if entry["restart"] == restart]
        x = [entry["iteration"] + 1 for entry in entries]
        color = f"C{restart % 10}"
        axes.loglog(x, [entry["nmse_holdout"] for entry in entries], color=color, lw=1.4, label=f"start {restart + 1}")
        axes.loglog(x, [entry["nmse"] for entry in entries], color=color, lw=0.6, alpha=0.5)
    axes.axhline(training.best_nmse, color="0.3", lw=0.8, ls=":", label=f"best {training.best_nmse:.5f}")
    axes.set(xlabel="iteration", ylabel="NMSE (bold: held out, thin: training)")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(loc="upper right", fontsize=8)


def _draw_distances(axes: Any, rates: Sequence[dict[str, Any]]) -> None:
    markers = {"scalar": "s", "entropy-coded scalar": "D", "this codebook": "*"}
    for label in dict.fromkeys(row["family"] for row in rates):
        rows = [row for row in rates if row["family"] == label]
        is_own = label == "this codebook"
        axes.plot(
            [row["bits"] for row in rows],
            [row["shannon_gap_db"] for row in rows],
            marker=markers.get(label, "o"),
            ms=13 if is_own else 5,
            ls="none" if is_own else "-",
            color="black" if is_own else None,
            label=label,
        )
    axes.set(xlabel="bits of an index", ylabel="dB above the rate-distortion bound of a Gaussian", ylim=(0, None))
    axes.set_xticks(sorted({row["bits"] for row in rates}))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)


def plot_kernels(path: AnyPath, result: dict[str, Any], *, force: bool = False) -> None:
    """Write a PNG of the bandwidth of each kernel beside that of a copy; result is kernel_benchmark's."""
    from matplotlib.figure import Figure

    rows = list(reversed(result["kernels"]))
    figure = Figure(figsize=(9.0, 1.5 + 0.24 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colors = {"FWHT": "C0", "encode": "C1", "decode": "C2"}
    axes.barh(
        [row["name"] for row in rows],
        [row["gb_per_s"] for row in rows],
        color=[colors.get(row["name"].split()[0], "C7") for row in rows],
    )
    for number, row in enumerate(rows):
        rate = row["values_per_s"] / 1e9
        axes.annotate(
            f"{100 * row['share_of_copy']:.0f} %, {rate:,.{0 if rate >= 100 else 2}f} G values/s",
            (row["gb_per_s"], number),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.axvline(result["copy_gb_per_s"], color="black", lw=1, ls=":", label="copy")
    axes.set(xlabel="GB/s, bytes read plus written", xlim=(0, 1.35 * result["copy_gb_per_s"]), ylim=(-0.7, len(rows)))
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(loc="lower right")
    axes.set_title(f"{result['device']['name']}, {result['n_values']:,} values")
    save_figure(figure, path, force)


def plot_error_by_position(path: AnyPath, result: dict[str, Any], *, force: bool = False) -> None:
    """Write a PNG of mean and median KL divergence by position in the window; result is `evaluate_policies`'."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.8), dpi=DPI, layout="constrained")
    labels = {"kl_mean": "mean KL divergence (nats)", "kl_median": "median KL divergence (nats)"}
    for axes, (key, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for row in result["codecs"]:
            buckets = [bucket for bucket in row["by_position"] if bucket[key] > 0]  # the axes are logarithmic
            x = [(bucket["first"] + bucket["last"]) / 2 for bucket in buckets]
            y = [bucket[key] for bucket in buckets]
            error = [bucket["kl_mean_error"] for bucket in buckets] if key == "kl_mean" else None
            axes.errorbar(x, y, yerr=error, marker="o", ms=4, lw=1.2, capsize=2, label=row["name"])
        axes.set(xlabel="position in the window", ylabel=label, yscale="log")
        axes.grid(visible=True, which="major", alpha=0.4)
    if any(bucket["kl_mean"] > 0 for row in result["codecs"] for bucket in row["by_position"]):
        figure.axes[0].legend(fontsize=8, ncols=2)
    figure.suptitle(
        f"{result['model']}, {result['n_windows']} windows of {result['context']:,} tokens, {result['mode']}"
    )
    save_figure(figure, path, force)
