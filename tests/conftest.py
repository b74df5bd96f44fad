"""Fixtures for all tests. Sets Numba's cache folder before anything imports Numba."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def _kernel_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "turbocode" / "kernels").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# Numba's cache does not notice a change in a function of another module; a folder per state of the kernels does.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"turbocode-numba-{_kernel_hash()}"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's name, so that no test depends on another."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def tiny_pride() -> Path:
    """The shipped dump."""
    return ROOT / "data" / "tiny-pride.h5"
