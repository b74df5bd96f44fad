"""`turbocode inspect`: what is in a dump, a quantized file or a calibration file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode_cli.options import FILE, json_option, nonfinite_option, quiet_option
from turbocode_cli.output import emit, number_text, progress, size_text, table

if TYPE_CHECKING:
    from rich.console import Console

SIDES = ("keys", "values")
_KINDS = {"dump": "KV dump", "quantized": "quantized KV cache", "calibration": "calibration"}


@click.command(name="inspect")
@click.argument("file", type=FILE)
@click.option(
    "--sample-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of each layer that statistics are made of; by default as many as take about a second.",
)
@nonfinite_option
@json_option
@quiet_option
def command(file: Path, sample_tokens: int | None, nonfinite: str, as_json: bool, quiet: bool) -> None:
    """Show what is in a dump, a quantized file or a calibration file.

    \b
    Examples:
      turbocode inspect data/tiny-pride.h5
      turbocode inspect data/tiny-pride.h5 --sample-tokens 256 --json

    For each layer of a dump: the norms of its vectors, the share of their energy that is constant over tokens,
    channels of more than 3 times the median RMS, and the kurtosis (3: Gaussian) before and after rotation.
    """
    from turbocode.evaluation.inspection import inspect_file

    with progress("inspect", 0, quiet) as advance:
        found = inspect_file(file, sample_tokens=sample_tokens, nonfinite=nonfinite, advance=advance)
    emit(found, as_json, lambda console: _render(console, found))


def _render(console: Console, found: dict[str, Any]) -> None:
    about, n_bytes = found["metadata"], found["bytes"]
    console.print(f"{found['file']}: {_KINDS[found['kind']]}")
    console.print(f"  model     {about['model'] or 'unknown'}, from {about['source'] or 'unknown'}")
    console.print(
        f"  shape     {about['n_layers']} layers, {about['n_query_heads']} query heads, "
        f"{about['n_kv_heads']} KV heads, head_dim {about['head_dim']}, {about['logical_dtype']}"
    )
    sizes = ", ".join(f"{name} {size_text(n_bytes[name])}" for name in ("file", "keys", "values"))
    if found["kind"] == "dump":
        console.print(f"  bytes     {sizes}; integrity {found['integrity']}")
        _render_dump(console, found)
    elif found["kind"] == "calibration":
        console.print(f"  bytes     {sizes}")
        console.print(f"  dump      sha256 {found['dump_sha256']}")
        console.print(table(["layer", "side", "fitted", "bytes", "arrays"], list(_fitted_rows(found))))
    else:
        console.print(
            f"  bytes     {sizes}; {number_text(n_bytes['compression'])} times smaller than the dump's values"
        )
        console.print(f"  dump      sha256 {found['dump_sha256']}")
        _render_quantized(console, found)


def _render_dump(console: Console, found: dict[str, Any]) -> None:
    sample = found["sample"]
    console.print(f"  sample    {sample['tokens_read']:,} of {sample['tokens_total']:,} tokens of all layers were read")
    if sample["nonfinite"]:
        console.print(f"  warning   {sample['nonfinite']:,} values of them are not finite and were taken as 0")
    rows = []
    for layer in found["layers"]:
        for side in SIDES:
            data = layer[side]
            norm, outliers, kurtosis = data["norm"], data["outliers"], data["kurtosis"]
            rows.append(
                [
                    layer["layer"],
                    side,
                    *(layer["shape"][i] for i in (0, 2)),
                    *(norm[key] for key in ("min", "median", "max")),
                    f"{data['constant_share']:.1%}",
                    outliers["channels"],
                    f"{outliers['largest_ratio']:.2f} (head {outliers['head']}, channel {outliers['channel']})",
                    kurtosis["plain"],
                    kurtosis["rotated"],
                ]
            )
    columns = ["layer", "side", "seqs", "tokens", "norm min", "median", "max", "constant", "outliers", "largest"]
    console.print(table([*columns, "kurtosis", "rotated"], rows))


def _fitted_rows(found: dict[str, Any]) -> Iterator[list[Any]]:
    for layer in found["layers"]:
        for side in SIDES:
            for entry in layer[side]:
                arrays = (f"{name} {'x'.join(map(str, data['shape']))}" for name, data in entry["arrays"].items())
                yield [layer["layer"], side, entry["name"], size_text(entry["bytes"]), ", ".join(arrays)]


def _render_quantized(console: Console, found: dict[str, Any]) -> None:
    rows = []
    for layer in found["layers"]:
        for side in SIDES:
            data = layer[side]
            rows.append(
                [
                    layer["layer"],
                    side,
                    data["codec"]["codec"],
                    data["codec"]["rotation"],
                    data["codec"]["norm_mode"],
                    data["bits_per_value"],
                    data["compression"],
                    size_text(data["bytes"]),
                    data["report"].get("nmse"),
                    data["report"].get("mean_cosine"),
                ]
            )
    columns = ["layer", "side", "codec", "rotation", "norm", "bits/value", "smaller", "bytes", "NMSE", "cosine"]
    console.print(table(columns, rows))
