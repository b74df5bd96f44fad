"""`turbocode quantize`: the keys and values of a dump as packed blocks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode_cli.codec_options import k_option, recipe_from, recipe_option, v_option
from turbocode_cli.options import (
    FILE,
    device_option,
    force_option,
    json_option,
    layers_option,
    max_memory_option,
    nonfinite_option,
    out_option,
    quiet_option,
    say,
)
from turbocode_cli.output import emit, progress, size_text, table

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="quantize")
@click.argument("dump", type=FILE)
@out_option
@k_option
@v_option
@recipe_option
@layers_option
@nonfinite_option
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@max_memory_option
@device_option
@force_option
@json_option
@quiet_option
def command(
    dump: Path,
    output: Path,
    k: str | None,
    v: str | None,
    recipe_path: Path | None,
    layers: tuple[int, ...] | None,
    nonfinite: str,
    dry_run: bool,
    max_memory: int,
    device: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Encode the keys and values of DUMP; layers outside --layers stay float16.

    \b
    Examples:
      turbocode quantize data/tiny-pride.h5 -o tiny-turbo3.h5 --k turbo3 --v turbo3
      turbocode quantize data/tiny-pride.h5 -o tiny-mixed.h5 --k q8_0 --v turbo4 --layers 0-1
    """
    from turbocode.conversion import dangerous_keys, plan_quantize, quantize_dump
    from turbocode.dumps import open_dump

    with open_dump(dump, nonfinite=nonfinite, isolate=True) as source:
        recipe = recipe_from(k, v, recipe_path, layers, source.metadata.n_layers)
        plan = plan_quantize(source, recipe)
        if recipe.sinks or recipe.residual:
            say(quiet, "sinks and residual of the recipe are for a running cache: every token of a file is coded")
        dangers = dangerous_keys(source, plan)
        if dangers:
            more = f" ({len(dangers)} of {source.metadata.n_layers} layers are so)"
            say(
                quiet,
                f"warning: {dangers[0]}{more}; take their mean away: turbocode calibrate {dump} -o means.h5 --k mean, "
                "and a recipe with `calibration: means.h5` and `transforms: {k: [mean]}`",
            )
        if dry_run:
            facts: dict[str, Any] = {
                "output": output,
                "n_values": plan.n_values,
                "n_bytes": plan.n_bytes,
                "bits_per_value": plan.bits_per_value,
                "compression": plan.compression,
            }
            emit(facts, as_json, lambda console: console.print(_sentence("would write", facts)))
            return
        n_vectors = plan.n_values // source.metadata.head_dim
        with progress("quantize", n_vectors, quiet) as advance:
            result = quantize_dump(
                source, output, recipe, max_memory=max_memory, device=device, force=force, advance=advance
            )
    result["dangerous_keys"] = [asdict(danger) for danger in dangers]
    emit(result, as_json, lambda console: _render(console, result))


def _render(console: Console, result: dict[str, Any]) -> None:
    columns = ["layer", "side", "codec", "bits/value", "NMSE", "mean cosine", "min cosine", "saturated"]
    keys = ["layer", "side", "codec", "bits_per_value", "nmse", "mean_cosine", "min_cosine", "saturated_vectors"]
    console.print(table(columns, [[row[key] for key in keys] for row in result["layers"]]))
    total = result["total"]
    console.print(_sentence("wrote", {"output": result["output"], **total}))
    if total["saturated_vectors"]:
        console.print(f"{total['saturated_vectors']:,} vectors held a norm or scale above 65504, which was cut to it")
    if total["nonfinite_replaced"]:
        console.print(f"{total['nonfinite_replaced']:,} values were not finite and became 0")


def _sentence(verb: str, facts: dict[str, Any]) -> str:
    return (
        f"{verb} {facts['output']}: {size_text(facts['n_bytes'])} of blocks, "
        f"{facts['bits_per_value']:.4g} bits a value, {facts['compression']:.2f} times smaller than float16"
    )
