"""Tests of GPU kernels in the simulator, for which tests/kernels/test_simulated.py starts a process of its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest

if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def shuffled_threads() -> Iterator[None]:
    """Threads run in another order between any two barriers, so that a missing one shows."""
    from turbocode.kernels import _simulator

    _simulator.set_order(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN and infinities are among the inputs
        yield
    _simulator.set_order(None)
