"""`turbocode evaluate`: what coding the KV cache does to a language model's predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import OptionError, QualityError
from turbocode_cli.model_options import model_options, open_model_and_text
from turbocode_cli.options import FILE, force_option, json_option, max_memory_option, quiet_option
from turbocode_cli.output import emit, progress

if TYPE_CHECKING:
    from turbocode.policies import CachePolicy


@click.command(name="evaluate")
@model_options
@click.option("--windows", type=click.IntRange(1), default=2, show_default=True, help="Windows of text to score.")
@click.option("--codec", "codecs", multiple=True, metavar="CODEC", help="Codec of keys and values; may be repeated.")
@click.option("--k", "ks", multiple=True, metavar="CODEC", help="Codec of the keys, or exact; repeat with --v.")
@click.option("--v", "vs", multiple=True, metavar="CODEC", help="Codec of the values, or exact.")
@click.option(
    "--recipe", "recipes", type=FILE, multiple=True, metavar="FILE", help="YAML or JSON with codecs per layer."
)
@click.option("--sinks", type=click.IntRange(0), help="First tokens kept in 16 bits.  [default: 0, or the recipe's]")
@click.option(
    "--residual",
    type=click.IntRange(0),
    help="Latest tokens kept in 16 bits (--chunk).  [default: 0, or the recipe's]",
)
@click.option("--chunk", type=click.IntRange(1), metavar="N", help="Feed N tokens at a time.  [default: the window]")
@click.option("--packed", is_flag=True, help="Attend to the packed blocks by turbocode's kernels.")
@click.option("--score-from", type=click.IntRange(0), help="First position to score.  [default: half of the context]")
@click.option("--plot", type=FILE, metavar="FILE", help="Write a PNG of the errors by position.")
@click.option("--fail-above", type=float, metavar="KL", help="Exit with 3 if a mean KL divergence exceeds this.")
@max_memory_option
@force_option
@json_option
@quiet_option
def command(
    windows: int,
    codecs: tuple[str, ...],
    ks: tuple[str, ...],
    vs: tuple[str, ...],
    recipes: tuple[Path, ...],
    sinks: int | None,
    residual: int | None,
    chunk: int | None,
    packed: bool,
    score_from: int | None,
    plot: Path | None,
    fail_above: float | None,
    max_memory: int,
    force: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Score a language model's predictions with coded caches beside the same model with an exact one.

    \b
    Examples:
      turbocode evaluate --model data/lm-tiny --text data/README.md --context 128 --codec turbo3
      turbocode evaluate --model data/lm-tiny --text data/README.md --context 64 --k q8_0 --v turbo4

    Perplexity, KL divergence in nats, and probabilities of the next token stand in the order of llama-perplexity.
    Windows are consecutive runs of tokens, and the second half of each is scored. In one pass, in chunks or token by
    token, every token attends to decoded keys and values, those of its own chunk too. Needs the extra `hf`:
    pip install 'turbocode[hf]'.
    """
    policies = _policies(codecs, ks, vs, recipes, sinks, residual)
    from turbocode.dumps import check_output

    if plot is not None:
        check_output(plot, force, [path for path in (given["text_path"], *recipes) if path.exists()])
    from turbocode.evaluation.model_evaluation import EvaluationMode, evaluate_policies

    model, text = open_model_and_text(given, quiet)
    tokens = text.windows(windows, given["context"], bos=given["bos"])
    mode = EvaluationMode(chunk, packed, score_from)
    with progress("evaluate", windows * (1 + len(policies)), quiet) as advance:
        figures = evaluate_policies(model, tokens, policies, mode, max_memory=max_memory, advance=advance)
    result = {"text": text.name, "skip": given["skip"], "tokenizer": text.tokenizer, **figures}
    if plot is not None:
        from turbocode.evaluation.plots import plot_error_by_position

        plot_error_by_position(plot, result, force=force)
        result["plot"] = plot
    from turbocode_cli.evaluation_tables import render

    emit(result, as_json, lambda console: render(console, result))
    worst = max(result["codecs"], key=lambda row: row["kl_mean"])
    if fail_above is not None and not worst["kl_mean"] <= fail_above:
        raise QualityError(f"mean KL divergence {worst['kl_mean']:.4g} of {worst['name']} exceeds {fail_above:g}")


def _policies(
    codecs: tuple[str, ...],
    ks: tuple[str, ...],
    vs: tuple[str, ...],
    recipes: tuple[Path, ...],
    sinks: int | None,
    residual: int | None,
) -> list[CachePolicy]:
    """What the options ask to be measured, in the order: --codec, pairs of --k and --v, --recipe."""
    from turbocode.policies import CachePolicy, read_recipe

    if len(ks) != len(vs):
        raise OptionError(f"{len(ks)} --k and {len(vs)} --v are given; each --k needs its --v")
    pairs = [*((codec, codec) for codec in codecs), *zip(ks, vs, strict=True)]
    chosen = [CachePolicy.of(k, v, sinks=sinks or 0, residual=residual or 0) for k, v in pairs]
    chosen += [
        CachePolicy.of_recipe(read_recipe(path), sinks=sinks, residual=residual, name=path.stem) for path in recipes
    ]
    if not chosen:
        raise OptionError("no codec is given", hint="for example --codec turbo3, or --k turbo4 --v turbo3")
    return chosen
