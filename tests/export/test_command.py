"""`turbocode export header` prints or writes what `c_header` returns, or says in one line why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from turbocode.codebooks import Codebook
from turbocode.codebooks.codebook_set import CodebookSet, ScopedCodebook
from turbocode.codecs import make_codec
from turbocode.conversion import quantize_dump
from turbocode.dumps import open_dump
from turbocode.export import c_header
from turbocode.policies import Recipe
from turbocode_cli import main

DUMP = Path("data/tiny-pride.h5").absolute()
Capture = pytest.CaptureFixture[str]


def header(*arguments: str | Path) -> int:
    return main.run(["export", "header", *map(str, arguments)])


@pytest.fixture(scope="module")
def head_dim() -> int:
    with open_dump(DUMP) as dump:
        return dump.metadata.head_dim


@pytest.fixture(scope="module")
def codebooks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Codebook]]:
    """A set with one codebook per KV head, and these codebooks."""
    with open_dump(DUMP) as dump:
        n_heads = dump.metadata.n_kv_heads
    books = [Codebook(f"head-{h}", np.linspace(-2, 2 + h / 10, 8), 0.1) for h in range(max(2, n_heads))]
    path = tmp_path_factory.mktemp("set") / "set.json"
    scoped = CodebookSet(tuple(ScopedCodebook(book, head=h) for h, book in enumerate(books)))
    path.write_text(json.dumps(scoped.to_json()))
    return path, books


def test_prints_to_stdout(capsys: Capture) -> None:
    assert header("turbo3:norm=mse", "--head-dim", "80", "--prefix", "kv") == 0
    assert capsys.readouterr().out == c_header(make_codec("turbo3:norm=mse", 80), prefix="kv")
    assert header("turbo3", "-o", "-") == 0
    assert capsys.readouterr().out == c_header(make_codec("turbo3", 128))


def test_writes_a_file_once(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "t.h"
    assert header("turbo4", "-o", out) == 0
    assert out.read_text() == c_header(make_codec("turbo4", 128))
    assert header("turbo3", "-o", out) == 73
    assert header("turbo3", "-o", out, "--force", "--json") == 0
    document = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert (document["command"], document["prefix"], document["output"]) == ("export header", "turbo3_128", str(out))
    assert out.read_text() == c_header(make_codec("turbo3", 128))
    assert [path.name for path in tmp_path.iterdir()] == ["t.h"]


def test_json_holds_the_header(capsys: Capture) -> None:
    assert header("q8_0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["header"] == c_header(make_codec("q8_0", 128))


def test_takes_a_codebook_by_name_and_by_file(tmp_path: Path, capsys: Capture) -> None:
    book = Codebook("mine", np.linspace(-2, 2, 8), 0.1)
    path = tmp_path / "mine.json"
    path.write_text(book.dumps())
    assert header("turbo3", "--codebook", path) == 0
    assert capsys.readouterr().out == c_header(make_codec("turbo3", 128, codebooks=book))
    assert header("turbo3", "--codebook", "gaussian-3") == 0
    assert capsys.readouterr().out == c_header(make_codec("turbo3:codebook=gaussian-3", 128))


def test_takes_one_codebook_of_a_set(codebooks: tuple[Path, list[Codebook]], capsys: Capture) -> None:
    path, books = codebooks
    assert header("turbo3", "--codebook", path, "--layer", "0", "--side", "k", "--head", "1") == 0
    assert capsys.readouterr().out == c_header(make_codec("turbo3", 128, codebooks=books[1]))


def test_takes_the_codec_of_a_quantized_file(
    tmp_path: Path, head_dim: int, codebooks: tuple[Path, list[Codebook]], capsys: Capture
) -> None:
    stored = tmp_path / "q.h5"
    with open_dump(DUMP) as dump:
        n_heads = dump.metadata.n_kv_heads
        recipe = Recipe(k=f"turbo3:codebook={codebooks[0]}", v="turbo2:norm=unbiased")
        quantize_dump(dump, stored, recipe, max_memory=1 << 28)
    assert header("--from", stored, "--layer", "1", "--side", "v") == 0
    assert capsys.readouterr().out == c_header(make_codec("turbo2:norm=unbiased", head_dim))
    last = n_heads - 1
    assert header("--from", stored, "--layer", "0", "--side", "k", "--head", last) == 0
    assert capsys.readouterr().out == c_header(make_codec("turbo3", head_dim, codebooks=codebooks[1][last]))
    assert header("--from", stored, "--layer", "0", "--side", "k", "--head", n_heads) == 2
    assert header("--from", stored, "--layer", "999", "--side", "k") == 2
    assert header("--from", stored) == 2
    assert header("--from", stored, "turbo3", "--layer", "0", "--side", "k") == 2
    assert header("--from", stored, "--layer", "0", "--side", "k", "--head", "0", "-o", stored, "--force") == 73
    if n_heads > 1:
        assert header("--from", stored, "--layer", "0", "--side", "k") == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["turbo9"], 2),
        (["turbo3", "--head-dim", "100"], 2),
        (["turbo3", "--prefix", "int"], 2),
        (["turbo3", "--codebook", "missing.json"], 66),
        (["turbo3", "--codebook", "gaussian-9"], 2),
        (["turbo3", "--codebook", "gaussian-4"], 2),
        (["q8_0", "--codebook", "gaussian-4"], 2),
        (["turbo3:codebook=gaussian-3", "--codebook", "gaussian-3"], 2),
        (["turbo3", "--layer", "0"], 2),
        (["turbo3", "-o", "no/such/folder/t.h"], 73),
        (["--from", "missing.h5", "--layer", "0", "--side", "k"], 66),
    ],
)
def test_failures_are_one_line_and_a_code(arguments: list[str], code: int, capsys: Capture) -> None:
    assert header(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("turbocode: error: ")
    assert len(captured.err.splitlines()) <= 2
