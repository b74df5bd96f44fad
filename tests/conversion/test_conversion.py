"""Dumps into quantized files and back: the bytes, the figures, slabs, failures half-way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.codecs import Codec, codec_from_description, make_codec
from turbocode.conversion import dequantize_file, plan_quantize, quantize_dump
from turbocode.conversion.slabs import slab_tokens, slabs
from turbocode.dumps import create_dump, open_dump, open_quantized
from turbocode.dumps.metadata import DumpMetadata
from turbocode.dumps.synthesize import SynthesisSpec, synthesize
from turbocode.errors import DataError, OptionError, OutputError
from turbocode.policies import LayerChoice, Recipe

PLENTY = 1 << 30
SIDES = ("keys", "values")


def made_up(path: Path, **change: Any) -> Path:
    spec = {
        "n_layers": 2,
        "n_seqs": 2,
        "n_tokens": 45,
        "n_query_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 64,
        "n_rows": 3,
    }
    synthesize(path, SynthesisSpec(**{**spec, **change}))
    return path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("head_dim", "k", "v"),
    [(64, "turbo3", "q8_0_rot"), (80, "turbo4", "turbo2"), (96, "q4_0", "turbo3"), (256, "turbo2", "turbo3_0")],
)
def test_blocks_and_values_are_those_of_the_codec(dtype: str, head_dim: int, k: str, v: str, tmp_path: Path) -> None:
    source = made_up(tmp_path / "dump.h5", head_dim=head_dim, dtype=dtype)
    packed, decoded = tmp_path / "packed.h5", tmp_path / "decoded.h5"
    with open_dump(source) as dump:
        quantize_dump(dump, packed, Recipe(k=k, v=v), max_memory=PLENTY)
        with open_quantized(packed) as quantized:
            dequantize_file(quantized, decoded, max_memory=PLENTY, logical_dtype="float32")
            with open_dump(decoded) as again:
                assert again.metadata.logical_dtype == "float32"
                for layer, stored, back in zip(dump.layers, quantized.layers, again.layers, strict=True):
                    for side, name in zip(SIDES, (k, v), strict=True):
                        codec = make_codec(name, head_dim)
                        for seq in range(2):
                            for head in range(2):
                                blocks, _ = codec.encode(layer.read(side, seq, head))
                                np.testing.assert_array_equal(stored.side(side).read(seq, head), blocks)
                                np.testing.assert_array_equal(back.read(side, seq, head), codec.decode(blocks))


def test_slabs_change_nothing(tmp_path: Path, tiny_pride: Path) -> None:
    outputs = []
    for number, max_memory in enumerate((PLENTY, 1 << 20, 128 * 24 * 100)):
        path = tmp_path / f"{number}.h5"
        with open_dump(tiny_pride) as dump:
            result = quantize_dump(dump, path, Recipe(k="turbo3", v="turbo4"), max_memory=max_memory)
        outputs.append(path.read_bytes())
        assert result["total"]["bits_per_value"] == 3.625
    with open_quantized(tmp_path / "0.h5") as first:
        for number in (1, 2):
            with open_quantized(tmp_path / f"{number}.h5") as other:
                for a, b in zip(first.layers, other.layers, strict=True):
                    for side in SIDES:
                        assert a.side(side).stored_sha256 == b.side(side).stored_sha256
                        assert a.side(side).report["nmse"] == pytest.approx(b.side(side).report["nmse"], rel=1e-12)


def test_equal_inputs_give_equal_files(tmp_path: Path, tiny_pride: Path) -> None:
    for name in ("a.h5", "b.h5"):
        with open_dump(tiny_pride) as dump:
            quantize_dump(dump, tmp_path / name, Recipe(k="turbo3", v="q4_0_rot"), max_memory=PLENTY)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("name", ["turbo2", "turbo4", "q8_0"])
def test_reports_are_what_the_decoded_file_shows(name: str, tmp_path: Path, tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        result = quantize_dump(dump, tmp_path / "q.h5", Recipe(k=name, v=name), max_memory=PLENTY)
        rows = {(row["layer"], row["side"]): row for row in result["layers"]}
        with open_quantized(tmp_path / "q.h5") as quantized:
            for layer, stored in zip(dump.layers, quantized.layers, strict=True):
                for side in SIDES:
                    codec = codec_from_description(stored.side(side).codec)
                    x = np.stack([layer.read(side, 0, head) for head in range(2)]).astype(np.float64)
                    y = np.stack([codec.decode(stored.side(side).read(0, head)) for head in range(2)]).astype(
                        np.float64
                    )
                    row = rows[layer.name, side]
                    nmse = np.square(x - y).sum() / np.square(x).sum()
                    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
                    assert row["nmse"] == pytest.approx(nmse, rel=1e-5)
                    assert row["mean_cosine"] == pytest.approx(cosine.mean(), abs=1e-7)
                    assert row["min_cosine"] == pytest.approx(cosine.min(), abs=1e-6)
                    assert stored.side(side).report["nmse"] == row["nmse"]


def test_bytes_are_counted_from_the_layout(tmp_path: Path, tiny_pride: Path) -> None:
    recipe = Recipe(k="turbo3", v="turbo2", layers={"0-1": LayerChoice(k="f16")})
    with open_dump(tiny_pride) as dump:
        plan = plan_quantize(dump, recipe)
        total = quantize_dump(dump, tmp_path / "q.h5", recipe, max_memory=PLENTY)["total"]
    vectors = 1024 * 2
    assert plan.n_bytes == total["n_bytes"] == vectors * (2 * 256 + 2 * 50 + 4 * 34)
    assert total["bits_per_value"] == 8 * plan.n_bytes / (vectors * 8 * 128)
    assert total["compression"] == pytest.approx(16 / total["bits_per_value"])


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, tiny_pride: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    encode = Codec.encode

    def failing(self: Codec, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise DataError("stopped")
        return encode(self, *arguments)

    monkeypatch.setattr(Codec, "encode", failing)
    with open_dump(tiny_pride) as dump, pytest.raises(DataError, match="stopped"):
        quantize_dump(dump, tmp_path / "q.h5", Recipe(), max_memory=PLENTY)
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_not_replaced_unasked(tmp_path: Path) -> None:
    source = made_up(tmp_path / "dump.h5")
    before = source.read_bytes()
    with open_dump(source) as dump:
        for path in (source, tmp_path / "q.h5"):
            if path != source:
                path.write_text("mine")
            with pytest.raises(OutputError):
                quantize_dump(dump, path, Recipe(), max_memory=PLENTY)
        with pytest.raises(OutputError):
            quantize_dump(dump, source, Recipe(), max_memory=PLENTY, force=True)
    assert source.read_bytes() == before
    assert (tmp_path / "q.h5").read_text() == "mine"


def one_vector_dump(path: Path, vector: np.ndarray) -> Path:
    metadata = DumpMetadata(
        logical_dtype="float32",
        n_layers=1,
        n_query_heads=1,
        n_kv_heads=1,
        head_dim=64,
        attention_scale=0.125,
        rope_theta=0.0,
    )
    with create_dump(path, metadata) as writer:
        layer = writer.add_layer("000", layer_index=0, n_seqs=1, n_tokens=1)
        for side in SIDES:
            layer.write(side, 0, 0, 0, vector[None])
    return path


def test_norms_beyond_float16_are_counted_and_cut_on_the_way_back(tmp_path: Path) -> None:
    source = one_vector_dump(tmp_path / "huge.h5", np.full(64, 1e6, np.float32))
    with open_dump(source) as dump:
        result = quantize_dump(dump, tmp_path / "q.h5", Recipe(k="turbo3", v="f16"), max_memory=PLENTY)
    assert [row["saturated_vectors"] for row in result["layers"]] == [1, 1]
    with open_quantized(tmp_path / "q.h5") as quantized:
        summary = dequantize_file(quantized, tmp_path / "d.h5", max_memory=PLENTY, logical_dtype="float16")
    assert summary["saturated_values"] == 0
    with open_dump(tmp_path / "d.h5") as dump:
        assert np.isfinite(dump.layers[0].read("keys", 0, 0)).all()


def test_what_float16_cannot_hold_is_cut_on_the_way_back(tmp_path: Path) -> None:
    source = one_vector_dump(tmp_path / "huge.h5", np.full(64, 1e6, np.float32))
    with open_dump(source) as dump:
        quantize_dump(dump, tmp_path / "q.h5", Recipe(k="q8_0", v="f16"), max_memory=PLENTY)
    with open_quantized(tmp_path / "q.h5") as quantized:
        summary = dequantize_file(quantized, tmp_path / "d.h5", max_memory=PLENTY, logical_dtype="float16")
    assert summary["saturated_values"] == 64


def test_slab_sizes() -> None:
    assert slab_tokens(128, 1000, 128 * 24 * 2500) == 2000
    assert slab_tokens(128, 5000, 128 * 24 * 2500) == 2500
    assert list(slabs(10, 4)) == [(0, 4), (4, 8), (8, 10)]
    with pytest.raises(OptionError):
        slab_tokens(128, 1, 100)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(k="turbo3_0", v="f16"), Recipe(layers={"9": LayerChoice(k="f16")}), Recipe(k="turbo3:codebook=gaussian-4")],
)
def test_recipes_that_do_not_fit_the_dump_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with open_dump(made_up(tmp_path / "dump.h5")) as dump, pytest.raises(OptionError):
        quantize_dump(dump, tmp_path / "q.h5", recipe, max_memory=PLENTY)
    assert not (tmp_path / "q.h5").exists()
