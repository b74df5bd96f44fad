"""`turbocode measure`: everything that coding does to the attention of a dump, on tokens that nothing was fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import OptionError
from turbocode_cli.options import FILE, json_option, max_memory_option, nonfinite_option, quiet_option
from turbocode_cli.output import emit, number_text, progress, table

if TYPE_CHECKING:
    from rich.console import Console

    from turbocode.policies import Recipe

_LAYER_COLUMNS = {
    "layer": "layer",
    "kl_mean": "KL mean",
    "kl_median": "KL median",
    "kl_p999": "KL 99.9 %",
    "kl_second_order": "2nd order",
    "same_top": "same top",
    "top_mass": "top mass",
    "output_error": "output error",
    "output_error_k": "K only",
    "output_error_v": "V only",
    "alpha": "alpha",
}
_SIDE_COLUMNS = {
    "nmse": "NMSE",
    "nmse_centred": "centred",
    "bias_share": "bias",
    "projection": "projection",
    "cosine": "cosine",
    "spectrum_rank": "rank",
    "kurtosis": "kurtosis",
}


@click.command(name="measure")
@click.argument("dump", type=FILE)
@click.option("--codec", "codecs", multiple=True, metavar="CODEC", help="Codec of keys and values; may be repeated.")
@click.option("--k", "ks", multiple=True, metavar="CODEC", help="Codec of the keys; repeat with --v.")
@click.option("--v", "vs", multiple=True, metavar="CODEC", help="Codec of the values.")
@click.option("--recipe", "recipes", type=FILE, multiple=True, metavar="FILE", help="Recipe; may be repeated.")
@click.option("--same-tokens", is_flag=True, help="Measure a recipe even on the dump that it was calibrated on.")
@nonfinite_option
@max_memory_option
@json_option
@quiet_option
def command(
    dump: Path,
    codecs: tuple[str, ...],
    ks: tuple[str, ...],
    vs: tuple[str, ...],
    recipes: tuple[Path, ...],
    same_tokens: bool,
    nonfinite: str,
    max_memory: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure what codecs and recipes do to the vectors and the attention of DUMP, layer by layer.

    Errors of keys and values, their statistics and spectrum; KL divergence of the attention weights, in nats, and to
    second order; output errors with K, V and both coded, and after the best scalar gain, fitted on other rows; what an
    entropy coder could still save; what sparse values and skipped tiles would cost. Everything beside the first codec
    comes with an interval, from a bootstrap over heads and sequences. A recipe is not measured on what it was
    calibrated on.

    \b
    Examples:
      turbocode measure data/tiny-pride.h5 --codec turbo3 --codec trellis3
      turbocode measure data/tiny-pride.h5 --k turbo4 --v turbo2 --json
    """
    from turbocode.dumps import open_dump
    from turbocode.evaluation.dump_metrics import measure_dump

    chosen = _recipes(codecs, ks, vs, recipes)
    with open_dump(dump, isolate=True, nonfinite=nonfinite) as source:
        n_tokens = sum(layer.n_seqs * layer.n_tokens for layer in source.layers) * source.metadata.n_kv_heads
        with progress("measure", n_tokens * len(chosen), quiet) as advance:
            result = measure_dump(
                source, chosen, max_memory=max_memory, allows_same_tokens=same_tokens, advance=advance
            )
    emit(result, as_json, lambda console: _render(console, result))


def _recipes(
    codecs: tuple[str, ...], ks: tuple[str, ...], vs: tuple[str, ...], recipes: tuple[Path, ...]
) -> list[tuple[str, Recipe]]:
    """(name, recipe) of what the options name, in the order --codec, pairs of --k and --v, --recipe."""
    from turbocode.codecs import parse_codec
    from turbocode.policies import Recipe, read_recipe

    if len(ks) != len(vs):
        raise OptionError(f"{len(ks)} --k and {len(vs)} --v are given; each --k needs its --v")
    pairs = [*((codec, codec) for codec in codecs), *zip(ks, vs, strict=True)]
    chosen = [(k if k == v else f"{k} / {v}", Recipe(k=str(parse_codec(k)), v=str(parse_codec(v)))) for k, v in pairs]
    chosen += [(path.stem, read_recipe(path)) for path in recipes]
    if not chosen:
        raise OptionError("no codec is given", hint="for example --codec turbo3, or --recipe FILE")
    return chosen


def _render(console: Console, result: dict[str, Any]) -> None:
    for codec in result["codecs"]:
        total = codec["total"]
        rows = [[row[key] for key in _LAYER_COLUMNS] for row in codec["layers"]]
        rows.append(["all", *(total[key] for key in list(_LAYER_COLUMNS)[1:])])
        console.print(table(list(_LAYER_COLUMNS.values()), rows, title=codec["name"]))
        sides = [[side, *(total[side][key] for key in _SIDE_COLUMNS)] for side in ("keys", "values")]
        console.print(table(["side", *_SIDE_COLUMNS.values()], sides))
        bits = [number_text(total[key]) for key in ("bits_per_value", "entropy_bits_per_value", "rans_bits_per_value")]
        console.print(f"{bits[0]} bits a value; entropy of its bytes {bits[1]}, as rANS {bits[2]}")
        for name, kind in (("sparse_values", "values left out"), ("skipped_tiles", "tiles left out")):
            figures = ", ".join(
                f"{100 * row['skipped']:.1f} % below {row['threshold']:g} (error {number_text(row['output_error'], 2)})"
                for row in total[name]
            )
            console.print(f"{kind}: {figures}")
        low, high = (number_text(x) for x in total["kl_mean_interval"])
        text = f"KL mean {number_text(total['kl_mean'])}, {result['confidence']:g} % of resamples {low} to {high}"
        if codec is not result["codecs"][0] and codec["ratio_to_first"] is not None:
            low, high = (number_text(x, 3) for x in codec["ratio_to_first_interval"])
            ratio = number_text(codec["ratio_to_first"], 3)
            text += f"; {ratio} ({low} to {high}) times that of {result['codecs'][0]['name']}"
        console.print(f"{text}; {result['n_blocks']} blocks\n")
