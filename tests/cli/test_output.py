"""stdout and stderr: numbers, escapes, one JSON document, no ANSI codes in a pipe, closed pipes, full disks."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from turbocode_cli import main, output
from turbocode_cli.terminal import console_on

Start = Callable[..., Any]
DUMP = "data/tiny-pride.h5"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.034, "0.03400"),
        (3.125, "3.125"),
        (1234.0, "1234"),
        (123456.7, "123,457"),
        (0.00002891, "2.891e-05"),
        (-0.5, "-0.5000"),
        (99999, "99,999"),
        (None, "-"),
        (True, "yes"),
        ("word", "word"),
    ],
)
def test_cell_text(value: object, text: str) -> None:
    assert output.cell_text(value) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 62, "4096.0 PiB")]
)
def test_size_text(n_bytes: int, text: str) -> None:
    assert output.size_text(n_bytes) == text


def test_printable_escapes_what_is_not_a_visible_character() -> None:
    assert output.printable("é 日\x1b[1m\u202e\udcff\n") == "é 日\\x1b[1m\\u202e\\udcff\\n"


def test_a_console_takes_no_markup_and_no_control_characters() -> None:
    stream = StringIO()
    table = output.table(["[b]x[/b]"], [["[red]\x1b[31m:smile:[/red]"]], title="a\x1b")
    console_on(stream).print(table)
    text = stream.getvalue()
    assert "[b]x[/b]" in text and "[red]\\x1b[31m:smile:[/red]" in text and "\x1b" not in text


def test_a_table_in_a_pipe_is_never_wrapped() -> None:
    stream = StringIO()
    console_on(stream).print(output.table(["a", "b"], [["x" * 300, "y" * 300]]))
    assert "x" * 300 in stream.getvalue() and "y" * 300 in stream.getvalue()


def test_json_takes_numpy_and_paths_and_refuses_nan(capsys: pytest.CaptureFixture[str]) -> None:
    with click.Context(click.Command("c"), info_name="turbocode attend compare"):
        document = {"a": np.float32(0.5), "b": np.arange(2), "c": Path("x")}
        output.emit(document, True, lambda console: None)
        assert json.loads(capsys.readouterr().out) == {
            "schema_version": 1,
            "command": "attend compare",
            "a": 0.5,
            "b": [0, 1],
            "c": "x",
        }
        with pytest.raises(ValueError, match="JSON"):
            output.emit({"a": float("nan")}, True, lambda console: None)


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 1.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    with output.progress("read", 100, quiet=False) as advance:
        for _ in range(4):
            advance(20)
    assert capsys.readouterr().err == "read: 40% after 11 s\nread: 80% after 22 s\n"


def test_quiet_progress_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "PROGRESS_SECONDS", 0.0)
    with output.progress("read", 100, quiet=True) as advance:
        advance(50)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments", [["inspect", DUMP], ["verify", DUMP], ["doctor", "--no-self-test"]], ids=lambda value: value[0]
)
def test_json_is_one_document(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1 and document["command"] == arguments[0]


def test_no_ansi_in_a_pipe_even_if_the_environment_wants_colour(start: Start) -> None:
    process = start("inspect", DUMP, env={"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "40"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and b"kurtosis" in out
    assert b"\x1b" not in out and err == b""


def test_a_locale_without_unicode_is_no_failure(start: Start) -> None:
    process = start("inspect", DUMP, env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.isascii() and err == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", DUMP], ["inspect", DUMP, "--json"]], ids=str)
def test_a_full_disk_under_stdout_is_exit_74(start: Start, arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(*arguments, stdout=full)
        err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 74
    assert err == "turbocode: error: input or output failed: No space left on device\n"


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", DUMP, "--json"]], ids=str)
def test_a_closed_pipe_is_silent(start: Start, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*arguments, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 141
