"""Pictures, drawn with Matplotlib into PNG files; every picture is written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from turbocode.dumps import atomic_output
from turbocode.training.dump_codebook import TrainedCodebook

AnyPath = str | os.PathLike[str]
_DPI = 130
_HISTOGRAM_BINS = 1024  # as drawn; the histogram itself is finer
FLOAT32_NOISE = 1e-6


def _save(figure: Any, path: AnyPath, force: bool, inputs: Iterable[AnyPath] = ()) -> None:
    from pathlib import Path

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "turbocode"})
    with atomic_output(path, force=force, inputs=inputs) as part:
        Path(part).write_bytes(buffer.getvalue())


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=_DPI, layout="constrained")
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
    _save(figure, path, force, inputs)


def plot_error_by_rate(path: AnyPath, rows: Sequence[dict[str, Any]], *, force: bool = False) -> None:
    """Write a PNG of attention error against bits per value, one panel a figure.

    rows : each with `name`, `bits_per_value`, `kl_mean` and `output_error`; errors below what float32 resolves are
    left out, since the axes are logarithmic.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.8), dpi=_DPI, layout="constrained")
    labels = {"kl_mean": "mean KL divergence of attention (nats)", "output_error": "relative error of the output"}
    for axes, (key, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        shown = [row for row in rows if row[key] > FLOAT32_NOISE]
        for is_scalar, color, name in ((True, "C0", "turbo: one norm a group"), (False, "C1", "ggml: blocks of 32")):
            family = [row for row in shown if row["name"].startswith("turbo") == is_scalar]
            bits, errors = [row["bits_per_value"] for row in family], [row[key] for row in family]
            axes.semilogy(bits, errors, "o", color=color, label=name)
            for row in family:
                # Labels of the two families stand on opposite sides, since their rates are close.
                axes.annotate(
                    row["name"],
                    (row["bits_per_value"], row[key]),
                    xytext=(-7, -4) if is_scalar else (7, -2),
                    textcoords="offset points",
                    ha="right" if is_scalar else "left",
                    fontsize=8,
                )
        axes.set(xlabel="stored bits per value, everything counted", ylabel=label)
        axes.set_xlim(-0.5, 10.5)
        axes.grid(visible=True, which="major", alpha=0.4)
        axes.legend(loc="upper right")
    figure.suptitle("What coding K and V does to attention")
    _save(figure, path, force)
