"""Pictures, drawn with Matplotlib into PNG files; every picture is written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from turbocode.dumps import atomic_output
from turbocode.training.dump_codebook import TrainedCodebook

_DPI = 130
_HISTOGRAM_BINS = 256  # as drawn; the histogram itself is finer


def _save(figure: Any, path: str | os.PathLike[str], force: bool) -> None:
    from pathlib import Path

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "turbocode"})
    with atomic_output(path, force=force) as part:
        Path(part).write_bytes(buffer.getvalue())


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=_DPI, layout="constrained")
    return figure, figure.add_subplot()


def plot_codebook(path: str | os.PathLike[str], trained: TrainedCodebook, *, force: bool = False) -> None:
    """Write a PNG of the histogram that a codebook was trained on, with its centroids and boundaries."""
    figure, axes = _figure()
    histogram, codebook = trained.training, trained.codebook
    mass = histogram.masses(trained.is_weighted).reshape(_HISTOGRAM_BINS * 4, -1).sum(axis=1)
    centres = histogram.centres.reshape(_HISTOGRAM_BINS * 4, -1).mean(axis=1)
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
    _save(figure, path, force)


def plot_error_by_rate(path: str | os.PathLike[str], rows: Sequence[dict[str, Any]], *, force: bool = False) -> None:
    """Write a PNG of attention error against bits per value.

    rows : each with `name`, `bits_per_value`, `kl_mean` and `output_error`; zero errors are left out (log axes).
    """
    figure, axes = _figure()
    other = axes.twinx()
    for values, on, color, marker, label in (
        ("kl_mean", axes, "C0", "o", "mean KL divergence of attention (nats)"),
        ("output_error", other, "C1", "s", "relative error of the output"),
    ):
        shown = [row for row in rows if row[values] > 0]
        bits, heights = [row["bits_per_value"] for row in shown], [row[values] for row in shown]
        on.semilogy(bits, heights, marker, color=color, label=label)
        on.set_ylabel(label, color=color)
        if values == "kl_mean":
            for row in shown:
                on.annotate(
                    row["name"], (row["bits_per_value"], row[values]), xytext=(5, 4), textcoords="offset points"
                )
    axes.set_xlabel("stored bits per value, everything counted")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.set_title("What coding K and V does to attention")
    _save(figure, path, force)
