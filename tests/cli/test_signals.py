"""Ctrl-C and SIGTERM end a command with 130 and 143, and nothing is left of what it was writing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from turbocode_cli.interruption import Terminated, interruptible

PATIENCE = 60.0  # seconds a slow machine may take to get going


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_a_signal_ends_the_command_and_its_part_file(
    number: signal.Signals, code: int, start: Callable[..., Any], tmp_path: Path
) -> None:
    process = start("synthesize", "-o", str(tmp_path / "big.h5"), "--n-tokens", "4000000", "--quiet")
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.glob(".big.h5.*.part")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert out == b"" and b"Traceback" not in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_that_python_drops_is_sent_again(number: signal.Signals, raised: type[BaseException]) -> None:
    class Careless:
        def __del__(self) -> None:
            signal.raise_signal(number)

    handler = signal.getsignal(number)
    with pytest.raises(raised), interruptible():
        careless = Careless()
        del careless
        time.sleep(PATIENCE)
    assert signal.getsignal(number) is handler
