"""What commands print: one JSON document or a rendering for people on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCHEMA_VERSION = 1
PROGRESS_SECONDS = 10.0  # between two lines of progress where stderr is not a terminal
PIPED_WIDTH = 1000  # columns; a table in a pipe or a file is never wrapped
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
Advance = Callable[[int], None]


@dataclass
class Invocation:
    """State of one run of the program: debug (tracebacks are wanted), has_emitted (stdout holds a JSON document)."""

    debug: bool = False
    has_emitted: bool = False


def emit(document: Mapping[str, Any], as_json: bool, render: Callable[[Console], None]) -> None:
    """Prints `document` as JSON with schema_version and command in front, or has `render` print to a console.

    Plain strings given to the console are shown as they are: no markup, control characters escaped.
    """
    if not as_json:
        from turbocode_cli.terminal import console_on

        render(console_on(sys.stdout))
        return
    ctx = click.get_current_context()
    words = ctx.command_path.split()
    head = {"schema_version": SCHEMA_VERSION, "command": " ".join(words[1:] or words)}
    text = json.dumps({**head, **document}, indent=2, allow_nan=False, default=_plain)
    ctx.ensure_object(Invocation).has_emitted = True
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def progress(label: str, total: int, quiet: bool) -> Iterator[Advance]:
    """Context giving `advance(n)`, to be called with each n of `total` units done; draws on stderr unless quiet."""
    if quiet:
        yield lambda n: None
    elif sys.stderr.isatty():
        from turbocode_cli.terminal import progress_bar

        with progress_bar(label, total) as advance:
            yield advance
    else:
        yield _progress_lines(label, total)


def _progress_lines(label: str, total: int) -> Advance:
    start = time.monotonic()
    done, shown = 0, start

    def advance(n: int) -> None:
        nonlocal done, shown
        done += n
        now = time.monotonic()
        if now - shown >= PROGRESS_SECONDS:
            shown = now
            share = f"{min(done / total, 1.0):.0%}" if total > 0 else f"{done:,} done"
            with suppress(OSError):
                print(f"{label}: {share} after {now - start:.0f} s", file=sys.stderr, flush=True)

    return advance


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> Table:
    """A rich table of `rows`; numbers are right-aligned, floats have four significant digits, None is a dash."""
    from turbocode_cli.terminal import table_of

    kinds = [[type(row[i]) for row in rows if row[i] is not None] for i in range(len(columns))]
    is_number = [bool(kind) and all(issubclass(k, (int, float)) for k in kind) for kind in kinds]
    return table_of(columns, is_number, [[cell_text(cell) for cell in row] for row in rows], title)


def cell_text(value: object) -> str:
    """How a table shows a value."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return number_text(value)
    return str(value)


def number_text(value: float, digits: int = 4) -> str:
    """A number with `digits` significant digits, in scientific notation below 1e-4."""
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if value else "0"


def size_text(n_bytes: int) -> str:
    """A number of bytes in the largest binary unit that leaves at least 1."""
    value, unit = float(n_bytes), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{n_bytes} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def printable(text: str) -> str:
    """`text` with every control, format and unassigned character escaped, so that no file can steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain(value: object) -> object:
    """NumPy scalars and arrays as Python numbers and lists, paths as text, for json."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    raise TypeError(f"{type(value).__name__} has no JSON form")
