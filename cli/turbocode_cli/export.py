"""`turbocode export`: what a runtime needs to read the blocks."""

from __future__ import annotations

import click

from turbocode_cli.lazy_group import LazyCommand, LazyGroup

COMMANDS = {
    "header": LazyCommand("turbocode_cli.export_header:command", "Write a C99 header for a format and its codebook."),
}


@click.group(name="export", cls=LazyGroup, lazy=COMMANDS)
def command() -> None:
    """Write what a runtime needs to read the blocks.

    \b
    Examples:
      turbocode export header --help
      turbocode export --help
    """
