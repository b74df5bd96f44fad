"""Help: quick, narrow, with two examples, for every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
import pytest

from turbocode_cli import attend, benchmark, export, main
from turbocode_cli.lazy_group import LazyGroup

GROUPS = {(): main.command, ("attend",): attend.command, ("export",): export.command, ("benchmark",): benchmark.command}
COMMANDS = [(*path, name) for path, group in GROUPS.items() for name in group.lazy]
HEAVY = ("numpy", "h5py", "numba", "scipy", "sklearn", "pydantic", "rich", "psutil", "torch", "importlib.metadata")


def modules_after(start: Callable[..., Any], *arguments: str, among: tuple[str, ...]) -> list[str]:
    """Those of `among` that a new process has imported when it has run the command line."""
    script = (
        "import json, sys; from turbocode_cli.main import run; code = run(sys.argv[1:]); "
        f"print(json.dumps([m for m in {among!r} if m in sys.modules]), file=sys.stderr); sys.exit(code)"
    )
    process = start(*arguments, script=script)
    err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, err
    found: list[str] = json.loads(err.splitlines()[-1])
    return found


def help_of(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    assert main.run([*path, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("path", [(), *COMMANDS], ids=" ".join)
def test_help_has_two_examples_and_fits(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_of(path, capsys).splitlines()
    examples = [line for line in lines if line.startswith("    turbocode ")]
    assert len(examples) >= 2, lines
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_says_what_it_is(path: tuple[str, ...]) -> None:
    parent = GROUPS[path[:-1]]
    found = parent.get_command(click.Context(parent), path[-1])
    assert found is not None and found.help
    if not isinstance(found, LazyGroup):
        options = [parameter for parameter in found.params if isinstance(parameter, click.Option)]
        assert [option.name for option in options if not option.help] == []


def test_group_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of((), capsys)
    assert [name for name in main.COMMANDS if f"\n  {name} " not in text] == []


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["attend", "--help"], []], ids=str)
def test_help_imports_nothing_heavy(start: Callable[..., Any], arguments: list[str]) -> None:
    assert modules_after(start, *arguments, among=HEAVY) == []


@pytest.mark.parametrize("name", ["inspect", "verify", "synthesize", "doctor", "capture", "evaluate"])
def test_help_of_a_command_imports_nothing_heavy(start: Callable[..., Any], name: str) -> None:
    assert modules_after(start, name, "--help", among=HEAVY) == []


def test_inspect_imports_neither_numba_nor_scipy(start: Callable[..., Any]) -> None:
    assert modules_after(start, "inspect", "data/tiny-pride.h5", among=("numba", "scipy", "sklearn", "pydantic")) == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("turbocode ")
