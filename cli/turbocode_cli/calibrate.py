"""`turbocode calibrate`: transforms of keys and values fitted on a dump."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode_cli.options import FILE, force_option, json_option, nonfinite_option, out_option, quiet_option
from turbocode_cli.output import emit, number_text, progress, size_text, table

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="calibrate")
@click.argument("dump", type=FILE)
@out_option
@click.option("--transform", "both", multiple=True, metavar="CHAIN", help="Transforms of keys and of values.")
@click.option("--k", "ks", multiple=True, metavar="CHAIN", help="Transforms of keys, such as mean+balance.")
@click.option("--v", "vs", multiple=True, metavar="CHAIN", help="Transforms of values.")
@click.option("--first", type=click.IntRange(1), metavar="N", help="Use only the first N tokens of each sequence.")
@nonfinite_option
@force_option
@json_option
@quiet_option
def command(
    dump: Path,
    output: Path,
    both: tuple[str, ...],
    ks: tuple[str, ...],
    vs: tuple[str, ...],
    first: int | None,
    nonfinite: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fit transforms on DUMP, for recipes to use.

    A CHAIN is names joined by +, in the order in which vectors pass them, each with options as a codec's. Chains may
    be given several times; a recipe names one of them for each side.

    \b
    Examples:
      turbocode calibrate data/tiny-pride.h5 -o tiny-means.h5 --transform mean
      turbocode calibrate data/tiny-pride.h5 -o tiny-fit.h5 --k mean --v mean --first 512 --json
    """
    from turbocode.dumps import check_output, open_dump
    from turbocode.training.calibrate import calibrate_dump, parse_transforms

    chains = {
        "keys": [parse_transforms(text) for text in (*both, *ks)],
        "values": [parse_transforms(text) for text in (*both, *vs)],
    }
    check_output(output, force, [dump])
    with open_dump(dump, isolate=True, nonfinite=nonfinite) as source:
        n_sides = sum(bool(found) for found in chains.values())
        length = sum(layer.n_seqs * min(first or layer.n_tokens, layer.n_tokens) for layer in source.layers)
        with progress("calibrate", n_sides * length * source.metadata.n_kv_heads, quiet) as advance:
            result = calibrate_dump(source, output, chains, stop=first, force=force, advance=advance)
    emit(result, as_json, lambda console: _render(console, result))


def _render(console: Console, result: dict[str, Any]) -> None:
    fixed = ("layer", "side", "name", "n_bytes")
    rows = []
    for row in result["entries"]:
        facts = [f"{key.replace('_', ' ')} {_shown(value)}" for key, value in row.items() if key not in fixed]
        rows.append([row["layer"], row["side"], row["name"].replace(".", "+"), size_text(row["n_bytes"]), *facts[:1]])
    width = max(len(row) for row in rows)
    console.print(table(["layer", "side", "transforms", "bytes", "found"][:width], [[*r, ""][:width] for r in rows]))
    console.print(f"wrote {result['output']}, fitted on {result['n_tokens']:,} tokens a head")


def _shown(value: Any) -> str:
    return number_text(value) if isinstance(value, float) else str(value)
