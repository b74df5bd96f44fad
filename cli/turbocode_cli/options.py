"""Options that several commands share, each a decorator, and the types of their values."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from turbocode.errors import DeviceError

MIN_MEMORY = 64 << 20
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(?:([kmgt])(i?))?(b?)", re.IGNORECASE)

# Whether a file exists is for the library to say (exit code 66); click would call it wrong usage.
FILE = click.Path(path_type=Path, readable=False)


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int:
    """Bytes from `512MiB`, `2GiB`, `1.5G` or a plain number; K, M, G, T are powers of 1024, KB to TB of 1000.

    None gives half of the memory this process may use.
    """
    if value is None:
        from turbocode.evaluation.environment import memory_limit

        return max(MIN_MEMORY, memory_limit() // 2)
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(
            f"{value!r} is not a size; allowed are 512MiB, 2GiB, 1.5G or a number of bytes", ctx, param
        )
    number, unit, binary, byte = match.groups()
    base = 1000 if byte and not binary else 1024
    n_bytes = int(float(number) * base ** (" kmgt".index(unit.lower()) if unit else 0))
    if n_bytes < MIN_MEMORY:
        raise click.BadParameter(f"{value!r} is too small; allowed is {MIN_MEMORY >> 20}MiB and more", ctx, param)
    return n_bytes


def _parse_layers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    from turbocode.policies.recipe import parse_layers

    return parse_layers(value)


def _resolve_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value == "auto":
        if not ctx.resilient_parsing and not ctx.params.get("quiet"):
            print("device: cpu (this version of turbocode computes on the CPU)", file=sys.stderr)
        return "cpu"
    if value == "cpu":
        return value
    if re.fullmatch(r"cuda(:[0-9]+)?", value):
        raise DeviceError(
            f"device {value} is not available: this version of turbocode computes on the CPU",
            hint="--device cpu; versions with GPU kernels install with: pip install 'turbocode[cu13]'",
        )
    raise click.BadParameter(f"{value!r} is not one of auto, cpu, cuda, cuda:N", ctx, param)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")
quiet_option = click.option("--quiet", "-q", is_flag=True, is_eager=True, help="No progress and no notes on stderr.")
out_option = click.option("-o", "--output", type=FILE, required=True, metavar="FILE", help="File to write.")
max_memory_option = click.option(
    "--max-memory",
    callback=parse_size,
    show_default="half of the memory",
    metavar="SIZE",
    help="Memory for data, such as 512MiB or 2GiB.",
)
layers_option = click.option(
    "--layers", callback=_parse_layers, metavar="LIST", help="Only these layers, such as 0-3,7."
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]",
    callback=_resolve_device,
    help="Where to compute; this version knows the CPU.",
)
nonfinite_option = click.option(
    "--nonfinite",
    type=click.Choice(["error", "zero"]),
    default="error",
    show_default=True,
    help="What a NaN or infinity in the input is: an error, or zero.",
)
