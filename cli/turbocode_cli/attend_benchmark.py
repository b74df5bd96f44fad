"""`turbocode attend benchmark`: how fast encoding, decoding and packed attention are on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import OptionError
from turbocode_cli.codec_options import k_option, v_option
from turbocode_cli.options import cpu_device_option, json_option, max_memory_option, quiet_option
from turbocode_cli.output import emit, progress, table

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="benchmark")
@click.option("--batch", default=1, show_default=True, help="Sequences.")
@click.option("--tokens", default=32768, show_default=True, help="Tokens in the cache of each sequence.")
@click.option("--q-heads", default=32, show_default=True, help="Query heads.")
@click.option("--kv-heads", default=8, show_default=True, help="KV heads.")
@click.option("--head-dim", default=128, show_default=True, help="Values in one key or value vector.")
@k_option
@v_option
@click.option("--repeats", type=click.IntRange(1, 1000), default=7, show_default=True, help="Runs; the median counts.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the Gaussian inputs.")
@max_memory_option
@cpu_device_option
@json_option
@quiet_option
def command(
    batch: int,
    tokens: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    k: str | None,
    v: str | None,
    repeats: int,
    seed: int,
    max_memory: int,
    device: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Time one codec pair, or without --k and --v every codec, beside NumPy's attention on the unpacked cache.

    \b
    Examples:
      turbocode attend benchmark --k turbo3 --v turbo3
      turbocode attend benchmark --batch 2 --tokens 4096 --q-heads 8 --kv-heads 2 --json
    """
    from turbocode.codecs import STANDARD_CODECS, make_codec
    from turbocode.evaluation.attention_shapes import AttentionShape
    from turbocode.evaluation.benchmark import benchmark_attention

    shape = AttentionShape(batch, tokens, q_heads, kv_heads, head_dim)
    pairs = [(k or v or "", v or k or "")] if k or v else _fitting(STANDARD_CODECS, head_dim, make_codec)
    with progress("benchmark", len(pairs), quiet) as advance:
        result = benchmark_attention(shape, pairs, repeats=repeats, seed=seed, max_memory=max_memory, advance=advance)
    emit(result, as_json, lambda console: _render(console, result))


def _fitting(names: tuple[str, ...], head_dim: int, make_codec: Any) -> list[tuple[str, str]]:
    pairs = []
    for name in names:
        try:
            make_codec(name, head_dim)
        except OptionError:
            continue
        pairs.append((name, name))
    if not pairs:
        raise OptionError(f"no codec stores head_dim {head_dim}")
    return pairs


def _render(console: Console, result: dict[str, Any]) -> None:
    columns = ["K", "V", "bits/value", "encode M vec/s", "decode M vec/s", "attention ms", "NumPy ms", "ratio", "error"]
    rows = [
        [
            row["k"],
            row["v"],
            row["bits_per_value"],
            row["encode_vectors_per_s"] / 1e6,
            row["decode_vectors_per_s"] / 1e6,
            row["attention_s"] * 1e3,
            row["numpy_float32_s"] * 1e3,
            row["ratio"],
            row["relative_error"],
        ]
        for row in result["codecs"]
    ]
    console.print(table(columns, rows))
    machine, shape = result["machine"], result["shape"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores; {shape['batch']} x {shape['tokens']:,} tokens, "
        f"{shape['q_heads']} query heads, {shape['kv_heads']} KV heads, head_dim {shape['head_dim']}; "
        f"median of {result['repeats']}"
    )
