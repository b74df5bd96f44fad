"""`turbocode attend compare`: what coding does to the attention of a dump."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import OptionError, QualityError
from turbocode_cli.codec_options import k_option, recipe_from, recipe_option, v_option
from turbocode_cli.options import (
    FILE,
    device_option,
    json_option,
    max_memory_option,
    nonfinite_option,
    quiet_option,
)
from turbocode_cli.output import emit, progress, table

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS = {
    "layer": "layer",
    "k": "K",
    "v": "V",
    "nmse_k": "NMSE K",
    "nmse_v": "NMSE V",
    "logit_error": "logit error",
    "kl_mean": "KL mean",
    "kl_median": "KL median",
    "kl_p999": "KL 99.9 %",
    "same_top": "same top",
    "output_error": "output error",
    "output_error_k": "K only",
    "output_error_v": "V only",
    "worst_head": "worst head (KL mean)",
}


@click.command(name="compare")
@click.argument("dump", type=FILE)
@click.argument("quantized", type=FILE, required=False)
@k_option
@v_option
@recipe_option
@click.option("--v-gain", metavar="GAIN", help="Factor on outputs: GAIN, BASE,SLOPE[,LEAST,MOST] or heads:GAIN,...")
@click.option("--fail-above", type=float, metavar="KL", help="Exit with 3 if the mean KL divergence exceeds this.")
@nonfinite_option
@max_memory_option
@device_option
@json_option
@quiet_option
def command(
    dump: Path,
    quantized: Path | None,
    k: str | None,
    v: str | None,
    recipe_path: Path | None,
    v_gain: str | None,
    fail_above: float | None,
    nonfinite: str,
    max_memory: int,
    device: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare attention over packed blocks with the exact attention of DUMP.

    The blocks come from the file QUANTIZED, or are encoded now as --k and --v or --recipe say. KL divergence of the
    attention weights is in nats; errors of logits are in logits, around each row's mean; output errors are relative.
    --v-gain multiplies the outputs of coded values: by one number, by BASE + SLOPE ln(tokens seen) within limits, or by
    a number for each query head. --json has the gains that are best in the mean square, of layers and of heads.

    \b
    Examples:
      turbocode attend compare data/tiny-pride.h5 --k turbo3 --v turbo3
      turbocode attend compare data/tiny-pride.h5 --k q8_0 --v turbo4 --json
      turbocode attend compare data/tiny-pride.h5 --k turbo2 --v turbo2 --v-gain 1.02
    """
    from contextlib import ExitStack

    from turbocode.codecs.value_gain import ValueGain
    from turbocode.conversion import plan_quantize
    from turbocode.dumps import open_dump, open_quantized
    from turbocode.evaluation.attention_compare import BlockSource, EncodedNow, StoredBlocks, compare_attention

    gain = ValueGain() if v_gain is None else ValueGain.parse(v_gain)
    if quantized is not None and (k or v or recipe_path):
        raise OptionError(f"{quantized} says how it is coded; --k, --v and --recipe do not apply to it")
    with ExitStack() as files:
        exact = files.enter_context(open_dump(dump, isolate=True, nonfinite=nonfinite))
        source: BlockSource
        if quantized is not None:
            source = StoredBlocks(files.enter_context(open_quantized(quantized, isolate=True)), exact)
        else:
            source = EncodedNow(plan_quantize(exact, recipe_from(k, v, recipe_path, None, exact.metadata.n_layers)))
        n_tokens = sum(layer.n_seqs * layer.n_tokens * exact.metadata.n_kv_heads for layer in exact.layers)
        with progress("compare", n_tokens, quiet) as advance:
            result = compare_attention(
                exact, source, max_memory=max_memory, attend=_attention_on(device), advance=advance, gain=gain
            )
    emit(result, as_json, lambda console: _render(console, result, v_gain))
    mean = result["total"]["kl_mean"]
    if fail_above is not None and not mean <= fail_above:
        raise QualityError(f"mean KL divergence {mean:.4g} exceeds {fail_above:g}", file=dump)


def _attention_on(device: int | None) -> Any:
    """The packed attention of the device."""
    if device is None:
        from turbocode.codecs import decode_attention

        return decode_attention
    from turbocode.codecs.host_attention import HostAttention

    return HostAttention(device)


def _render(console: Console, result: dict[str, Any], v_gain: str | None) -> None:
    rows = []
    for row in result["layers"]:
        worst = row["worst_head"]
        rows.append([*(row[key] for key in list(_COLUMNS)[:-1]), f"{worst['head']} ({worst['kl_mean']:.4f})"])
    total = {key: result["total"].get(key) for key in _COLUMNS}
    rows.append(["all", *list(total.values())[1:]])
    console.print(table(list(_COLUMNS.values()), rows))
    facts = result["total"]
    error = facts["kernel_error"]
    kernel = (
        "no packed kernel reads these blocks: outputs are those of decoded values"
        if error is None
        else f"the packed kernel agrees with float64 attention over the decoded values to {error:.1e}"
    )
    console.print(f"{facts['n_rows']:,} query rows; {facts['bits_per_value']:.4g} bits a value; {kernel}")
    if v_gain is not None:
        best, least = facts["best_v_gain"], facts["best_v_gain_error"]
        console.print(f"V gain {v_gain}; the best one number is {best:.4f}, with which the output error is {least:.4g}")
