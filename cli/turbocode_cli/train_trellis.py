"""`turbocode train-codebook --trellis`: what its options ask for, run and shown."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import OptionError
from turbocode_cli.options import FILE, resolve_device
from turbocode_cli.output import emit, progress, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from turbocode.codebooks import TrellisCodebook
    from turbocode.dumps import Dump
    from turbocode.training.trellis_codebook import PathSearch, TrainingState, TrellisTrainingSpec
    from turbocode.training.trellis_data import GroupSource

DEFAULT_STATES_LOG2 = {1: 8, 2: 8, 3: 9, 4: 10}
_SIDES = {"k": ("keys",), "v": ("values",), "kv": ("keys", "values")}
_SHOWN_LAGS = 8

_OPTIONS = [
    click.option("--trellis", "is_trellis", is_flag=True, help="Train the values of a trellis's states (1 to 4 bits)."),
    click.option(
        "--states-log2",
        type=click.IntRange(4, 12),
        help="Bits L of a state: 2**L states.  [default: 8, 8, 9, 10 for 1 to 4 bits]",
    ),
    click.option(
        "--ends",
        type=click.Choice(["ring", "free"]),
        default="ring",
        show_default=True,
        help="Tail-biting trellis1 to trellis4, or the free ends of turbo1_tcq to turbo3_tcq.",
    ),
    click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the starts and batches."),
    click.option("--restarts", type=click.IntRange(1), default=1, show_default=True, help="Starts, the best is kept."),
    click.option("--iterations", type=click.IntRange(1), default=400, show_default=True, help="At most, a start."),
    click.option(
        "--patience",
        type=click.IntRange(1),
        default=25,
        show_default=True,
        help="Iterations without a better held-out NMSE after which a start ends.",
    ),
    click.option("--groups", type=click.IntRange(1), help="Groups an iteration.  [default: 16 a state, 4096 to 32768]"),
    click.option("--monotone", is_flag=True, help="Values increase with the oldest bits of the state."),
    click.option(
        "--checkpoint",
        type=FILE,
        metavar="FILE",
        help="Keep the training here after every iteration, and go on from there if it exists.",
    ),
    click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where paths are searched."
    ),
]
NAMES = (
    *("states_log2", "ends", "seed", "restarts", "iterations", "patience", "groups", "monotone"),
    *("checkpoint", "device"),
)
MAX_LAG = 16


def trellis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of trellis training, as one decorator."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class TrellisRequest:
    """The command line, as far as it is about a trellis."""

    dump: Path | None
    output: Path
    bits: int
    dimension: int | None
    side: str
    weights: str
    rotation: str
    layers: tuple[int, ...] | None
    nonfinite: str
    max_memory: int
    force: bool
    as_json: bool
    quiet: bool
    report: Path | None
    options: dict[str, Any]


def run(request: TrellisRequest) -> None:
    """Train, write the codebook and the report, print what came out."""
    from turbocode.dumps import check_output, open_dump
    from turbocode.training.trellis_codebook import TrellisTrainingSpec
    from turbocode.training.trellis_data import GaussianGroups, dump_groups

    options = request.options
    if request.bits not in DEFAULT_STATES_LOG2:
        raise OptionError(f"{request.bits} bits are not possible for a trellis; 1 to 4 are")
    spec = TrellisTrainingSpec(
        request.bits,
        options["states_log2"] or DEFAULT_STATES_LOG2[request.bits],
        options["ends"],
        options["seed"],
        options["restarts"],
        options["iterations"],
        options["patience"],
        options["groups"],
        options["monotone"],
    )
    if request.weights == "norm":
        raise OptionError("--weights norm is for scalar codebooks; a trellis takes none or queries")
    written = [path for path in (request.output, request.report, options["checkpoint"]) if path is not None]
    if len({path.resolve() for path in written}) < len(written):
        raise OptionError("--output, --report and --checkpoint must be different files")
    inputs = [] if request.dump is None else [request.dump]
    check_output(request.output, request.force, inputs)
    if request.report is not None:
        check_output(request.report, request.force, inputs)
    viterbi = _path_search(options["device"], request.quiet)
    if request.dump is None:
        _train(request, spec, GaussianGroups(request.dimension or 128), viterbi, None)
        return
    with open_dump(request.dump, isolate=True, nonfinite=request.nonfinite) as source:
        groups = dump_groups(
            source,
            sides=_SIDES[request.side],
            layers=request.layers,
            rotation=request.rotation,
            weights=request.weights,
            max_memory=request.max_memory,
        )
        _train(request, spec, groups, viterbi, source)


def _path_search(device: str, quiet: bool) -> PathSearch:
    """The search of the CPU or of a GPU, which find the same paths."""
    number = resolve_device(device, quiet)
    if number is None:
        from turbocode.kernels.trellis import cpu

        return cpu.viterbi
    from turbocode.kernels.trellis import cuda

    return functools.partial(cuda.viterbi, device=number)


def _train(
    request: TrellisRequest,
    spec: TrellisTrainingSpec,
    source: GroupSource,
    viterbi: PathSearch,
    dump: Dump | None,
) -> None:
    from turbocode.dumps import write_text_atomically
    from turbocode.training.checkpoint import read_checkpoint, write_checkpoint
    from turbocode.training.trellis_codebook import train_trellis

    checkpoint: Path | None = request.options["checkpoint"]
    state = read_checkpoint(checkpoint, spec, source) if checkpoint is not None and checkpoint.exists() else None
    inputs = [] if request.dump is None else [request.dump]
    with progress("train", spec.restarts * spec.iterations, request.quiet) as advance:
        if state is not None:
            advance(len(state.history))

        def after_iteration(now: TrainingState) -> None:
            if checkpoint is not None:
                write_checkpoint(checkpoint, now, spec, source)
            advance(1)

        codebook, final = train_trellis(source, spec, viterbi=viterbi, state=state, after_iteration=after_iteration)
    write_text_atomically(request.output, codebook.dumps(), force=request.force, inputs=inputs)
    figures = _figures(codebook, source, viterbi, spec)
    if request.report is not None:
        from turbocode.evaluation.plots import plot_training_report
        from turbocode.evaluation.rate_distortion import distance_to_shannon

        plot_training_report(
            request.report,
            distance_to_shannon(codebook),
            training=final,
            autocorrelation=figures["error_autocorrelation"],
            force=request.force,
            inputs=[*inputs, request.output],
        )
    document = {"output": request.output, "report": request.report, **figures, "history": final.history}
    emit(document, request.as_json, lambda console: _render(console, document))


def _figures(
    codebook: TrellisCodebook, source: GroupSource, viterbi: PathSearch, spec: TrellisTrainingSpec
) -> dict[str, Any]:
    """What is said about the codebook, beside the shipped one of the same trellis on the same held-out groups."""
    from turbocode.codebooks import CODEBOOK_NAMES, TrellisCodebook, load_codebook
    from turbocode.evaluation.error_autocorrelation import autocorrelation
    from turbocode.training.trellis_codebook import nmse_of

    holdout = source.holdout()
    shipped = load_codebook(codebook.name) if codebook.name in CODEBOOK_NAMES else None
    u, weights = holdout
    states, _ = viterbi(u, codebook.values.astype("float32"), spec.trellis, weights=weights)
    r = autocorrelation(u - codebook.values[states], min(MAX_LAG, u.shape[1] - 1), is_ring=spec.ends == "ring")
    return {
        "name": codebook.name,
        "bits": codebook.bits,
        "states_log2": codebook.states_log2,
        "ends": spec.ends,
        "nmse_holdout": codebook.nmse,
        "nmse_holdout_shipped": nmse_of(shipped.values, holdout, spec.trellis, viterbi)
        if isinstance(shipped, TrellisCodebook)
        else None,
        "shannon_gap_db": codebook.shannon_gap_db,
        "error_autocorrelation": r.tolist(),
    }


def _render(console: Console, document: dict[str, Any]) -> None:
    keys = {
        "name": "codebook",
        "bits": "bits",
        "states_log2": "log2 states",
        "nmse_holdout": "NMSE held out",
        "nmse_holdout_shipped": "with the shipped codebook",
        "shannon_gap_db": "dB to Shannon",
    }
    console.print(table([*keys.values(), "iterations"], [[*(document[key] for key in keys), len(document["history"])]]))
    lags = " ".join(f"{r:+.4f}" for r in document["error_autocorrelation"][1 : 1 + _SHOWN_LAGS])
    console.print(f"autocorrelation of the error at lags 1 to {_SHOWN_LAGS}: {lags}")
    console.print(f"wrote {document['output']}")
    if document["report"] is not None:
        console.print(f"wrote {document['report']}")
