"""What users are told: the exit code, one line, and what to do."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import click
import pytest

from turbocode.errors import DataError, OptionError
from turbocode_cli import main
from turbocode_cli.failures import describe_failure
from turbocode_cli.interruption import Terminated
from turbocode_cli.output import emit

DUMP = "data/tiny-pride.h5"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "empty.h5").touch()
    (tmp_path / "text.h5").write_text("not HDF5 at all, only words" * 100)
    (tmp_path / "cut.h5").write_bytes(Path(DUMP).read_bytes()[:100_000])
    (tmp_path / "there.h5").write_bytes(b"mine")
    (tmp_path / "link.h5").symlink_to(tmp_path / "there.h5")
    os.mkfifo(tmp_path / "pipe.h5")
    return tmp_path


MISTAKES = [
    (["inspct"], 2, "inspect"),
    (["inspect"], 2, "FILE"),
    (["inspect", "--jsn", DUMP], 2, "--json"),
    (["inspect", DUMP, "--sample-tokens", "0"], 2, "--sample-tokens"),
    (["inspect", DUMP, "--sample-tokens", "many"], 2, "many"),
    (["inspect", DUMP, "--nonfinite", "ignore"], 2, "zero"),
    (["inspect", DUMP, DUMP], 2, "argument"),
    (["--verbose", "inspect", DUMP], 2, "--verbose"),
    (["attend", "compar"], 2, "compare"),
    (["synthesize"], 2, "--output"),
    (["synthesize", "-o", "{}/new.h5", "--n-layers", "0"], 2, "n_layers"),
    (["synthesize", "-o", "{}/new.h5", "--n-query-heads", "3"], 2, "multiple"),
    (["synthesize", "-o", "{}/new.h5", "--dtype", "int8"], 2, "float16"),
    (["verify", DUMP, "--against", DUMP], 2, "--against"),
    (["inspect", "{}/none.h5"], 66, "none.h5"),
    (["inspect", "{}"], 66, "regular"),
    (["inspect", "{}/pipe.h5"], 66, "regular"),
    (["inspect", "{}/empty.h5"], 65, "empty.h5"),
    (["inspect", "{}/text.h5"], 65, "text.h5"),
    (["inspect", "{}/cut.h5"], 65, "cut.h5"),
    (["verify", "{}/cut.h5"], 65, "cut.h5"),
    (["verify", "{}/none.h5"], 66, "none.h5"),
    (["synthesize", "-o", "{}/there.h5"], 73, "--force"),
    (["synthesize", "-o", "{}/link.h5", "--force"], 73, "link"),
    (["synthesize", "-o", "{}/no/new.h5"], 73, "mkdir"),
    (["synthesize", "-o", "{}", "--force"], 73, "regular"),
]


@pytest.mark.parametrize(("arguments", "code", "word"), MISTAKES, ids=lambda value: str(value))
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], code: int, word: str, files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(files.iterdir())
    assert main.run([part.format(files) for part in arguments]) == code
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0].startswith("turbocode: error: ") and len(lines) <= 2
    assert len(lines) == 1 or lines[1].startswith("  hint: ")
    assert word in err
    assert sorted(files.iterdir()) == before and (files / "there.h5").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "code"), [(["inspect", "none.h5", "--json"], 66), (["inspect", "--json", "--wrong"], 2)]
)
def test_json_names_the_error_on_stdout(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == code
    error = json.loads(capsys.readouterr().out)["error"]
    assert set(error) == {"code", "exit", "file", "object", "message", "hint"}
    assert error["exit"] == code


EXCEPTIONS = [
    (KeyboardInterrupt(), 130),
    (Terminated(), 143),
    (MemoryError(), 74),
    (OSError(errno.ENOSPC, "No space left on device", "out.h5"), 74),
    (OSError(errno.EIO, "Input/output error"), 74),
    (ZeroDivisionError("division by zero"), 1),
    (FileNotFoundError(2, "No such file"), 1),
    (BrokenPipeError(), 141),
    (DataError("is damaged", file="a.h5", object="/layers/000/keys", hint="copy it again"), 65),
]


def stand_in(exception: BaseException) -> click.Command:
    """A command that does nothing but raise."""

    @click.command()
    @click.option("--json", "as_json", is_flag=True)
    def command(as_json: bool) -> None:
        raise exception

    return command


@pytest.mark.parametrize(("exception", "code"), EXCEPTIONS, ids=lambda value: repr(value))
def test_what_a_command_raises_becomes_a_code(
    exception: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main.command, "get_command", lambda ctx, name: stand_in(exception))
    assert main.run(["demo"]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(err.splitlines()) == (0 if code == 141 else len(describe_failure(exception).lines()))


def test_only_debug_shows_where_an_internal_error_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main.command, "get_command", lambda ctx, name: stand_in(RuntimeError("odd")))
    assert main.run(["--debug", "demo"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "internal error, please report: RuntimeError: odd" in err


def test_an_error_after_the_document_adds_no_second_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @click.option("--json", "as_json", is_flag=True)
    def command(as_json: bool) -> None:
        emit({"ok": False}, as_json, lambda console: None)
        raise DataError("is damaged")

    monkeypatch.setattr(main.command, "get_command", lambda ctx, name: command)
    assert main.run(["verify", "--json"]) == 65
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema_version": 1, "command": "verify", "ok": False}
    assert err == "turbocode: error: is damaged\n"


def test_names_from_files_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nasty = OptionError(
        "key 'a\x1b]0;title\x07' is\nunknown", file="b\x1b[2J.h5", object="\u202egnp", hint="see \x9b31m"
    )
    monkeypatch.setattr(main.command, "get_command", lambda ctx, name: stand_in(nasty))
    assert main.run(["demo"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2
    assert err.replace("\n", "").isprintable()
