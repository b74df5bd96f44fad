"""`turbocode attend capacity`: the longest context that a GPU's memory holds, codec by codec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from turbocode_cli.codec_options import k_option, v_option
from turbocode_cli.options import json_option, parse_size
from turbocode_cli.output import emit, size_text, table

if TYPE_CHECKING:
    from rich.console import Console


def _size_or_none(ctx: click.Context, param: click.Parameter, value: str | None) -> int:
    return 0 if value is None else parse_size(ctx, param, value)


@click.command(name="capacity")
@click.option(
    "--model-shape", required=True, metavar="SHAPE", help="LAYERSxKVHEADSxHEADDIM, or the path of a config.json."
)
@click.option("--vram", required=True, callback=parse_size, metavar="SIZE", help="Memory of the GPU, such as 24GiB.")
@click.option("--weights", callback=_size_or_none, metavar="SIZE", help="Taken by weights and all else.  [default: 0]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences of the same length.")
@click.option("--sinks", type=click.IntRange(0), default=4, show_default=True, help="First tokens kept in float16.")
@click.option("--recent", type=click.IntRange(0), default=128, show_default=True, help="Latest tokens kept in float16.")
@click.option("--page", type=click.IntRange(1), default=1, show_default=True, help="Tokens of a page; 1: no pages.")
@k_option
@v_option
@json_option
def command(
    model_shape: str,
    vram: int,
    weights: int,
    batch: int,
    sinks: int,
    recent: int,
    page: int,
    k: str | None,
    v: str | None,
    as_json: bool,
) -> None:
    """Say the longest context that fits, with every codec or with --k and --v.

    \b
    Examples:
      turbocode attend capacity --model-shape 16x4x256 --vram 24GiB --weights 20GiB
      turbocode attend capacity --model-shape data/lm-tiny/config.json --vram 1GiB --k turbo3

    Nothing but keys and values is counted: leave room in --weights for activations and what the runtime takes. Layers
    of a config.json with a sliding window hold the window's tokens at most.
    """
    from turbocode.codecs import STANDARD_CODECS, make_codec
    from turbocode.errors import OptionError
    from turbocode.evaluation.capacity import capacities, parse_model_shape

    shape = parse_model_shape(model_shape)
    pairs = [(k or v or "", v or k or "")]
    if not (k or v):
        pairs = []
        for name in ("f16", *(name for name in STANDARD_CODECS if name != "f16")):
            try:
                make_codec(name, shape.head_dim)
            except OptionError:
                continue
            pairs.append((name, name))
        if not pairs:
            raise OptionError(f"no codec stores head_dim {shape.head_dim}")
    result = capacities(shape, pairs, vram=vram, weights=weights, batch=batch, sinks=sinks, recent=recent, page=page)
    emit(result, as_json, lambda console: _render(console, result))


def _render(console: Console, result: dict[str, Any]) -> None:
    columns = ["K", "V", "bits/value", "bytes/token", "longest context", "with exact tokens", "x float16"]
    rows = [
        [
            row["k"],
            row["v"],
            row["bits_per_value"],
            row["bytes_per_token"],
            "any" if row["tokens"] is None else row["tokens"],
            "any" if row["tokens_with_exact"] is None else row["tokens_with_exact"],
            row["times_float16"],
        ]
        for row in result["codecs"]
    ]
    console.print(table(columns, rows))
    model = result["model"]
    layers = ", ".join(
        f"{part['n_layers']} layers" + (f" of window {part['window']:,}" if part["window"] else "")
        for part in model["layers"]
    )
    console.print(
        f"{layers}, {model['n_kv_heads']} KV heads, head_dim {model['head_dim']}; "
        f"{size_text(result['vram_bytes'] - result['weights_bytes'])} for a batch of {result['batch']}; exact are the "
        f"first {result['sinks']} and latest {result['recent']} tokens"
    )
