"""Transforms in calibration files, recipes and quantized files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from turbocode.codecs import TransformedCodec, coder_from_description
from turbocode.conversion import dequantize_file, plan_quantize, quantize_dump
from turbocode.dumps import create_calibration, open_dump, open_quantized, read_calibration
from turbocode.errors import DataError, NoInputError, OptionError, TurbocodeError
from turbocode.evaluation.attention_compare import EncodedNow, StoredBlocks, compare_attention
from turbocode.evaluation.verification import verify_file
from turbocode.policies import read_recipe
from turbocode.training.calibrate import calibrate_dump, parse_transforms

MEMORY = 1 << 28
RECIPE = """
calibration: means.h5
k: turbo3
v: q8_0
transforms: {k: [mean], v: [mean]}
layers: {"2": {k: f16, transforms: {k: []}}}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_pride: Path) -> Path:
    """A folder with a calibration of tiny-pride and a recipe that names it."""
    with open_dump(tiny_pride) as dump:
        chain = parse_transforms("mean")
        calibrate_dump(dump, tmp_path / "means.h5", {"keys": [chain], "values": [chain]})
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_a_calibration_is_read_as_written(folder: Path, tiny_pride: Path) -> None:
    found = read_calibration(folder / "means.h5")
    with open_dump(tiny_pride) as dump:
        assert found.metadata == dump.metadata and found.dump_sha256 == dump.content_sha256()
        keys = np.stack([dump.layers[1].read("keys", 0, h) for h in range(dump.metadata.n_kv_heads)])
    assert found.names("001", "keys") == ["mean"]
    entry = found.entry("001", "keys", "mean")
    np.testing.assert_allclose(entry.arrays["mean"], keys.astype(np.float64).mean(axis=1), rtol=1e-3, atol=1e-4)
    assert entry.about["constant_share"] > 0.5  # inspect says .61 of this layer's keys
    with pytest.raises(DataError, match=r"mean\.klt was not calibrated; stored are mean"):
        found.entry("001", "keys", "mean.klt")


def test_equal_dumps_give_equal_bytes(folder: Path, tiny_pride: Path) -> None:
    chain = parse_transforms("mean")
    with open_dump(tiny_pride) as dump:
        calibrate_dump(dump, folder / "again.h5", {"keys": [chain], "values": [chain]})
    assert (folder / "again.h5").read_bytes() == (folder / "means.h5").read_bytes()


