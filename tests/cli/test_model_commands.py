"""`turbocode capture` and `turbocode evaluate` from the command line: documents, mistakes, what is left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_models import save_model

from turbocode.dumps import open_dump
from turbocode_cli import main

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want.\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text, and things that look like one."""
    folder = tmp_path_factory.mktemp("place")
    save_model("llama", folder / "model")
    (folder / "text.txt").write_text(TEXT)
    (folder / "latin.txt").write_bytes(b"caf\xe9" * 100)
    (folder / "no-config").mkdir()
    (folder / "there.h5").write_bytes(b"mine")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{ not json")
    return folder


def words(place: Path, line: str) -> list[str]:
    """The command line `capture|evaluate ...` with the usual model and text unless it names others."""
    command, *rest = line.format(place).split()
    for option, usual in (("--model", "model"), ("--text", "text.txt")):
        if option not in rest:
            rest += [option, str(place / usual)]
    return [command, *rest, "--device", "cpu"] if "--device" not in rest else [command, *rest]


def test_capture(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "capture --context 16 --windows 2 --skip 6 --rows 3 --dtype float32 --json --quiet"
    assert main.run([*words(place, line), "-o", str(tmp_path / "dump.h5")]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == "" and document["command"] == "capture"
    assert (document["n_seqs"], document["n_tokens"], document["n_rows"]) == (2, 16, 3)
    assert document["n_bytes"] == (tmp_path / "dump.h5").stat().st_size
    with open_dump(tmp_path / "dump.h5") as dump:
        assert dump.metadata.logical_dtype == "float32" and dump.metadata.source == "text.txt"
        assert "".join(chr(token + 32) for token in dump.tokens()[0]) == TEXT[6:22]  # type: ignore[index]
    assert main.run(["verify", str(tmp_path / "dump.h5"), "--quiet"]) == 0
    assert main.run([*words(place, line), "-o", str(tmp_path / "dump.h5")]) == 73
    assert main.run([*words(place, "capture --context 16"), "-o", str(tmp_path / "dump.h5"), "--force"]) == 0
    assert "1 x 16 tokens, 1 query rows a head" in capsys.readouterr().out


def test_evaluate_as_json(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mixed.yaml").write_text("k: turbo4\nv: turbo2\nlayers: {'0': {v: f16}}\n")
    line = (
        f"evaluate --context 24 --codec turbo3 --k exact --v turbo2 --recipe {tmp_path}/mixed.yaml --json --quiet "
        f"--plot {tmp_path}/errors.png"
    )
    assert main.run(words(place, line)) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in document["codecs"]] == ["turbo3", "exact / turbo2", "mixed"]
    assert document["tokenizer"] == {"class": document["tokenizer"]["class"], "agrees_with_file": True}
    assert (document["first"], document["last"], document["n_windows"]) == (12, 22, 2)
    assert all(row["n_tokens"] == 22 and row["kl_mean"] > 0 for row in document["codecs"])
    assert {"torch", "transformers"} <= set(document["versions"]) and document["machine"]["cpu"]
    assert (tmp_path / "errors.png").stat().st_size > 1000


def test_evaluate_as_tables(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(words(place, "evaluate --context 16 --codec turbo3 --chunk 1 --packed --residual 2")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    names = re.findall(r"^ (KL \S+|same top|ratio)", out, flags=re.MULTILINE)
    assert names[:4] == ["ratio", "KL mean", "KL max", "KL 99.9"] and names[-1] == "same top"
    assert "token by token, packed attention" in out and "bits a value" in out
    assert main.run(words(place, "evaluate --context 16 --codec exact --codec turbo3 --device auto")) == 0
    out, err = capsys.readouterr()
    assert err.startswith("device: ")
    assert re.search(r"^ exact +32\.00 ", out, flags=re.MULTILINE) and "lm" not in out


MISTAKES = [
    ("evaluate", 2, "--codec turbo3"),
    ("evaluate --codec turbo9", 2, "turbo9"),
    ("evaluate --k turbo3", 2, "each --k needs its --v"),
    ("evaluate --codec turbo3 --context 2", 2, "--context"),
    ("evaluate --codec turbo3 --context 129", 2, "allows 128"),
    ("evaluate --codec turbo3 --context 16 --residual 4", 2, "--chunk 1"),
    ("evaluate --codec exact --context 16 --packed", 2, "exact keys have none"),
    ("evaluate --codec turbo3_tcq --context 16", 2, "32"),
    ("evaluate --codec turbo3 --context 16 --score-from 15", 2, "0 to 14"),
    ("evaluate --codec turbo3 --context 16 --device gpu", 2, "cuda:N"),
    ("evaluate --codec turbo3 --context 16 --chunk 0", 2, "--chunk"),
    ("evaluate --codec turbo3 --context 100", 65, "fewer --windows"),
    ("evaluate --codec turbo3 --context 16 --skip 1000", 65, "less --skip"),
    ("evaluate --codec turbo3 --context 16 --bos --windows 1", 2, "leave --bos out"),
    ("evaluate --codec turbo3 --text {}/none.txt", 66, "none.txt"),
    ("evaluate --codec turbo3 --text {}", 66, "regular"),
    ("evaluate --codec turbo3 --text {}/latin.txt", 65, "UTF-8"),
    ("evaluate --codec turbo3 --model {}/none", 66, "no such folder"),
    ("evaluate --codec turbo3 --model {}/no-config", 66, "config.json"),
    ("evaluate --codec turbo3 --model {}/text.txt", 66, "folder"),
    ("evaluate --codec turbo3 --model {}/broken", 65, "cannot be loaded"),
    ("evaluate --codec turbo3 --model nobody/no-such-model", 66, "hub"),
    ("evaluate --recipe {}/none.yaml", 66, "none.yaml"),
    ("evaluate --codec turbo3 --plot {}/there.h5 --context 16", 73, "--force"),
    ("capture -o {}/there.h5", 73, "--force"),
    ("capture -o {}/no/new.h5", 73, "mkdir"),
    ("capture -o {}/text.txt --force", 73, "input"),
    ("capture -o {}/new.h5 --context 100 --windows 2", 65, "fewer --windows"),
    ("capture -o {}/new.h5 --context 16 --rows 9", 2, "second half"),
    ("capture -o {}/new.h5 --model {}/none", 66, "no such folder"),
    ("capture --context 16", 2, "--output"),
]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("line", "code", "word"), MISTAKES, ids=lambda value: str(value))
def test_a_mistake_is_one_line_and_leaves_nothing(
    line: str, code: int, word: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    assert main.run(words(place, line.replace("{}", str(place)))) == code
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0].startswith("turbocode: error: ") and len(lines) <= 2
    assert word in err
    assert sorted(place.rglob("*")) == before and (place / "there.h5").read_bytes() == b"mine"


def test_a_gpu_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main.run(words(place, "evaluate --codec turbo3 --context 16 --device cuda")) == 69
    assert "this torch sees no GPU" in capsys.readouterr().err


def test_a_threshold(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "evaluate --context 16 --codec q8_0 --codec turbo2 --quiet --fail-above"
    assert main.run(words(place, f"{line} 100")) == 0
    assert main.run(words(place, f"{line} 1e-9")) == 3
    assert "of turbo2 exceeds 1e-09" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_extra(missing: str, start: Callable[..., Any], place: Path) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None; from turbocode_cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    process = start(*words(place, "evaluate --codec turbo3 --context 16"), script=script)
    err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 69, err
    assert missing in err.splitlines()[0] and err.splitlines()[1] == "  hint: pip install 'turbocode[hf]'"


def test_other_commands_do_not_load_torch(start: Callable[..., Any]) -> None:
    for arguments in (["capture", "--help"], ["evaluate", "--help"], ["inspect", "data/tiny-pride.h5"]):
        script = (
            "import sys; from turbocode_cli.main import run; code = run(sys.argv[1:]); "
            "sys.exit(code or 'torch' in sys.modules or 'transformers' in sys.modules)"
        )
        process = start(*arguments, script=script)
        process.communicate(timeout=60)
        assert process.returncode == 0, arguments
