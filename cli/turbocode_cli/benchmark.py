"""`turbocode benchmark`: how fast this machine's GPU runs the kernels."""

from __future__ import annotations

import click

from turbocode_cli.lazy_group import LazyCommand, LazyGroup

COMMANDS = {
    "kernels": LazyCommand("turbocode_cli.benchmark_kernels:command", "Time the GPU's kernels beside a copy."),
}


@click.group(name="benchmark", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Time the kernels of the GPU.

    \b
    Examples:
      turbocode benchmark kernels --help
      turbocode benchmark kernels --codec turbo3
    """
