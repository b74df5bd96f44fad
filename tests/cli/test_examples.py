"""Every example that a command's help shows does what it says, in the order of the commands."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from turbocode_cli import attend, export, main

LEFT_OUT = {("demo",), ("benchmark",)}  # the first has a test of its own, the second needs a GPU
GROUPS = {(): main.command, ("attend",): attend.command, ("export",): export.command}
SLOW = {"benchmark"}
NEED_A_MODEL = {"capture", "evaluate"}
HAS_MODELS = bool(find_spec("torch") and find_spec("transformers"))
WITHOUT_MODELS = pytest.mark.skipif(not HAS_MODELS, reason="needs the extra hf (torch and transformers)")
PATHS = [
    pytest.param(
        (*path, name),
        id=" ".join((*path, name)),
        marks=[*([pytest.mark.slow] if name in SLOW else []), *([WITHOUT_MODELS] if name in NEED_A_MODEL else [])],
    )
    for path, group in GROUPS.items()
    for name in group.lazy
    if (*path, name) not in LEFT_OUT
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    (folder / "data").symlink_to(Path("data").absolute())
    return folder


@pytest.mark.parametrize("path", PATHS)
def test_examples_run(
    path: tuple[str, ...], workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group = GROUPS[path[:-1]]
    command = group.get_command(click.Context(group), path[-1])
    assert command is not None and command.help is not None
    lines = [line.strip() for line in command.help.splitlines() if line.strip().startswith("turbocode ")]
    assert len(lines) >= 2
    monkeypatch.chdir(workplace)
    for line in lines:
        assert main.run(shlex.split(line)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
