"""The command `turbocode`: the table of its commands, and the one place where exceptions become exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import click

import turbocode
from turbocode.errors import StorageError
from turbocode_cli.failures import describe_failure, report_failure
from turbocode_cli.interruption import interruptible
from turbocode_cli.lazy_group import LazyCommand, LazyGroup
from turbocode_cli.output import Invocation

PROGRAM = "turbocode"
COMPLETION_VARIABLE = "_TURBOCODE_COMPLETE"
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1
COMMANDS = {
    "inspect": LazyCommand("turbocode_cli.inspect:command", "Show what is in a dump or a quantized file."),
    "train-codebook": LazyCommand("turbocode_cli.train_codebook:command", "Compute a codebook, from theory or a dump."),
    "calibrate": LazyCommand("turbocode_cli.calibrate:command", "Fit transforms of keys and values on a dump."),
    "tune": LazyCommand("turbocode_cli.tune:command", "Spend bits over layers, keys and values; write a recipe."),
    "quantize": LazyCommand("turbocode_cli.quantize:command", "Encode the keys and values of a dump."),
    "dequantize": LazyCommand("turbocode_cli.dequantize:command", "Decode a quantized file into a dump."),
    "capture": LazyCommand("turbocode_cli.capture:command", "Take a dump of a language model over a text."),
    "evaluate": LazyCommand("turbocode_cli.evaluate:command", "Score a language model with coded caches."),
    "measure": LazyCommand("turbocode_cli.measure:command", "Measure all that coding does to a dump's attention."),
    "attend": LazyCommand("turbocode_cli.attend:command", "Compare or time attention over packed blocks."),
    "benchmark": LazyCommand("turbocode_cli.benchmark:command", "Time the kernels of the GPU."),
    "export": LazyCommand("turbocode_cli.export:command", "Write what a runtime needs, such as a C header."),
    "verify": LazyCommand("turbocode_cli.verify:command", "Check a file: checksums, decoding, stored figures."),
    "synthesize": LazyCommand("turbocode_cli.synthesize:command", "Make a dump of chosen shape and statistics."),
    "doctor": LazyCommand("turbocode_cli.doctor:command", "Show versions and hardware, and test the installation."),
    "demo": LazyCommand("turbocode_cli.demo:command", "Run the main job on the dump that is shipped."),
}


def _print_version(ctx: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked and not ctx.resilient_parsing:
        click.echo(f"{PROGRAM} {turbocode.__version__}")
        ctx.exit()


@click.group(
    name=PROGRAM,
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    \b
    Exit codes:
      0 success                         69 a device or package is absent
      1 internal error (a bug)          73 output cannot be created
      2 wrong usage                     74 disk full, I/O error, out of memory
      3 ran, and the check failed       75 locked by another process
      65 malformed or damaged input     130 interrupted, 143 terminated
      66 input cannot be read           141 the reader of our output went away
    """,
)
@click.option("--debug", is_flag=True, help="Show a traceback with internal errors.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
@click.pass_context
def command(ctx: click.Context, debug: bool) -> None:
    """Make the KV cache of a language model smaller, and measure what that costs.

    \b
    Examples:
      turbocode inspect data/tiny-pride.h5
      turbocode inspect --help
    """
    ctx.ensure_object(Invocation).debug = debug


def main() -> NoReturn:
    """Runs the command line of this process and ends the process with its exit code."""
    code = run(sys.argv[1:])
    if code in (StorageError.exit_code, EXIT_BROKEN_PIPE):
        # Neither HDF5's exit handler, which crashes after a failed write, nor a second flush may change the code.
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """The exit code of the command line `arguments`; everything it has to say is printed."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    invocation = Invocation()
    try:
        with interruptible():
            try:
                return _invoke(list(arguments), invocation)
            finally:
                sys.stdout.flush()
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except BaseException as exception:
        failure = describe_failure(exception)
        with suppress(OSError):
            report_failure(failure, exception, invocation, as_json="--json" in arguments)
        return failure.exit_code


def _invoke(arguments: list[str], invocation: Invocation) -> int:
    if COMPLETION_VARIABLE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(command, {}, PROGRAM, COMPLETION_VARIABLE, os.environ[COMPLETION_VARIABLE])
    try:
        # Not command.main(): it would turn Ctrl-C into exit code 1 and a closed pipe into sys.exit.
        with command.make_context(PROGRAM, arguments, obj=invocation) as ctx:
            command.invoke(ctx)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    return 0