def test_a_quantized_file_is_readable_alone(folder: Path, tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        recipe = read_recipe(folder / "recipe.yaml")
        plan = plan_quantize(dump, recipe)
        quantize_dump(dump, folder / "q.h5", recipe, max_memory=MEMORY)
        (folder / "means.h5").unlink()
        (folder / "moved").mkdir()
        (folder / "q.h5").rename(folder / "moved" / "q.h5")
        result = verify_file(folder / "moved" / "q.h5", against=tiny_pride)
        assert result["ok"] and result["checks"]["figures_compared"] == 2 * dump.metadata.n_layers
        with open_quantized(folder / "moved" / "q.h5") as stored:
            side = stored.layers[0].side("keys")
            coder = coder_from_description(side.codec, side.arrays())
            assert isinstance(coder, TransformedCodec) and coder.name == "mean+turbo3"
            assert coder.bits_per_value == plan.codecs["000", "keys"].bits_per_value > 3.125
            exact = dump.layers[0].read("keys", 0, 1)
            np.testing.assert_array_equal(side.read(0, 1), plan.codecs["000", "keys"].encode(exact, 1)[0])
            assert open_codec(stored, 2, "keys").name == "f16"
            both = [
                compare_attention(dump, source, max_memory=MEMORY)["total"]
                for source in (EncodedNow(plan), StoredBlocks(stored, dump))
            ]
            assert both[0] == both[1] and both[0]["kernel_error"] < 1e-5
            dequantize_file(stored, folder / "back.h5", max_memory=MEMORY, logical_dtype="float32")
        with open_dump(folder / "back.h5") as back:
            found = back.layers[0].read("keys", 0, 1)
            assert np.square(found - exact).sum() < 0.04 * np.square(exact.astype(np.float64)).sum()


def open_codec(stored: object, layer: int, side: str) -> object:
    found = stored.layers[layer].side(side)  # type: ignore[attr-defined]
    return coder_from_description(found.codec, found.arrays())


def test_means_help_the_dump_they_were_made_of(folder: Path, tiny_pride: Path) -> None:
    (folder / "plain.yaml").write_text("k: turbo3\nv: q8_0\n")
    with open_dump(tiny_pride) as dump:
        figures = [
            compare_attention(dump, EncodedNow(plan_quantize(dump, read_recipe(folder / name))), max_memory=MEMORY)
            for name in ("plain.yaml", "recipe.yaml")
        ]
    plain, mapped = (figure["layers"][1]["kl_mean"] for figure in figures)
    assert mapped < 0.5 * plain


def test_what_does_not_fit_is_refused_in_one_line(folder: Path, tiny_pride: Path) -> None:
    def plan(text: str) -> None:
        (folder / "other.yaml").write_text(text)
        with open_dump(tiny_pride) as dump:
            plan_quantize(dump, read_recipe(folder / "other.yaml"))

    with pytest.raises(OptionError, match="need a calibration file"):
        plan("transforms: {k: [mean]}")
    with pytest.raises(NoInputError, match="calibration file does not exist"):
        plan("{transforms: {k: [mean]}, calibration: nowhere.h5}")
    with pytest.raises(DataError, match="unknown transform 'men'"):
        plan("{transforms: {k: [men]}, calibration: means.h5}")
    with pytest.raises(DataError, match="each is allowed once"):
        plan("{transforms: {k: [mean, mean]}, calibration: means.h5}")
    digest = hashlib.sha256((folder / "means.h5").read_bytes()).hexdigest()
    plan(f"{{transforms: {{k: [mean]}}, calibration: means.h5, calibration_sha256: {digest}}}")
    with pytest.raises(DataError, match="its sha256 differs"):
        plan(f"{{transforms: {{k: [mean]}}, calibration: means.h5, calibration_sha256: {'a' * 64}}}")


def test_damage_is_noticed(folder: Path) -> None:
    path = folder / "means.h5"
    with h5py.File(path, "r+") as file:
        name = "layers/001/keys/mean/mean"
        values = file[name][:]
        values[0, 0] += 1
        file[name][:] = values
    with pytest.raises(DataError, match="sha256 of the array differs"):
        read_calibration(path)


def test_a_description_that_disagrees_with_its_arrays(folder: Path, tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        coder = plan_quantize(dump, read_recipe(folder / "recipe.yaml")).codecs["000", "keys"]
    description, arrays = json.loads(json.dumps(coder.describe())), coder.arrays()
    assert coder_from_description(description, arrays).describe() == description
    (name,) = arrays
    for other in ({}, {name: arrays[name][:, :-1]}, {name: arrays[name] + np.float16(1)}):
        with pytest.raises(DataError, match="is missing or another one"):
            coder_from_description(description, other)
    for key in ("version", "n_heads", "transforms", "inner"):
        broken = {**description, key: None}
        with pytest.raises(DataError):
            coder_from_description(broken, arrays)


def test_verify_knows_calibrations(folder: Path, tiny_pride: Path) -> None:
    result = verify_file(folder / "means.h5")
    assert result["ok"] and result["kind"] == "calibration" and result["checks"]["sha256_compared"] == 8
    with pytest.raises(OptionError, match="verified by itself"):
        verify_file(folder / "means.h5", against=tiny_pride)
    with (
        open_dump(tiny_pride) as dump,
        create_calibration(folder / "odd.h5", dump.metadata, provenance={}, dump_sha256="0" * 64) as writer,
    ):
        writer.write("000", "keys", "mean", {}, {"mean": np.zeros((2, 5), np.float16)})
    with pytest.raises(DataError, match=r"has shape \(2, 5\)") as caught:
        verify_file(folder / "odd.h5")
    assert caught.value.object == "/layers/000/keys/mean"


def test_a_flipped_bit_is_noticed_or_changes_nothing(folder: Path, rng: np.random.Generator) -> None:
    whole = (folder / "means.h5").read_bytes()
    sound, noticed = read_calibration(folder / "means.h5"), 0
    for position in rng.integers(0, len(whole), 80).tolist():
        broken = bytearray(whole)
        broken[position] ^= 1 << int(rng.integers(8))
        (folder / "broken.h5").write_bytes(broken)
        try:
            found = read_calibration(folder / "broken.h5", isolate=True)
        except TurbocodeError as error:
            assert str(error).count("\n") == 0
            noticed += 1
            continue
        assert found.metadata == sound.metadata and found.entries.keys() == sound.entries.keys()
        for key, entry in found.entries.items():
            for name, array in entry.arrays.items():
                np.testing.assert_array_equal(array, sound.entries[key].arrays[name])
    assert noticed > 10
