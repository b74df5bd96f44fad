"""`turbocode dequantize`: packed blocks back into a dump."""

from __future__ import annotations

from pathlib import Path

import click

from turbocode_cli.options import (
    FILE,
    device_option,
    force_option,
    json_option,
    max_memory_option,
    out_option,
    quiet_option,
)
from turbocode_cli.output import emit, progress, size_text


@click.command(name="dequantize")
@click.argument("quantized", type=FILE)
@out_option
@click.option(
    "--dtype",
    "logical_dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    show_default="that of the original dump",
    help="Type of the values in the dump.",
)
@max_memory_option
@device_option
@force_option
@json_option
@quiet_option
def command(
    quantized: Path,
    output: Path,
    logical_dtype: str | None,
    max_memory: int,
    device: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Decode QUANTIZED into a dump of the keys and values it stands for.

    \b
    Examples:
      turbocode quantize data/tiny-pride.h5 -o tiny-turbo4.h5 --k turbo4 --v turbo4
      turbocode dequantize tiny-turbo4.h5 -o tiny-decoded.h5 --dtype float32
    """
    from turbocode.conversion import dequantize_file
    from turbocode.dumps import open_quantized

    with open_quantized(quantized, isolate=True) as source:
        n_vectors = 2 * sum(layer.n_seqs * source.metadata.n_kv_heads * layer.n_tokens for layer in source.layers)
        with progress("dequantize", n_vectors, quiet) as advance:
            result = dequantize_file(
                source,
                output,
                max_memory=max_memory,
                logical_dtype=logical_dtype,
                device=device,
                force=force,
                advance=advance,
            )
    cut = f"; {result['saturated_values']:,} values were cut to 65504" if result["saturated_values"] else ""
    text = (
        f"wrote {output}: {result['n_vectors']:,} vectors as {result['logical_dtype']}, {size_text(result['n_bytes'])}"
    )
    emit(result, as_json, lambda console: console.print(text + cut))
