"""The figures of inspect against float64 definitions, on dumps whose statistics are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.dumps import DumpMetadata, SynthesisSpec, create_dump, create_quantized, open_dump, synthesize
from turbocode.dumps.calibration import read_calibration
from turbocode.dumps.hdf5 import h5py
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.inspection import MAX_STRETCH_TOKENS, inspect_file, sample_stretches
from turbocode.evaluation.vector_statistics import VectorStatistics
from turbocode.kernels.fwht import reference, rotation_for


def dump_of(path: Path, keys: np.ndarray, dtype: str = "float32") -> Path:
    """A one-layer dump of `keys` (n_seqs, n_kv_heads, n_tokens, head_dim), values the same, no queries."""
    n_seqs, n_heads, n_tokens, head_dim = keys.shape
    with create_dump(path, DumpMetadata(dtype, 1, n_heads, n_heads, head_dim, head_dim**-0.5, 0.0)) as writer:
        layer = writer.add_layer("000", layer_index=0, n_seqs=n_seqs, n_tokens=n_tokens, n_rows=0)
        for kind in ("keys", "values"):
            for seq, head in np.ndindex(n_seqs, n_heads):
                layer.write(kind, seq, head, 0, keys[seq, head])
    return path


def kurtosis(values: np.ndarray) -> float:
    centred = values - values.mean()
    return float((centred**4).mean() / (centred**2).mean() ** 2)


@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_figures_are_those_of_their_definitions(head_dim: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    keys = rng.standard_normal((2, 3, 65, head_dim)).astype(np.float32)
    keys += 0.7 * rng.standard_normal((1, 3, 1, head_dim)).astype(np.float32)
    keys[:, 1, :, 5] *= 20
    found = inspect_file(dump_of(tmp_path / "d.h5", keys), sample_tokens=1000)["layers"][0]["keys"]
    exact = keys.astype(np.float64)
    norms = np.linalg.norm(exact, axis=-1)
    assert found["norm"] == pytest.approx({"min": norms.min(), "median": np.median(norms), "max": norms.max()})
    by_head = exact.transpose(1, 0, 2, 3).reshape(3, -1, head_dim)
    shares = (by_head.mean(1) ** 2).sum(-1) / (by_head**2).sum(-1).mean(1)
    assert found["constant_share"] == pytest.approx(shares.mean())
    rms = np.sqrt((by_head**2).mean(1))
    ratios = rms / np.median(rms, axis=1, keepdims=True)
    assert found["outliers"]["channels"] == (ratios > 3).sum()
    assert (found["outliers"]["head"], found["outliers"]["channel"]) == (1, 5)
    assert found["outliers"]["largest_ratio"] == pytest.approx(ratios.max())
    group = min(head_dim, 128)
    groups = exact.reshape(-1, group)
    groups /= np.sqrt((groups**2).mean(-1, keepdims=True))
    assert found["kurtosis"]["plain"] == pytest.approx(kurtosis(groups), rel=1e-4)
    assert found["kurtosis"]["rotated"] == pytest.approx(
        kurtosis(reference.rotate(groups, rotation_for(group))), rel=1e-4
    )


def test_a_gaussian_dump_has_no_features(tmp_path: Path) -> None:
    synthesize(tmp_path / "d.h5", SynthesisSpec(n_layers=1, n_tokens=2048))
    found = inspect_file(tmp_path / "d.h5", sample_tokens=2048)["layers"][0]["keys"]
    assert found["constant_share"] < 0.002 and found["outliers"]["channels"] == 0
    # Values divided by the RMS of their own group of g have kurtosis 3 g / (g + 2), not 3.
    assert found["kurtosis"]["plain"] == pytest.approx(3 * 128 / 130, abs=0.03)
    assert found["kurtosis"]["rotated"] == pytest.approx(3 * 128 / 130, abs=0.03)


def test_features_are_found(tmp_path: Path) -> None:
    synthesize(tmp_path / "d.h5", SynthesisSpec(n_layers=1, n_tokens=2048, constant_share=0.4, outlier_channels=3))
    layer = inspect_file(tmp_path / "d.h5", sample_tokens=2048)["layers"][0]
    assert layer["keys"]["constant_share"] == pytest.approx(0.4, abs=0.15)
    assert layer["keys"]["outliers"]["channels"] == 2 * 3
    assert layer["keys"]["kurtosis"]["plain"] > 10 > 4 > layer["keys"]["kurtosis"]["rotated"]
    assert layer["values"]["outliers"]["channels"] == 0


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_magnitude_changes_only_the_norms(scale: float) -> None:
    vectors = np.random.default_rng(5).standard_normal((50, 128))
    plain, scaled = VectorStatistics(), VectorStatistics()
    plain.add_head(vectors.astype(np.float32))
    scaled.add_head((vectors * scale).astype(np.float32))
    a, b = plain.to_json(), scaled.to_json()
    assert b["norm"]["max"] == pytest.approx(a["norm"]["max"] * scale, rel=1e-5)
    for name in ("constant_share", "outliers"):
        assert b[name] == pytest.approx(a[name], rel=1e-4)
    assert b["kurtosis"] == pytest.approx(a["kurtosis"], rel=1e-4)


def test_zero_vectors_and_odd_head_dims_give_figures_or_none() -> None:
    statistics = VectorStatistics()
    statistics.add_head(np.zeros((3, 128), np.float16))
    found = statistics.to_json()
    assert found["norm"]["max"] == 0 and found["kurtosis"] == {"plain": None, "rotated": None}
    json.dumps(found, allow_nan=False)
    statistics = VectorStatistics()
    statistics.add_head(np.random.default_rng(0).standard_normal((9, 7)).astype(np.float16))
    assert statistics.to_json()["kurtosis"]["rotated"] is None
    assert statistics.to_json()["kurtosis"]["plain"] is not None


@pytest.mark.parametrize("n_seqs", [1, 2, 7, 5000])
@pytest.mark.parametrize("n_tokens", [1, 63, 2048, 131073])
@pytest.mark.parametrize("chunk_tokens", [1, 64, 2048, 131073])
@pytest.mark.parametrize("sample_tokens", [1, 9, 512, 4096])
def test_samples_stay_inside_and_within_the_limit(
    n_seqs: int, n_tokens: int, chunk_tokens: int, sample_tokens: int
) -> None:
    chunk_tokens = min(chunk_tokens, n_tokens)
    stretches = sample_stretches(n_seqs, n_tokens, chunk_tokens, sample_tokens)
    assert 0 < sum(stretch.n_tokens for stretch in stretches) <= sample_tokens
    assert stretches[0][:2] == (0, 0)
    taken = [(s.seq, token) for s in stretches for token in range(s.start, s.stop, s.step)]
    assert len(set(taken)) == len(taken) == sum(stretch.n_tokens for stretch in stretches)
    for seq, start, stop, step in stretches:
        assert 0 <= seq < n_seqs and 0 <= start < stop <= n_tokens and step >= 1
        assert stop - start <= MAX_STRETCH_TOKENS


def test_everything_is_read_where_the_limit_allows() -> None:
    stretches = sample_stretches(2, 100, 64, 200)
    assert stretches == [(0, 0, 64, 1), (0, 64, 100, 1), (1, 0, 64, 1), (1, 64, 100, 1)]


def test_the_sample_is_stated(tmp_path: Path) -> None:
    synthesize(tmp_path / "d.h5", SynthesisSpec(n_layers=2, n_seqs=2, n_tokens=600))
    found = inspect_file(tmp_path / "d.h5", sample_tokens=100)
    assert found["sample"]["tokens_total"] == 2 * 2 * 600
    assert 100 <= found["sample"]["tokens_read"] <= 200
    with pytest.raises(OptionError, match="1 and more"):
        inspect_file(tmp_path / "d.h5", sample_tokens=0)


def test_progress_counts_sides(tmp_path: Path) -> None:
    synthesize(tmp_path / "d.h5", SynthesisSpec(n_layers=3, n_tokens=8))
    steps: list[int] = []
    inspect_file(tmp_path / "d.h5", advance=steps.append)
    assert steps == [1] * 6


def test_values_that_are_not_finite_are_an_error_unless_they_are_to_be_zero(tmp_path: Path) -> None:
    path = dump_of(tmp_path / "d.h5", np.ones((1, 1, 4, 128), np.float32))
    with h5py.File(path, "r+") as file:
        file["layers/000/keys"][0, 0, 2, 7] = np.inf
    with pytest.raises(DataError, match="not finite") as caught:
        inspect_file(path)
    assert caught.value.object == "/layers/000/keys"
    assert inspect_file(path, nonfinite="zero")["sample"]["nonfinite"] == 1


def test_a_quantized_file_is_described(tmp_path: Path) -> None:
    about = DumpMetadata("float16", 1, 2, 2, 128, 0.1, 0.0)
    side: dict[str, Any] = {"codec": {"codec": "turbo3", "norm_mode": "l2"}, "bytes_per_vector": 50}
    with create_quantized(tmp_path / "q.h5", about, recipe={"k": 1}, provenance={}, dump_sha256="ab" * 32) as writer:
        layer = writer.add_layer("000", layer_index=4, n_seqs=1, n_tokens=3, window=0)
        for name in ("keys", "values"):
            out = layer.add_side(name, **side)
            for head in range(2):
                out.write(0, head, 0, np.zeros((3, 50), np.uint8))
            out.finish({"nmse": 0.03})
    found = inspect_file(tmp_path / "q.h5")
    assert found["kind"] == "quantized" and found["recipe"] == {"k": 1}
    keys = found["layers"][0]["keys"]
    assert keys["bits_per_value"] == 3.125 and keys["compression"] == 16 / 3.125 and keys["bytes"] == 2 * 3 * 50
    assert keys["codec"] == {"codec": "turbo3", "rotation": None, "norm_mode": "l2"} and keys["report"] == {
        "nmse": 0.03
    }
    assert found["bytes"]["original"] == 2 * 2 * 3 * 128 * 2
    assert found["bytes"]["compression"] == pytest.approx(5.12)


def test_a_calibration_file_is_described() -> None:
    path = "data/lm-tiny-multirate.h5"
    found, held = inspect_file(path), read_calibration(path)
    assert found["kind"] == "calibration" and found["dump_sha256"] == held.dump_sha256
    rows = {(row["layer"], side): row[side] for row in found["layers"] for side in ("keys", "values")}
    assert set(rows) == {key[:2] for key in held.entries}
    (entry,) = rows["001", "values"]
    arrays = held.entry("001", "values", "multirate").arrays
    assert entry["name"] == "multirate" and entry["bytes"] == sum(array.nbytes for array in arrays.values())
    assert entry["arrays"]["mean"] == {"dtype": "float32", "shape": list(arrays["mean"].shape)}


def test_the_shipped_dump() -> None:
    with open_dump("data/tiny-pride.h5") as dump:
        vectors = np.concatenate([dump.layers[0].read("keys", 0, head) for head in range(2)]).astype(np.float64)
    found = inspect_file("data/tiny-pride.h5")
    assert found["layers"][0]["keys"]["norm"]["max"] == pytest.approx(np.linalg.norm(vectors, axis=1).max())
    assert found["sample"]["tokens_read"] == found["sample"]["tokens_total"]
