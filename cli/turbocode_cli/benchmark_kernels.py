"""`turbocode benchmark kernels`: bandwidth and rate of every kernel of the GPU, beside a copy in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import DeviceError
from turbocode_cli.options import FILE, INSTALL_CUDA, device_option, force_option, json_option, quiet_option
from turbocode_cli.output import emit, progress, table

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="kernels")
@click.option("--codec", "codecs", multiple=True, metavar="NAME", help="Only this codec; can be given again.")
@click.option("--values", type=click.IntRange(1), default=1 << 28, show_default=True, help="Values a kernel handles.")
@click.option("--repeats", type=click.IntRange(1, 1000), default=20, show_default=True, help="Runs; the median counts.")
@click.option("--plot", type=FILE, metavar="FILE", help="Write a PNG of the bandwidths.")
@device_option
@force_option
@json_option
@quiet_option
def command(
    codecs: tuple[str, ...],
    values: int,
    repeats: int,
    plot: Path | None,
    device: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Time a copy, the Hadamard transform, encoding and decoding on a GPU, as replayed graphs.

    \b
    Examples:
      turbocode benchmark kernels
      turbocode benchmark kernels --codec turbo3 --codec trellis3 --json

    Bandwidth counts bytes read plus bytes written. `exact` kernels write the CPU's blocks; `fast` ones round some sums
    in another order. The transform is compared with fast_hadamard_transform where that is installed.
    """
    if device is None:
        raise DeviceError(
            "the kernels of the GPU need one, and the device is cpu", hint=f"{INSTALL_CUDA}; --device cuda"
        )
    from turbocode.evaluation.kernel_benchmark import CODECS, benchmark_kernels, n_cases

    chosen = codecs or CODECS
    with progress("benchmark", n_cases(chosen), quiet) as advance:
        result = benchmark_kernels(device, n_values=values, codecs=chosen, repeats=repeats, advance=advance)
    if plot is not None:
        from turbocode.evaluation.plots import plot_kernels

        plot_kernels(plot, result, force=force)
    emit(result, as_json, lambda console: _render(console, result))


def _render(console: Console, result: dict[str, Any]) -> None:
    rows = [
        [row["name"], row["seconds"] * 1e6, row["gb_per_s"], 100 * row["share_of_copy"], row["values_per_s"] / 1e9]
        for row in result["kernels"]
    ]
    console.print(table(["kernel", "us", "GB/s", "% of copy", "G values/s"], rows))
    console.print(
        table(["call from Python", "us of host time"], [[r["name"], r["microseconds"]] for r in result["launches"]])
    )
    console.print(
        f"{result['device']['name']}: copy {result['copy_gb_per_s']:,.0f} GB/s; {result['n_values']:,} values, "
        f"trellis encoders a sixteenth; median of {result['repeats']}"
    )
