"""`turbocode tune`: bits spent over layers, keys and values where they help a model most."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import OptionError
from turbocode_cli.options import FILE, force_option, json_option, max_memory_option, out_option, quiet_option, say
from turbocode_cli.output import emit, progress, table

if TYPE_CHECKING:
    from rich.console import Console

_UNITS = {
    "fisher": "nats of KL divergence a token",
    "queries": "of attention, without a unit that sides share: the dumps hold no Fisher information",
}
_CHECK_COLUMNS = {
    "name": "codec",
    "bits_per_value": "bits/value",
    "kl_mean": "KL mean",
    "kl_median": "KL median",
    "kl_p999": "KL 99.9 %",
    "same_top": "same top",
}


@click.command(name="tune")
@click.argument("dumps", type=FILE, nargs=-1, required=True, metavar="DUMP...")
@click.option("--bits", type=click.FloatRange(0.5, 16.0), required=True, help="Bits a value, everything counted.")
@out_option
@click.option("--codecs", metavar="A,B,...", help="Choose among these codecs instead of coding all sides by multirate.")
@click.option("--per-head", is_flag=True, help="With --codecs, choose for every KV head by itself.")
@click.option(
    "--metric",
    type=click.Choice(["fisher", "queries"]),
    help="What errors are weighed by.  [default: fisher where every dump has it]",
)
@click.option(
    "--reach", type=click.IntRange(0), metavar="TOKENS", help="Longest context to come.  [default: 4 times the dumps']"
)
@click.option("--model", "model_name", metavar="DIR_OR_NAME", help="Check the recipe with this model (extra hf).")
@click.option("--text", "text_path", type=FILE, metavar="FILE", help="Held-out text to check it on.")
@click.option("--context", type=click.IntRange(4), default=2048, show_default=True, help="Tokens of a window of it.")
@click.option("--windows", type=click.IntRange(1), default=1, show_default=True, help="Windows of it.")
@click.option("--skip", type=click.IntRange(0), default=0, show_default=True, help="Characters of it to leave out.")
@max_memory_option
@force_option
@json_option
@quiet_option
def command(
    dumps: tuple[Path, ...],
    bits: float,
    output: Path,
    codecs: str | None,
    per_head: bool,
    metric: Any,
    reach: int | None,
    model_name: str | None,
    text_path: Path | None,
    context: int,
    windows: int,
    skip: int,
    max_memory: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Spend --bits over layers, keys and values where they lower the cost of coding most, and write a recipe.

    Several DUMPs of one model over different kinds of text make one calibration. Dumps with Fisher information
    (`capture --fisher`) know what an error costs the model, others only what it costs attention. Beside the recipe
    FILE.yaml stands its calibration, FILE.h5. Check on a text that was not calibrated on: --model and --text.

    \b
    Examples:
      turbocode tune data/tiny-pride.h5 --bits 3.2 -o tuned.yaml
      turbocode tune data/tiny-pride.h5 --bits 3 -o mixed.yaml --codecs turbo2,turbo3,turbo4,q8_0
      turbocode tune data/tiny-pride.h5 --bits 3 -o heads.yaml --codecs turbo2,turbo4 --per-head
    """
    from turbocode.dumps import check_output, open_dump
    from turbocode.dumps.atomic import write_text_atomically
    from turbocode.policies.recipe import recipe_text
    from turbocode.training.tune import calibration_path, tune_codecs, tune_multirate

    if codecs is not None and reach is not None:
        raise OptionError("--reach prepares the basis of multirate; --codecs have none")
    if codecs is None and per_head:
        raise OptionError("--per-head chooses among --codecs; multirate has one schedule for all heads of a side")
    if (model_name is None) != (text_path is None):
        raise OptionError("--model and --text go together: the recipe is checked with both, or not at all")
    check_output(output, force, dumps)
    names = None if codecs is None else [name.strip() for name in codecs.split(",")]
    if names is None:
        check_output(calibration_path(output), force, dumps)
    with ExitStack() as files:
        sources = [files.enter_context(open_dump(path, isolate=True)) for path in dumps]
        n_tokens = sum(2 * layer.n_seqs * layer.n_tokens for source in sources for layer in source.layers)
        with progress("tune", n_tokens * sources[0].metadata.n_kv_heads, quiet) as advance:
            if names is None:
                tuned = tune_multirate(sources, bits, advance, metric=metric, reach=reach)
                kind, sides, calibration = tuned.kind, tuned.sides, tuned.write(sources, bits, output, force=force)
            else:
                kind, sides, recipe = tune_codecs(sources, bits, names, advance, metric=metric, per_head=per_head)
                calibration = None
                write_text_atomically(output, recipe_text(recipe), force=force, inputs=dumps)
        texts = {source.metadata.sha256 for source in sources}
    if kind != "fisher" and metric is None:
        say(
            quiet, "no Fisher information in every dump: weighed by queries; capture --fisher measures what errors cost"
        )
    result: dict[str, Any] = {
        "output": output,
        "calibration": calibration,
        "metric": kind,
        "bits_asked": bits,
        "bits_per_value": sum(side.bits_per_value for side in sides) / len(sides),
        "cost": sum(side.measured for side in sides),
        "predicted": None if names else sum(side.predicted or 0.0 for side in sides),
        "sides": [asdict(side) for side in sides],
        "check": None,
    }
    if model_name is not None and text_path is not None:
        given = {"model_name": model_name, "text_path": text_path, "context": context, "skip": skip, "bos": False}
        result["check"] = _check(
            output, {**given, "compute_dtype": "float32", "device": "auto"}, windows, bits, max_memory, quiet
        )
        if _sha256(text_path) in texts:
            say(quiet, f"{text_path} is what the dumps were taken from: this is no check on held-out text")
    emit(result, as_json, lambda console: _render(console, result))


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check(
    recipe: Path, given: dict[str, Any], windows: int, bits: float, max_memory: int, quiet: bool
) -> dict[str, Any]:
    """What the recipe and a plain trellis of about the same size do to the model's predictions."""
    from turbocode.codecs import make_codec
    from turbocode.evaluation.model_evaluation import EvaluationMode, evaluate_policies
    from turbocode.policies import CachePolicy, read_recipe
    from turbocode_cli.model_options import open_model_and_text

    model, text = open_model_and_text(given, quiet)
    head_dim = model.layers[0].key_dim
    plain = min(
        (f"trellis{k}" for k in (1, 2, 3, 4)), key=lambda name: abs(make_codec(name, head_dim).bits_per_value - bits)
    )
    policies = [CachePolicy(read_recipe(recipe), name=recipe.stem), CachePolicy.of(plain, plain)]
    tokens = text.windows(windows, given["context"])
    with progress("check", windows * (1 + len(policies)), quiet) as advance:
        found = evaluate_policies(model, tokens, policies, EvaluationMode(), max_memory=max_memory, advance=advance)
    return {"text": text.name, **found}


