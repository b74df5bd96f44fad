"""Consoles, tables and progress bars made with rich; imported only when one of them is drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from turbocode_cli.output import PIPED_WIDTH, Advance, printable


class PlainConsole(Console):
    """A console that shows strings as they are: no markup, no emoji codes, control characters escaped."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(printable(line) for line in text.split("\n")), **options)


def console_on(stream: IO[str]) -> PlainConsole:
    """A console on `stream`; without ANSI codes and line breaks of its own where that is not a terminal."""
    is_terminal = stream.isatty()
    return PlainConsole(
        file=stream,
        force_terminal=is_terminal,
        force_jupyter=False,
        width=None if is_terminal else PIPED_WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
    )


def table_of(
    columns: Sequence[str], is_number: Sequence[bool], rows: Sequence[Sequence[str]], title: str | None
) -> Table:
    """A table of texts, the columns of numbers aligned right."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, is_right in zip(columns, is_number, strict=True):
        drawn.add_column(name, justify="right" if is_right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    return drawn


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Advance]:
    """Context giving `advance(n)`, which moves a bar on stderr that vanishes at the end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    timing = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *timing, console=console_on(sys.stderr), transient=True) as bar:
        task = bar.add_task(label, total=total or None)
        yield lambda n: bar.advance(task, n)
