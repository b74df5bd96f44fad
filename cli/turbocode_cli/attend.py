"""`turbocode attend`: attention over packed blocks, compared with exact attention or timed."""

from __future__ import annotations

import click

from turbocode_cli.lazy_group import LazyCommand, LazyGroup

COMMANDS = {
    "compare": LazyCommand("turbocode_cli.attend_compare:command", "Compare packed with exact attention of a dump."),
    "benchmark": LazyCommand("turbocode_cli.attend_benchmark:command", "Time attention on a GPU or the CPU."),
}


@click.group(name="attend", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Compare or time attention over packed blocks.

    \b
    Examples:
      turbocode attend compare --help
      turbocode attend benchmark --help
    """
