"""Runs the program in a process of its own, from the source tree or installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(*arguments, **popen_options): the process `turbocode arguments`; the test's end is its end."""
    started: list[subprocess.Popen[bytes]] = []

    def popen(*arguments: str, script: str | None = None, **options: object) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}
        environment.update(options.pop("env", {}))  # type: ignore[call-overload]
        program = ["-m", "turbocode_cli"] if script is None else ["-c", script]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen([sys.executable, *program, *arguments], env=environment, **pipes)  # type: ignore[call-overload]
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.communicate()
