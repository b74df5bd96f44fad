"""`turbocode demo`: the main job from dump to C header, each step as the command that a user would type."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import NoInputError
from turbocode_cli.options import FILE, json_option, max_memory_option, quiet_option
from turbocode_cli.output import Invocation, emit, progress, table

if TYPE_CHECKING:
    from rich.console import Console

SHIPPED_DUMP = Path("data/tiny-pride.h5")
CODECS = (
    *("turbo2", "trellis2", "turbo3", "turbo3:rotation=none", "trellis3", "turbo4", "trellis4"),
    *("q4_0", "q4_0_rot", "q8_0", "f16"),
)


@click.command(name="demo")
@click.option("--dump", type=FILE, default=SHIPPED_DUMP, show_default=True, help="Dump to work on.")
@click.option(
    "-o", "--output", type=FILE, default=Path("demo-output"), show_default=True, help="Folder for what is written."
)
@max_memory_option
@json_option
@quiet_option
def command(dump: Path, output: Path, max_memory: int, as_json: bool, quiet: bool) -> None:
    """Run the main job on the shipped dump: inspect, train, quantize, compare, verify, export, plot.

    \b
    Examples:
      turbocode demo
      turbocode demo --dump data/tiny-pride.h5 -o demo-output --json
    """
    from turbocode.dumps import open_dump, write_text_atomically
    from turbocode.evaluation.plots import plot_error_by_rate
    from turbocode.evaluation.sweep import sweep_codecs

    if not dump.exists():
        raise NoInputError(
            "no such file", file=dump, hint="run the demo in a checkout of turbocode, or name a dump with --dump"
        )
    output.mkdir(parents=True, exist_ok=True)
    codebook, header, packed = output / "trained-3.json", output / "turbo3.h", output / "turbo3.h5"
    steps: list[list[str | Path]] = [
        ["inspect", dump],
        ["train-codebook", dump, "--bits", "3", "-o", codebook, "--plot", output / "trained-3.png", "--force"],
        ["quantize", dump, "-o", packed, "--k", "turbo3", "--v", "turbo3", "--force"],
        ["attend", "compare", dump, packed],
        ["verify", packed, "--against", dump],
        ["dequantize", packed, "-o", output / "decoded.h5", "--force"],
        ["export", "header", "turbo3", "-o", header, "--force"],
    ]
    for step in steps:
        _run([str(word) for word in step], quiet, as_json)
    with open_dump(dump) as source, progress("codecs", len(CODECS), quiet) as advance:
        rows = sweep_codecs(source, CODECS, output, max_memory=max_memory, force=True, advance=advance)
    picture = output / "error-by-rate.png"
    plot_error_by_rate(picture, [{**row, "name": row["codec"]} for row in rows], force=True)
    write_text_atomically(
        output / "codecs.json", json.dumps({"dump": str(dump), "codecs": rows}, indent=1) + "\n", force=True
    )
    emit({"output": output, "codecs": rows}, as_json, lambda console: _render(console, rows, output))


def _run(words: list[str], quiet: bool, is_silent: bool) -> None:
    from turbocode_cli.main import command as root

    if quiet and words[0] != "export":
        words = [*words, "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()) if is_silent else contextlib.nullcontext():
        click.echo(f"\n$ turbocode {shlex.join(words)}")
        root.main(args=words, prog_name="turbocode", standalone_mode=False, obj=Invocation())


def _render(console: Console, rows: list[dict[str, Any]], output: Path) -> None:
    columns = {
        "codec": "K and V",
        "bits_per_value": "bits/value",
        "compression": "smaller",
        "nmse_k": "NMSE K",
        "nmse_v": "NMSE V",
        "kl_mean": "KL mean",
        "kl_median": "KL median",
        "kl_p999": "KL 99.9 %",
        "output_error": "output error",
    }
    console.print("\nEvery codec on the same dump:")
    console.print(table(list(columns.values()), [[row[key] for key in columns] for row in rows]))
    console.print(f"wrote {output}: codebook, quantized files, C header, codecs.json and error-by-rate.png")
