"""`turbocode attend`: attention over packed blocks, compared with exact attention, timed, and what fits a GPU."""

from __future__ import annotations

import click

from turbocode_cli.lazy_group import LazyCommand, LazyGroup

COMMANDS = {
    "compare": LazyCommand("turbocode_cli.attend_compare:command", "Compare packed with exact attention of a dump."),
    "benchmark": LazyCommand("turbocode_cli.attend_benchmark:command", "Time attention on a GPU or the CPU."),
    "capacity": LazyCommand("turbocode_cli.attend_capacity:command", "Say which context fits a GPU's memory."),
}


@click.group(name="attend", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Compare or time attention over packed blocks, or say which context fits.

    \b
    Examples:
      turbocode attend compare --help
      turbocode attend benchmark --help
    """
