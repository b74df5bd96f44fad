"""quantize, dequantize, attend and train-codebook as commands: outputs, refusals and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turbocode.dumps import open_dump, open_quantized
from turbocode_cli.main import run


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    code, out, err = call(capsys, *words, "--json", "--quiet")
    assert code == 0, err
    return json.loads(out)


def test_the_whole_way(tmp_path: Path, tiny_pride: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, decoded = tmp_path / "q.h5", tmp_path / "d.h5"
    made = document(capsys, "quantize", tiny_pride, "-o", packed, "--k", "turbo3", "--v", "turbo4")
    assert made["command"] == "quantize"
    assert made["schema_version"] == 1
    assert made["total"]["bits_per_value"] == 3.625
    assert {(row["layer"], row["side"]) for row in made["layers"]} == {
        (f"00{i}", s) for i in range(4) for s in ("keys", "values")
    }
    compared = document(capsys, "attend", "compare", tiny_pride, packed)
    assert compared["total"]["kl_mean"] < 0.1
    assert (
        compared["total"]["kl_mean"]
        == document(capsys, "attend", "compare", tiny_pride, "--k", "turbo3", "--v", "turbo4")["total"]["kl_mean"]
    )
    assert document(capsys, "dequantize", packed, "-o", decoded, "--dtype", "bfloat16")["logical_dtype"] == "bfloat16"
    with open_dump(decoded) as dump:
        assert dump.metadata.logical_dtype == "bfloat16"
    assert document(capsys, "verify", packed, "--against", tiny_pride)["command"] == "verify"


def test_layers_outside_the_list_stay_float16(
    tmp_path: Path, tiny_pride: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "q.h5"
    document(capsys, "quantize", tiny_pride, "-o", packed, "--k", "turbo2", "--v", "turbo2", "--layers", "1-2")
    with open_quantized(packed) as quantized:
        assert [layer.side("keys").codec["codec"] for layer in quantized.layers] == ["f16", "turbo2", "turbo2", "f16"]


def test_a_recipe_chooses_per_layer(tmp_path: Path, tiny_pride: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("k: turbo4\nv: turbo3\nlayers:\n  0: {k: q8_0}\n")
    made = document(capsys, "quantize", tiny_pride, "-o", tmp_path / "q.h5", "--recipe", recipe)
    assert [row["codec"] for row in made["layers"]] == ["q8_0", "turbo3"] + ["turbo4", "turbo3"] * 3


def test_a_dry_run_writes_nothing(tmp_path: Path, tiny_pride: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = document(
        capsys, "quantize", tiny_pride, "-o", tmp_path / "q.h5", "--k", "turbo3", "--v", "turbo3", "--dry-run"
    )
    assert plan["n_bytes"] == 4 * 2 * 2 * 1024 * 50
    assert list(tmp_path.iterdir()) == []


def test_a_trained_codebook_is_used(tmp_path: Path, tiny_pride: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.json"
    trained = document(
        capsys, "train-codebook", tiny_pride, "--bits", 3, "--per", "layer", "-o", book, "--plot", tmp_path / "p.png"
    )
    assert len(trained["codebooks"]) == 8
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    document(capsys, "quantize", tiny_pride, "-o", tmp_path / "q.h5", "--k", f"turbo3:codebook={book}", "--v", "turbo3")
    with open_quantized(tmp_path / "q.h5") as quantized:
        assert quantized.layers[2].side("keys").codec["codebooks"][0]["name"] == "trained-002-keys-3"


def test_a_trained_trellis_is_used(tmp_path: Path, tiny_pride: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book, report, kept = tmp_path / "book.json", tmp_path / "r.png", tmp_path / "kept.json"
    words = [
        "train-codebook",
        tiny_pride,
        "--trellis",
        "--bits",
        2,
        "--side",
        "k",
        "--weights",
        "queries",
        "--groups",
        512,
    ]
    words += ["--iterations", 5, "--device", "cpu", "--checkpoint", kept, "--report", report, "-o", book]
    trained = document(capsys, *words)
    assert (trained["states_log2"], trained["ends"], len(trained["history"])) == (8, "ring", 5)
    assert trained["nmse_holdout_shipped"] < trained["nmse_holdout"] < 0.2
    assert len(trained["error_autocorrelation"]) == 17 and trained["error_autocorrelation"][0] == 1
    assert report.read_bytes()[:4] == b"\x89PNG"
    first = book.read_bytes()
    document(capsys, *words, "--force")  # the checkpoint is that of a finished training: nothing is left to do
    assert book.read_bytes() == first
    document(
        capsys, "quantize", tiny_pride, "-o", tmp_path / "q.h5", "--k", f"trellis2:codebook={book}", "--v", "trellis3"
    )
    with open_quantized(tmp_path / "q.h5") as quantized:
        stored = quantized.layers[2].side("keys").codec
        assert stored["codebooks"][0]["values"] == json.loads(first)["values"]
        assert stored["search"] == "viterbi"
    document(capsys, "verify", tmp_path / "q.h5", "--against", tiny_pride)
    made = document(capsys, "attend", "compare", tiny_pride, tmp_path / "q.h5")
    assert made["total"]["kernel_error"] < 1e-5


def test_a_report_of_a_scalar_codebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.png"
    document(capsys, "train-codebook", "--bits", 3, "-o", tmp_path / "b.json", "--report", report)
    assert report.read_bytes()[:4] == b"\x89PNG"


TRELLIS = ["train-codebook", "--trellis", "--bits", "2", "-o", "OUT"]
REFUSED = [
    (2, "1 to 4 are", ["train-codebook", "--trellis", "--bits", "5", "-o", "OUT"]),
    (2, "--states-log2 5 to 12", [*TRELLIS, "--states-log2", "4"]),
    (2, "goes with --trellis", ["train-codebook", "--bits", "2", "--states-log2", "8", "-o", "OUT"]),
    (2, "goes with --trellis", ["train-codebook", "--bits", "2", "--device", "cpu", "-o", "OUT"]),
    (2, "--per does not go with --trellis", ["train-codebook", "DUMP", *TRELLIS[1:], "--per", "layer"]),
    (2, "--side is about a dump", [*TRELLIS, "--side", "k"]),
    (2, "for scalar codebooks", [*TRELLIS, "--density", "sphere", "--dimension", "64"]),
    (2, "is not one of auto, cpu, cuda", [*TRELLIS, "--device", "tpu"]),
    (2, "only --side k", ["train-codebook", "DUMP", *TRELLIS[1:], "--weights", "queries"]),
    (2, "--weights norm", ["train-codebook", "DUMP", *TRELLIS[1:], "--weights", "norm"]),
    (2, "must be different", [*TRELLIS, "--report", "OUT"]),
    (65, "not JSON", [*TRELLIS, "--checkpoint", "GARBAGE", "--device", "cpu"]),
    (73, "", ["train-codebook", "--trellis", "--bits", "2", "-o", "TAKEN"]),
    (66, "", ["train-codebook", "absent.h5", *TRELLIS[1:]]),
    (2, "unknown search", ["quantize", "DUMP", "-o", "OUT", "--k", "trellis3:search=best", "--v", "f16"]),
    (2, "no trellis", ["quantize", "DUMP", "-o", "OUT", "--k", "turbo3:gains=2", "--v", "f16"]),
    (2, "unknown codec 'turbo7'", ["quantize", "DUMP", "-o", "OUT", "--k", "turbo7", "--v", "turbo3"]),
    (2, "both --k and --v are needed", ["quantize", "DUMP", "-o", "OUT", "--k", "turbo3"]),
    (2, "--recipe and --k/--v", ["quantize", "DUMP", "-o", "OUT", "--k", "turbo3", "--recipe", "r.yaml"]),
    (2, "--layers names layer 4", ["quantize", "DUMP", "-o", "OUT", "--k", "turbo3", "--v", "turbo3", "--layers", "4"]),
    (
        2,
        "is not a number or a range",
        ["quantize", "DUMP", "-o", "OUT", "--k", "turbo3", "--v", "turbo3", "--layers", "x"],
    ),
    (
        2,
        "has 4 bits; turbo3 needs 3",
        ["quantize", "DUMP", "-o", "OUT", "--k", "turbo3:codebook=gaussian-4", "--v", "f16"],
    ),
    (2, "too small", ["quantize", "DUMP", "-o", "OUT", "--k", "turbo3", "--v", "f16", "--max-memory", "1K"]),
    (66, "no such file", ["quantize", "DUMP", "-o", "OUT", "--k", "turbo3:codebook=absent.json", "--v", "f16"]),
    (66, "no such file", ["quantize", "DUMP", "-o", "OUT", "--recipe", "absent.yaml"]),
    (2, "are possible at head_dim 128", ["tune", "DUMP", "--bits", "9", "-o", "OUT"]),
    (2, "go together", ["tune", "DUMP", "--bits", "3", "-o", "OUT", "--model", "data/lm-tiny"]),
    (2, "smallest choices", ["tune", "DUMP", "--bits", "1", "-o", "OUT", "--codecs", "turbo3,turbo4"]),
    (2, "unknown codec", ["tune", "DUMP", "--bits", "3", "-o", "OUT", "--codecs", "turbo3,turbo9"]),
    (73, "", ["tune", "DUMP", "--bits", "3", "-o", "TAKEN"]),
    (2, "no codec is given", ["measure", "DUMP"]),
    (2, "each --k needs its --v", ["measure", "DUMP", "--k", "turbo3"]),
    (65, "", ["measure", "GARBAGE", "--codec", "turbo3"]),
    (65, "", ["tune", "DUMP", "GARBAGE", "--bits", "3", "-o", "OUT"]),
    (66, "", ["quantize", "absent.h5", "-o", "OUT", "--k", "turbo3", "--v", "turbo3"]),
    (65, "", ["quantize", "GARBAGE", "-o", "OUT", "--k", "turbo3", "--v", "turbo3"]),
    (65, "", ["dequantize", "DUMP", "-o", "OUT"]),
    (65, "", ["attend", "compare", "GARBAGE", "--k", "turbo3", "--v", "turbo3"]),
    (69, "cuda", ["quantize", "DUMP", "-o", "OUT", "--k", "turbo3", "--v", "turbo3", "--device", "cuda"]),
    (69, "cuda", ["attend", "benchmark", "--device", "cuda:1"]),
    (69, "cuda", ["attend", "compare", "DUMP", "--k", "turbo3", "--v", "turbo3", "--device", "cuda"]),
    (73, "", ["quantize", "DUMP", "-o", "TAKEN", "--k", "turbo3", "--v", "turbo3"]),
    (73, "", ["quantize", "DUMP", "-o", "DUMP", "--k", "turbo3", "--v", "turbo3", "--force"]),
    (73, "", ["train-codebook", "--bits", "2", "-o", "TAKEN"]),
    (2, "do not apply", ["attend", "compare", "DUMP", "DUMP", "--k", "turbo3"]),
    (2, "evenly", ["attend", "benchmark", "--q-heads", "3", "--kv-heads", "2"]),
    (2, "bytes of memory", ["attend", "benchmark", "--tokens", "100000000"]),
    (2, "needs --dimension", ["train-codebook", "--density", "sphere", "--bits", "2", "-o", "OUT"]),
    (
        2,
        "has no --dimension",
        ["train-codebook", "--density", "gaussian", "--dimension", "3", "--bits", "2", "-o", "OUT"],
    ),
    (2, "", ["train-codebook", "--bits", "9", "-o", "OUT"]),
    (2, "only --side k", ["train-codebook", "DUMP", "--bits", "2", "--weights", "queries", "-o", "OUT"]),
    (2, "--density and --dimension", ["train-codebook", "DUMP", "--density", "gaussian", "--bits", "2", "-o", "OUT"]),
]


@pytest.mark.parametrize(("exit_code", "message", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(
    exit_code: int, message: str, words: list[str], tmp_path: Path, tiny_pride: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    garbage, taken = tmp_path / "garbage.h5", tmp_path / "taken"
    garbage.write_bytes(b"not HDF5" * 200)
    taken.write_text("mine")
    dump_before = tiny_pride.read_bytes()
    places = {"DUMP": tiny_pride, "OUT": tmp_path / "out", "GARBAGE": garbage, "TAKEN": taken}
    code, out, err = call(capsys, *(places.get(word, word) for word in words), "--quiet")
    assert code == exit_code, err
    lines = err.splitlines()
    assert lines[0].startswith("turbocode: error: ")
    assert message in lines[0]
    assert len(lines) <= 2
    assert out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"garbage.h5", "taken"}
    assert taken.read_text() == "mine"
    assert tiny_pride.read_bytes() == dump_before


def test_a_gate_on_quality(tiny_pride: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attend", "compare", tiny_pride, "--k", "turbo2", "--v", "f16", "--quiet", "--fail-above"]
    assert call(capsys, *words, "1.0")[0] == 0
    code, out, err = call(capsys, *words, "0.01")
    assert code == 3
    assert "exceeds 0.01" in err
    assert "KL mean" in out


def test_a_plot_never_replaces_the_dump_or_the_codebook(
    tmp_path: Path, tiny_pride: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump, book = tmp_path / "dump.h5", tmp_path / "book.json"
    dump.write_bytes(tiny_pride.read_bytes())
    words = ["train-codebook", dump, "--bits", "2", "--force", "--quiet", "-o", book]
    assert call(capsys, *words, "--plot", dump)[0] == 73
    assert call(capsys, *words, "--plot", book)[0] == 2
    assert dump.read_bytes() == tiny_pride.read_bytes()
    assert not book.exists()


def test_force_replaces_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.json"
    book.write_text("old")
    assert call(capsys, "train-codebook", "--bits", 2, "-o", book, "--force")[0] == 0
    assert json.loads(book.read_text())["bits"] == 2


def test_values_that_are_not_finite_can_become_zero_everywhere(
    tmp_path: Path, tiny_pride: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py

    dump, packed = tmp_path / "nan.h5", tmp_path / "q.h5"
    dump.write_bytes(tiny_pride.read_bytes())
    with h5py.File(dump, "r+") as file:
        file["layers/001/keys"][0, 1, 700, 5] = float("nan")
    words = ["--k", "turbo3", "--v", "turbo3"]
    assert call(capsys, "quantize", dump, "-o", packed, *words)[0] == 65
    zero = ["--nonfinite", "zero"]
    assert document(capsys, "quantize", dump, "-o", packed, *words, *zero)["total"]["nonfinite_replaced"] == 1
    assert document(capsys, "attend", "compare", dump, packed, *zero)["total"]["kl_mean"] < 0.1
    assert document(capsys, "train-codebook", dump, "--bits", 2, "-o", tmp_path / "b.json", *zero)["codebooks"]


def test_a_codebook_of_another_rotation_is_refused(
    tmp_path: Path, tiny_pride: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = tmp_path / "book.json"
    document(capsys, "train-codebook", tiny_pride, "--bits", 3, "--rotation", "none", "-o", book)
    spec = f"turbo3:codebook={book}"
    code, _, err = call(capsys, "quantize", tiny_pride, "-o", tmp_path / "q.h5", "--k", spec, "--v", "f16", "--quiet")
    assert code == 2
    assert "was trained with rotation none" in err
    document(capsys, "quantize", tiny_pride, "-o", tmp_path / "q.h5", "--k", f"{spec},rotation=none", "--v", "f16")
