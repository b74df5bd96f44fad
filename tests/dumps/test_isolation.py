"""A crash inside HDF5 kills the rehearsing child and reaches the caller as a DataError."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from dumps.samples import write_plain_dump, write_quantized

from turbocode.dumps import isolation, open_dump, open_quantized
from turbocode.errors import DataError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_crash_becomes_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    write_quantized(tmp_path / "q.h5")
    monkeypatch.setattr(isolation, "take_stock", lambda path: os.kill(os.getpid(), number))
    with pytest.raises(DataError, match=f"crashes the HDF5 library \\({number.name}\\)"):
        open_quantized(tmp_path / "q.h5", isolate=True)


def test_endless_loop_becomes_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(path: str) -> None:
        while True:
            pass

    write_quantized(tmp_path / "q.h5")
    monkeypatch.setattr(isolation, "take_stock", spin)
    monkeypatch.setattr(isolation, "CPU_SECONDS", 1)
    with pytest.raises(DataError, match="crashes"):
        open_quantized(tmp_path / "q.h5", isolate=True)


def test_refusals_are_the_same_with_and_without(tmp_path: Path) -> None:
    path = tmp_path / "dump.h5"
    write_plain_dump(path, lambda file: file.attrs.__delitem__("complete"))
    messages = []
    for isolate in (False, True):
        with pytest.raises(DataError) as caught:
            open_dump(path, isolate=isolate)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_fork_beside_a_thread_that_reads(tmp_path: Path) -> None:
    path = tmp_path / "dump.h5"
    write_plain_dump(path)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with open_dump(path) as dump:
                dump.content_sha256()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        started = time.perf_counter()
        for _ in range(10):
            open_dump(path, isolate=True).close()
        assert time.perf_counter() - started < 20
    finally:
        stop.set()
        thread.join()
