"""`turbocode synthesize`: a dump of chosen shape and statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from turbocode_cli.options import force_option, json_option, out_option, quiet_option
from turbocode_cli.output import emit, progress, size_text


def _number(name: str, default: float, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option for one field of SynthesisSpec, which checks its range."""
    return click.option(f"--{name}", default=default, show_default=True, type=type(default), metavar="N", help=text)


@click.command(name="synthesize")
@out_option
@_number("n-layers", 2, "Layers.")
@_number("n-seqs", 1, "Sequences.")
@_number("n-tokens", 1024, "Tokens of a sequence.")
@_number("n-query-heads", 8, "Query heads.")
@_number("n-kv-heads", 2, "KV heads.")
@_number("head-dim", 128, "Values of a key or value.")
@_number("n-rows", 64, "Queries of a head; 0 for none.")
@_number("constant-share", 0.0, "Share of the keys' energy that all tokens have in common.")
@_number("key-bias", 0.0, "Norm of a constant added to all keys of a head, in norms of a plain key.")
@_number("outlier-channels", 0, "Channels of the keys that are larger than the rest.")
@_number("outlier-scale", 8.0, "How many times larger.")
@_number("sinks", 0, "First tokens that attract attention.")
@_number("sink-scale", 4.0, "Norm of their keys, in norms of a plain key.")
@_number("seed", 0, "Seed of the random numbers.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
    help="Dtype.",
)
@force_option
@json_option
@quiet_option
def command(output: Path, force: bool, as_json: bool, quiet: bool, **fields: Any) -> None:
    """Make a dump of chosen shape and statistics.

    \b
    Examples:
      turbocode synthesize -o gaussian.h5 --n-tokens 256 --force
      turbocode synthesize -o hard.h5 --constant-share 0.4 --outlier-channels 3 --sinks 2 --force
      turbocode synthesize -o biased.h5 --key-bias 30 --n-tokens 512 --force

    Keys and values are Gaussian; on request the keys get what makes real ones hard to code. The same options give
    the same numbers on every machine.
    """
    from turbocode.dumps import SynthesisSpec, synthesize

    spec = SynthesisSpec(**fields)
    with progress("synthesize", spec.n_bytes, quiet) as advance:
        synthesize(output, spec, force=force, advance=advance)
    n_bytes = output.stat().st_size
    document = {"output": str(output), "bytes": n_bytes, "spec": asdict(spec)}
    emit(document, as_json, lambda console: console.print(f"{output}: {size_text(n_bytes)}"))
