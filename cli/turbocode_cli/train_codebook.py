"""`turbocode train-codebook`: the best centroids for a density or for a dump."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import OptionError
from turbocode_cli.options import (
    FILE,
    force_option,
    json_option,
    layers_option,
    max_memory_option,
    nonfinite_option,
    out_option,
    quiet_option,
)
from turbocode_cli.output import emit, number_text, progress, table
from turbocode_cli.train_trellis import NAMES as TRELLIS_OPTIONS
from turbocode_cli.train_trellis import TrellisRequest, trellis_options
from turbocode_cli.train_trellis import run as run_trellis

if TYPE_CHECKING:
    from rich.console import Console

    from turbocode.codebooks import Codebook
    from turbocode.training.dump_codebook import TrainedCodebook

_SIDES = {"k": ("keys",), "v": ("values",), "kv": ("keys", "values")}
_SHOWN_CENTROIDS = 8
OPTIONS_OF_DUMPS = ("side", "per", "weights", "rotation", "layers", "plot", "nonfinite")


@click.command(name="train-codebook")
@click.argument("dump", type=FILE, required=False)
@out_option
@click.option("--bits", type=click.IntRange(1, 8), required=True, help="Bits of an index.")
@click.option("--density", type=click.Choice(["gaussian", "sphere"]), help="Train for this density, without a DUMP.")
@click.option(
    "--dimension", type=click.IntRange(2), help="Group size: of the sphere, or of a trellis's Gaussian groups."
)
@click.option("--side", type=click.Choice(list(_SIDES)), default="kv", show_default=True, help="Keys, values or both.")
@click.option(
    "--per",
    type=click.Choice(["pooled", "side", "layer", "head"]),
    default="pooled",
    show_default=True,
    help="One codebook for all of the dump, or one per side, layer or KV head.",
)
@click.option(
    "--weights",
    type=click.Choice(["none", "norm", "queries"]),
    default="none",
    show_default=True,
    help="Weigh values by nothing, by their vector's energy, or keys by E[q^2] of the queries.",
)
@click.option(
    "--rotation",
    type=click.Choice(["signed", "hadamard", "none"]),
    default="signed",
    show_default=True,
    help="Rotation of the codec that will use the codebook.",
)
@layers_option
@click.option("--plot", type=FILE, metavar="FILE.png", help="Draw the histogram and centroids (the first, if several).")
@click.option("--report", type=FILE, metavar="FILE.png", help="Draw NMSE per iteration and the distance to Shannon.")
@trellis_options
@nonfinite_option
@max_memory_option
@force_option
@json_option
@quiet_option
def command(
    dump: Path | None,
    output: Path,
    bits: int,
    density: str | None,
    dimension: int | None,
    side: str,
    per: str,
    weights: str,
    rotation: str,
    layers: tuple[int, ...] | None,
    plot: Path | None,
    report: Path | None,
    is_trellis: bool,
    nonfinite: str,
    max_memory: int,
    force: bool,
    as_json: bool,
    quiet: bool,
    **trellis: Any,
) -> None:
    """Compute a codebook for DUMP, or for a --density if none is given.

    \b
    Examples:
      turbocode train-codebook --density gaussian --bits 3 -o gaussian-3.json
      turbocode train-codebook data/tiny-pride.h5 --bits 3 --per layer -o tiny-3.json
      turbocode train-codebook --trellis --bits 2 --report report.png -o trellis2.json
    """
    from turbocode.dumps import check_output, write_text_atomically

    if dump is not None and (density or dimension):
        raise OptionError(f"{dump} is what to train on; --density and --dimension do not go with it")
    if dump is None:
        _refuse("is about a dump, and no DUMP is given", OPTIONS_OF_DUMPS)
    if is_trellis:
        _refuse("does not go with --trellis", ("per", "plot"))
        if density == "sphere":
            raise OptionError("--density sphere is for scalar codebooks; a trellis trains on groups of a Gaussian")
        shared = (side, weights, rotation, layers, nonfinite, max_memory, force, as_json, quiet, report)
        run_trellis(TrellisRequest(dump, output, bits, dimension, *shared, trellis))
        return
    _refuse("goes with --trellis", TRELLIS_OPTIONS)
    if report is not None:
        check_output(report, force, [path for path in (dump,) if path])
        if report.resolve() in {path.resolve() for path in (output, plot) if path}:
            raise OptionError(f"--report and another output are both {report}")
    if dump is None:
        codebook = _from_density(density or "gaussian", dimension, bits)
        write_text_atomically(output, codebook.dumps(), force=force)
        _draw_report(report, codebook, force)
        document = {"output": output, **codebook.to_json()}
        emit(document, as_json, lambda console: _render(console, output, [_row(codebook)]))
        return
    from turbocode.dumps import open_dump
    from turbocode.training.dump_codebook import TrainingSpec, codebook_set, train_from_dump

    spec = TrainingSpec(bits, _SIDES[side], per, weights, layers, rotation)
    check_output(output, force, [dump])
    if plot is not None:
        check_output(plot, force, [dump])
        if plot.resolve() == output.resolve():
            raise OptionError(f"--plot and --output are both {plot}")
    with open_dump(dump, isolate=True, nonfinite=nonfinite) as source:
        chosen = [layer for number, layer in enumerate(source.layers) if layers is None or number in layers]
        n_vectors = sum(layer.n_seqs * layer.n_tokens for layer in chosen) * source.metadata.n_kv_heads
        with progress("train", n_vectors * len(spec.sides), quiet) as advance:
            trained = train_from_dump(source, spec, max_memory=max_memory, advance=advance)
    single = trained[0].codebook if per == "pooled" else None
    text = single.dumps() if single else json.dumps(codebook_set(trained).to_json(), indent=1) + "\n"
    write_text_atomically(output, text, force=force, inputs=[dump])
    if plot is not None:
        from turbocode.evaluation.plots import plot_codebook

        plot_codebook(plot, trained[0], force=force, inputs=[dump, output])
    _draw_report(report, trained[0].codebook, force)
    rows = [_trained_row(entry) for entry in trained]
    emit({"output": output, "codebooks": rows}, as_json, lambda console: _render(console, output, rows))


def _refuse(why: str, names: tuple[str, ...]) -> None:
    ctx = click.get_current_context()
    for name in names:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise OptionError(f"--{name.replace('_', '-')} {why}")


def _draw_report(report: Path | None, codebook: Codebook, force: bool) -> None:
    if report is not None:
        from turbocode.evaluation.plots import plot_training_report
        from turbocode.evaluation.rate_distortion import distance_to_shannon

        plot_training_report(report, distance_to_shannon(codebook), force=force)


def _from_density(density: str, dimension: int | None, bits: int) -> Codebook:
    from turbocode.training.densities import Gaussian, SphereCoordinate
    from turbocode.training.lloyd_max import lloyd_max

    if density == "gaussian":
        if dimension is not None:
            raise OptionError("the Gaussian has no --dimension; --density sphere has")
        return lloyd_max(Gaussian(), bits)
    if dimension is None:
        raise OptionError("--density sphere needs --dimension", hint="for example --dimension 64")
    return lloyd_max(SphereCoordinate(dimension), bits)


def _row(codebook: Codebook) -> dict[str, Any]:
    return {
        "name": codebook.name,
        "bits": codebook.bits,
        "nmse": codebook.nmse,
        "shannon_gap_db": codebook.shannon_gap_db,
        "centroids": codebook.centroids.tolist(),
    }


def _trained_row(entry: TrainedCodebook) -> dict[str, Any]:
    from turbocode.codebooks import CODEBOOK_NAMES, Codebook, load_codebook

    name = f"sphere{entry.training.group_size}-{entry.codebook.bits}"
    shipped = load_codebook(name) if name in CODEBOOK_NAMES else None
    return {
        **_row(entry.codebook),
        "layer": entry.scoped.layer,
        "side": entry.scoped.side,
        "head": entry.scoped.head,
        "nmse_holdout": entry.holdout_nmse(),
        "nmse_holdout_shipped": entry.holdout_nmse(shipped) if isinstance(shipped, Codebook) else None,
    }


def _render(console: Console, output: Path, rows: list[dict[str, Any]]) -> None:
    keys = {"name": "codebook", "bits": "bits", "nmse": "NMSE", "shannon_gap_db": "dB to Shannon"}
    if "nmse_holdout" in rows[0]:
        keys |= {"nmse_holdout": "NMSE held out", "nmse_holdout_shipped": "with the shipped codebook"}
    console.print(table([*keys.values(), "centroids"], [[*(row[key] for key in keys), _shown(row)] for row in rows]))
    console.print(f"wrote {output}")


def _shown(row: dict[str, Any]) -> str:
    centroids = row["centroids"]
    half = len(centroids) // 2
    is_symmetric = all(a == -b for a, b in zip(centroids[:half], reversed(centroids), strict=False))
    shown = centroids[half:] if is_symmetric else centroids
    text = " ".join(number_text(value) for value in shown[:_SHOWN_CENTROIDS])
    return ("±" if is_symmetric else "") + text + (" ..." if len(shown) > _SHOWN_CENTROIDS else "")