def _render(console: Console, result: dict[str, Any]) -> None:
    rows = []
    for side in result["sides"]:
        rates = side["rates"]
        shown = "" if rates is None else " ".join(str(rate) for rate in rates)
        name = side["side"] if side["head"] is None else f"{side['side']}, head {side['head']}"
        rows.append([side["layer"], name, side["codec"], side["bits_per_value"], side["measured"], shown])
    columns = ["layer", "side", "codec", "bits/value", "cost", "bits of each 8 channels"]
    width = len(columns) if any(row[-1] for row in rows) else len(columns) - 1
    console.print(table(columns[:width], [row[:width] for row in rows]))
    predicted = result["predicted"]
    console.print(
        f"{result['bits_per_value']:.4g} bits a value; cost {result['cost']:.4g}"
        + (f" ({predicted:.4g} predicted)" if predicted is not None else "")
        + f" {_UNITS[result['metric']]}"
    )
    if result["check"] is not None:
        checked = result["check"]
        found = [[codec[key] for key in _CHECK_COLUMNS] for codec in checked["codecs"]]
        console.print(table(list(_CHECK_COLUMNS.values()), found, title=f"{checked['model']} on {checked['text']}"))
    console.print(
        f"wrote {result['output']}" + (f" and {result['calibration']}" if result["calibration"] is not None else "")
    )
