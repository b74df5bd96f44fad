"""`turbocode attend benchmark`: how fast packed attention is on this machine's GPU, or on its CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import OptionError
from turbocode_cli.codec_options import k_option, v_option
from turbocode_cli.options import (
    FILE,
    device_option,
    force_option,
    json_option,
    max_memory_option,
    quiet_option,
)
from turbocode_cli.output import emit, progress

if TYPE_CHECKING:
    from turbocode.evaluation.attention_shapes import AttentionShape

CPU_REPEATS, GPU_REPEATS = 7, 20
_COUNT = click.IntRange(1)
_WEIGHT, _POSITIVE = click.FloatRange(0, 1, max_open=True), click.FloatRange(0, min_open=True)


@click.command(name="benchmark")
@click.option("--shape", "names", multiple=True, metavar="NAME", help="One of the GPU's shapes below; may be repeated.")
@click.option("--batch", type=_COUNT, help="Sequences, of a shape of one's own.  [default: 1]")
@click.option("--tokens", type=_COUNT, help="Tokens in the cache of each sequence.  [default: 32768]")
@click.option("--q-heads", type=_COUNT, help="Query heads.  [default: 32]")
@click.option("--kv-heads", type=_COUNT, help="KV heads.  [default: 8]")
@click.option("--head-dim", type=_COUNT, help="Values in one key or value vector.  [default: 128]")
@click.option("--sweep", is_flag=True, help="2,048 to 1,048,576 tokens by 1 to 256 sequences (GPU).")
@k_option
@v_option
@click.option("--no-plain", is_flag=True, help="Leave out the plain kernel, which is slow (GPU).")
@click.option("--sparse-v", type=_WEIGHT, default=0.0, help="Leave out values whose weight is below this, as 1e-4.")
@click.option("--skip-tiles", type=_WEIGHT, default=0.0, help="Leave out 32 tokens whose weights all are below this.")
@click.option(
    "--tables",
    type=click.Choice(["shared", "registers", "magnitudes", "cached", "constant"]),
    help="Where centroids are looked up (GPU).  [default: where it is fastest]",
)
@click.option("--logit-scale", type=_POSITIVE, default=1.0, show_default=True, help="Of logits: above 1 more peaked.")
@click.option("--repeats", type=click.IntRange(1, 1000), help="Runs; the median counts.  [default: 20, on a CPU 7]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the Gaussian inputs.")
@click.option("--plot", type=FILE, metavar="FILE", help="Write a PNG of times, ratios and roofline (GPU).")
@max_memory_option
@device_option
@force_option
@json_option
@quiet_option
def command(
    names: tuple[str, ...],
    sweep: bool,
    k: str | None,
    v: str | None,
    no_plain: bool,
    sparse_v: float,
    skip_tiles: float,
    tables: str | None,
    logit_scale: float,
    repeats: int | None,
    seed: int,
    plot: Path | None,
    max_memory: int,
    device: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **sizes: int | None,
) -> None:
    """Time one codec pair, or without --k and --v every codec, on a GPU or, where there is none, on the CPU.

    \b
    Examples:
      turbocode attend benchmark --k turbo3 --v turbo3 --device cpu
      turbocode attend benchmark --batch 2 --tokens 4096 --q-heads 8 --kv-heads 2 --json
      turbocode attend benchmark --tokens 4096 --k turbo3 --sparse-v 1e-4 --logit-scale 4

    On a GPU the packed kernels stand beside float16 attention (torch's, cuDNN and flash), FlashInfer and vLLM's kernel
    where they are installed, the plain kernel, and decoding everything first, in one process, as replayed graphs.
    Without a shape of one's own these run, as batch x tokens: long 1 x 131072, single 1 x 32768, batch-16 16 x 8192,
    batch-64 64 x 4096, wide-groups 8 x 32768 with 4 KV heads, wide-heads 8 x 16384 with head_dim 256. On a CPU NumPy's
    attention over the unpacked cache stands beside ours. With --sparse-v, --skip-tiles or --tables every codec is timed
    with and without; weights are relative to the largest so far.

    \b
    --tables shared      in shared memory: all codecs
             registers   by permutation of bytes: 2 bits, blocks of 64 (keys), 128 (values)
             magnitudes  without signs, which are put in afterwards: 2 to 4 bits
             cached      in the GPU's memory, through its first cache: trellises
             constant    in constant memory: trellises
    """
    from turbocode.codecs import STANDARD_CODECS, make_codec
    from turbocode.evaluation.attention_shapes import AttentionShape
    from turbocode.kernels.attention.lookup import TableKind
    from turbocode.kernels.attention.skipping import Skipping

    inputs = {"seed": seed, "skipping": Skipping(sparse_v, skip_tiles), "logit_scale": logit_scale}
    given = {name: value for name, value in sizes.items() if value is not None}
    if device is None:
        _refuse_on_a_cpu(
            sweep=sweep, plot=plot is not None, no_plain=no_plain, shape=bool(names), tables=tables is not None
        )
        shape = AttentionShape(**given)
        pairs = [(k or v or "", v or k or "")] if k or v else _fitting(STANDARD_CODECS, shape.head_dim, make_codec)
        _on_the_cpu(shape, pairs, repeats or CPU_REPEATS, inputs, max_memory, as_json, quiet)
        return
    pairs = [(k or v or "", v or k or "")] if k or v else [(name, name) for name in STANDARD_CODECS]
    shapes = _shapes(names, sweep, given)
    if plot is not None:
        from turbocode.dumps import check_output

        check_output(plot, force, [])
    inputs["tables"] = TableKind(tables) if tables else None
    result = _on_a_gpu(device, shapes, pairs, no_plain, repeats or GPU_REPEATS, inputs, quiet)
    if plot is not None:
        from turbocode.evaluation.attention_plots import plot_attention

        plot_attention(plot, result, force=force)
        result["plot"] = plot
    from turbocode_cli.attention_tables import render_gpu

    emit(result, as_json, lambda console: render_gpu(console, result))


def _refuse_on_a_cpu(**given: bool) -> None:
    for name, is_given in given.items():
        if is_given:
            raise OptionError(
                f"--{name.replace('_', '-')} is about a GPU, and the device is cpu",
                hint="--device cuda, or a shape by --batch, --tokens, --q-heads, --kv-heads and --head-dim",
            )


def _shapes(names: tuple[str, ...], sweep: bool, given: dict[str, int]) -> dict[str, AttentionShape]:
    from turbocode.evaluation.attention_shapes import TARGET_SHAPES, AttentionShape, sweep_shapes

    if sweep:
        if names or {"batch", "tokens"} & set(given):
            raise OptionError("--sweep chooses batch and tokens; --shape, --batch and --tokens do not go with it")
        return sweep_shapes(AttentionShape(**given))
    if names and given:
        raise OptionError(f"--shape and --{next(iter(given)).replace('_', '-')} are given; one says what to time")
    for name in names:
        if name not in TARGET_SHAPES:
            raise OptionError(f"unknown shape {name!r}; allowed: {', '.join(TARGET_SHAPES)}")
    if given:
        return {"given": AttentionShape(**given)}
    return {name: shape for name, shape in TARGET_SHAPES.items() if not names or name in names}


def _on_the_cpu(
    shape: AttentionShape,
    pairs: list[tuple[str, str]],
    repeats: int,
    inputs: dict[str, Any],
    max_memory: int,
    as_json: bool,
    quiet: bool,
) -> None:
    from turbocode.evaluation.benchmark import benchmark_attention
    from turbocode_cli.attention_tables import render_cpu

    with progress("benchmark", len(pairs), quiet) as advance:
        result = benchmark_attention(shape, pairs, repeats=repeats, max_memory=max_memory, advance=advance, **inputs)
    emit(result, as_json, lambda console: render_cpu(console, result))


def _on_a_gpu(
    device: int,
    shapes: dict[str, AttentionShape],
    pairs: list[tuple[str, str]],
    no_plain: bool,
    repeats: int,
    inputs: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    from turbocode.codecs import parse_codec
    from turbocode.evaluation.attention_warmup import compile_for, jobs_for
    from turbocode.evaluation.gpu_attention_benchmark import benchmark_attention_on_gpu

    for name in {name for pair in pairs for name in pair}:
        parse_codec(name)
    plain = () if no_plain else None
    jobs = jobs_for(shapes.values(), pairs, plain, inputs["skipping"], inputs["tables"])
    with progress("compile", len(jobs), quiet) as advance:
        compile_for(jobs, device, advance)
    with progress("benchmark", len(shapes) * len(pairs), quiet) as advance:
        return benchmark_attention_on_gpu(
            device, shapes, pairs, repeats=repeats, plain=plain, advance=advance, **inputs
        )


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
