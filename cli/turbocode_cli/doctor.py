"""`turbocode doctor`: versions, hardware, and whether this installation computes what it should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from turbocode_cli.options import json_option
from turbocode_cli.output import cell_text, emit, size_text, table

if TYPE_CHECKING:
    from rich.console import Console


@click.command(name="doctor")
@click.option("--no-self-test", is_flag=True, help="Only describe, compute nothing.")
@json_option
def command(no_self_test: bool, as_json: bool) -> None:
    """Show versions and hardware, and test the installation.

    \b
    Examples:
      turbocode doctor
      turbocode doctor --no-self-test --json

    The self-test encodes and decodes with every codec; it takes about a second, and some more on its first run,
    when code is compiled. The exit code is 3 if it fails.
    """
    from turbocode.errors import QualityError
    from turbocode.evaluation.environment import describe_environment

    found = describe_environment()
    if not no_self_test:
        from turbocode.evaluation.self_test import run_self_test

        found["self_test"] = run_self_test()
    emit(found, as_json, lambda console: _render(console, found))
    failed = [row["codec"] for row in found.get("self_test", {}).get("codecs", []) if row["problem"]]
    if failed:
        raise QualityError(
            f"the self-test failed for {', '.join(failed)}", hint="report the output of: turbocode doctor --json"
        )


def _render(console: Console, found: dict[str, Any]) -> None:
    machine, gpu, hdf5, folder = (found[key] for key in ("machine", "gpu", "hdf5", "folder"))
    for name, version in found["versions"].items():
        console.print(f"{name:<14} {cell_text(version)}")
    console.print(f"{'system':<14} {machine['system']}")
    console.print(f"{'cpu':<14} {cell_text(machine['cpu'])}, {machine['cores']} cores")
    console.print(f"{'memory':<14} {size_text(machine['memory_bytes'])}")
    devices = ", ".join(gpu["devices"]) or "none"
    console.print(f"{'gpu':<14} {gpu['problem'] or devices}; driver {cell_text(gpu['driver'])}")
    filters = ", ".join(name for name, is_there in hdf5["filters"].items() if is_there)
    console.print(f"{'hdf5':<14} {hdf5['version']}; filters {filters}")
    free = "unknown" if folder["free_bytes"] is None else size_text(folder["free_bytes"])
    state = f"writable {cell_text(folder['writable'])}, file locks {cell_text(folder['locks'])}, free {free}"
    console.print(f"{'folder':<14} {folder['path']}: {state}")
    test = found.get("self_test")
    if test is None:
        return
    columns = ["codec", "bits/value", "NMSE", "problem"]
    console.print(
        table(columns, [[row[key] for key in ("codec", "bits_per_value", "nmse", "problem")] for row in test["codecs"]])
    )
    outcome = "passed" if test["ok"] else "failed"
    console.print(f"self-test {outcome} in {test['seconds']:.1f} s; threads: {cell_text(test['threading_layer'])}")
