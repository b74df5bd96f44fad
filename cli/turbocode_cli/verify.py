"""`turbocode verify`: whether a file is what it says."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode_cli.options import FILE, json_option, quiet_option
from turbocode_cli.output import cell_text, emit, progress, table

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="verify")
@click.argument("file", type=FILE)
@click.option("--against", type=FILE, metavar="DUMP", help="The dump a quantized file was made of.")
@json_option
@quiet_option
def command(file: Path, against: Path | None, as_json: bool, quiet: bool) -> None:
    """Check a file: checksums, decoding, stored figures.

    \b
    Examples:
      turbocode verify data/tiny-pride.h5
      turbocode verify data/tiny-pride.h5 --json

    A quantized file is decoded whole; with --against its NMSE is measured again. The exit code is 0 where all is
    well, 3 where something disagrees with what is stored and 65 where something cannot be read.
    """
    from turbocode.evaluation.verification import verification_error, verify_file

    total = 0
    with suppress(OSError):  # that the file is missing is for verify_file to say
        total = file.stat().st_size
    with progress("verify", total, quiet) as advance:
        result = verify_file(file, against=against, advance=advance)
    emit(result, as_json, lambda console: _render(console, result))
    error = verification_error(result)
    if error is not None:
        raise error


def _render(console: Console, result: dict[str, Any]) -> None:
    for name, value in result["checks"].items():
        console.print(f"{name.replace('_', ' ')}: {cell_text(value)}")
    if result["findings"]:
        console.print(table(["object", "problem"], [[row["object"], row["problem"]] for row in result["findings"]]))
    else:
        console.print(f"{result['file']}: nothing is wrong")
