"""Runs tests/simulated, each file in a process of its own: Numba chooses its simulator when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path.name for path in (ROOT / "tests" / "simulated").glob("test_*.py"))


@pytest.mark.parametrize("name", FILES)
def test_in_the_simulator(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", f"tests/simulated/{name}"],
        cwd=ROOT,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and " passed" in run.stdout and " skipped" not in run.stdout, run.stdout[-4000:]
