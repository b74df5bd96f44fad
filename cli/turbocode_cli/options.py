"""Options that several commands share, each a decorator, and the types of their values."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from turbocode.errors import DeviceError, OptionError

MIN_MEMORY = 64 << 20
INSTALL_CUDA = "pip install 'turbocode[cu13]' (drivers for CUDA 13) or 'turbocode[cu12]'"
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


def resolve_device(name: str, quiet: bool) -> int | None:
    """The number of the GPU to compute on, or None for the CPU, from auto, cpu, cuda or cuda:N.

    `auto` takes the first GPU that Numba can use, and says on stderr which device it took and why.
    Raises DeviceError where a GPU is asked for and there is none of that number, and OptionError for other names.
    """
    match = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", name)
    if match is None and name not in ("auto", "cpu"):
        raise OptionError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N")
    if name == "cpu":
        return None
    from turbocode.evaluation.environment import cuda_devices, cuda_problem

    problem = cuda_problem()
    if match is None:
        if problem is None:
            say(quiet, f"device: cuda:0 ({cuda_devices()[0]})")
            return 0
        say(quiet, f"device: cpu ({problem})")
        return None
    if problem:
        raise DeviceError(f"device {name} is not available: {problem}", hint=f"{INSTALL_CUDA}, or --device cpu")
    number, devices = int(match[1] or 0), cuda_devices()
    if number >= len(devices):
        found = ", ".join(f"cuda:{i} ({device})" for i, device in enumerate(devices))
        raise DeviceError(f"device {name} is not available; there are {found}", hint="--device cuda:0, or --device cpu")
    return number


def say(quiet: bool, text: str) -> None:
    """Prints a note on stderr, unless quiet."""
    if not quiet:
        print(text, file=sys.stderr)


def _device_callback(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    return resolve_device(value, ctx.resilient_parsing or bool(ctx.params.get("quiet")))


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
    callback=_device_callback,
    help="Where to compute.",
)
nonfinite_option = click.option(
    "--nonfinite",
    type=click.Choice(["error", "zero"]),
    default="error",
    show_default=True,
    help="What a NaN or infinity in the input is: an error, or zero.",
)
