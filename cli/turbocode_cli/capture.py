"""`turbocode capture`: a KV dump of a language model over a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode_cli.model_options import model_options, open_model_and_text
from turbocode_cli.options import force_option, json_option, out_option, quiet_option
from turbocode_cli.output import emit, progress, size_text, table

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="capture")
@model_options
@out_option
@click.option("--windows", type=click.IntRange(1), default=1, show_default=True, help="Windows, each a sequence.")
@click.option("--rows", type=click.IntRange(0), help="Query rows a head.  [default: a sixteenth of the context]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of rows and of --fisher.")
@click.option("--fisher", is_flag=True, help="Measure how much errors of K and V matter, for calibration; slower.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
    help="Of what is written.",
)
@force_option
@json_option
@quiet_option
def command(
    output: Path,
    windows: int,
    rows: int | None,
    seed: int,
    dtype: str,
    fisher: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Write a KV dump of a language model over a text: keys, values and some queries, as attention reads them.

    \b
    Examples:
      turbocode capture --model data/lm-tiny --text data/pride_and_prejudice.txt -o captured.h5
      turbocode capture --model data/lm-tiny --text data/README.md -o short.h5 --context 64 --rows 8

    Windows are consecutive runs of tokens. Keys and queries are those after RoPE; query rows are a sample of the
    second half of the context. With --fisher one pass backward a window measures what the model's predictions mind
    about errors, which `tune` and `calibrate` use. Needs the extra `hf`: pip install 'turbocode[hf]'.
    """
    from turbocode.dumps import check_output

    check_output(output, force, [given["text_path"]] if given["text_path"].exists() else [])
    from turbocode.integrations.hf_capture import CaptureSpec, capture_dump

    model, text = open_model_and_text(given, quiet)
    spec = CaptureSpec(given["context"], windows, rows, dtype, given["bos"], seed, fisher)
    total = windows * spec.context * len(model.layers)
    with progress("capture", total, quiet) as advance:
        result = capture_dump(model, text, output, spec, force=force, advance=advance)
    emit(result, as_json, lambda console: _render(console, result))


def _render(console: Console, result: dict[str, Any]) -> None:
    odd = [layer for layer in result["layers"] if layer["window"] or layer["softcap"]]
    if odd:
        keys = ["layer", "layer_index", "window", "softcap"]
        console.print(
            table(["layer", "of the model", "window", "softcap"], [[row[key] for key in keys] for row in odd])
        )
    console.print(
        f"wrote {result['output']}: {size_text(result['n_bytes'])}, {len(result['layers'])} layers, "
        f"{result['n_seqs']} x {result['n_tokens']:,} tokens, {result['n_rows']:,} query rows a head"
        + (", Fisher information" if result["fisher"] else "")
    )
