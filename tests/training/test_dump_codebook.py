"""Codebooks trained on dumps: independence from slabs, scopes, weights, held-out error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.compare import assert_within

from turbocode.codebooks import Codebook, load_codebook
from turbocode.dumps import create_dump, open_dump
from turbocode.dumps.metadata import DumpMetadata
from turbocode.dumps.synthesize import SynthesisSpec, synthesize
from turbocode.errors import DataError, OptionError
from turbocode.kernels.fwht import reference, rotation_for
from turbocode.policies import Recipe
from turbocode.training.dump_codebook import TrainingSpec, codebook_set, train_from_dump
from turbocode.training.histogram import MAX_WEIGHT, N_BINS, WEIGHT_UNIT, CoordinateHistogram

PLENTY = 1 << 30


def test_a_histogram_does_not_depend_on_chunks_or_order(rng: np.random.Generator) -> None:
    x, weights = rng.standard_normal((300, 128)).astype(np.float32), rng.uniform(0, 50, (300, 1))
    whole, parts = CoordinateHistogram(128), CoordinateHistogram(128)
    whole.add(x, weights)
    order = rng.permutation(300)
    for chunk in np.array_split(order, 7):
        part = CoordinateHistogram(128)
        part.add(x[chunk], weights[chunk])
        parts.merge(part)
    np.testing.assert_array_equal(whole.counts, parts.counts)
    np.testing.assert_array_equal(whole.weights, parts.weights)
    assert whole.counts.sum() == x.size


def test_extremes_zeros_and_weights(rng: np.random.Generator) -> None:
    histogram = CoordinateHistogram(64)
    one_hot = np.zeros((2, 64), np.float32)
    one_hot[0, 3] = -7.0
    histogram.add(one_hot, np.full((2, 1), 0.5))
    assert histogram.zero_groups == 1
    assert histogram.counts[0] == 1
    assert histogram.counts.sum() == 64
    assert histogram.weights.sum() * WEIGHT_UNIT == 32
    assert histogram.counts.size == N_BINS
    assert_within(np.abs(histogram.centres).max(), 8.0, 2e-4)
    for bad in (-1.0, 2 * MAX_WEIGHT, np.nan):
        with pytest.raises(OptionError):
            histogram.add(np.ones((1, 64), np.float32), np.full((1, 1), bad))


def test_groups_that_overflowed_are_refused() -> None:
    for bad in (np.inf, np.nan):
        with pytest.raises(DataError, match="not finite"):
            CoordinateHistogram(64).add(np.full((1, 64), bad, np.float32))


def test_too_few_values_are_refused() -> None:
    histogram = CoordinateHistogram(64)
    histogram.add(np.ones((4, 64), np.float32))
    with pytest.raises(DataError, match="1 distinct values do not make 4"):
        histogram.optimal_centroids(2)


def direct_values(dump: Any, side: str, layer: int, head: int) -> np.ndarray:
    vectors = dump.layers[layer].read(side, 0, head).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return reference.rotate(unit, rotation_for(128)) * np.sqrt(128)


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_the_optimum_beats_every_other_codebook(bits: int, tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        (trained,) = train_from_dump(dump, TrainingSpec(bits, sides=("keys",), layers=(1,)), max_memory=PLENTY)
        values = np.concatenate([direct_values(dump, "keys", 1, head)[:820] for head in range(2)]).ravel()

    def nmse(codebook: Codebook) -> float:
        decoded = codebook.centroids[np.searchsorted(codebook.boundaries, values, side="right")]
        return float(np.square(values - decoded).sum() / np.square(values).sum())

    assert trained.codebook.nmse == pytest.approx(nmse(trained.codebook), rel=1e-3)
    assert nmse(trained.codebook) <= nmse(load_codebook(f"sphere128-{bits}"))
    nudged = Codebook("nudged", trained.codebook.centroids * 1.03, 0.5)
    assert nmse(trained.codebook) < nmse(nudged)


@pytest.mark.parametrize("weights", ["none", "norm", "queries"])
def test_slabs_do_not_change_a_bit(weights: str, tiny_pride: Path) -> None:
    spec = TrainingSpec(3, sides=("keys",), weights=weights)
    results = []
    for max_memory in (PLENTY, 1 << 20, 100_000):
        with open_dump(tiny_pride) as dump:
            (trained,) = train_from_dump(dump, spec, max_memory=max_memory)
        results.append(trained.codebook.dumps())
    assert len(set(results)) == 1
    facts = json.loads(results[0])["provenance"]
    assert facts["weights"] == weights
    assert len(facts["training_data_sha256"]) == 64
    assert facts["n_values"] == 820 * 8 * 128
    assert facts["n_values_holdout"] == 204 * 8 * 128


@pytest.mark.parametrize(("per", "count"), [("pooled", 1), ("side", 2), ("layer", 8), ("head", 16)])
def test_scopes(per: str, count: int, tiny_pride: Path, tmp_path: Path) -> None:
    with open_dump(tiny_pride) as dump:
        trained = train_from_dump(dump, TrainingSpec(2, per=per), max_memory=PLENTY)
        assert len(trained) == count
        assert len({entry.codebook.name for entry in trained}) == count
        path = tmp_path / "set.json"
        path.write_text(json.dumps(codebook_set(trained).to_json()))
        from turbocode.conversion import plan_quantize

        plan = plan_quantize(dump, Recipe(k=f"turbo2:codebook={path}", v="turbo2"))
    names = {codebook.name for codebook in plan.codecs["002", "keys"].codebooks}
    expected = {
        "pooled": {"trained-2"},
        "side": {"trained-keys-2"},
        "layer": {"trained-002-keys-2"},
        "head": {"trained-002-keys-head0-2", "trained-002-keys-head1-2"},
    }
    assert names == expected[per]


def test_a_codebook_per_head_lowers_the_error_of_coding(tiny_pride: Path, tmp_path: Path) -> None:
    from turbocode.conversion import quantize_dump

    path = tmp_path / "set.json"
    with open_dump(tiny_pride) as dump:
        trained = train_from_dump(dump, TrainingSpec(2, per="head", weights="norm"), max_memory=PLENTY)
        path.write_text(json.dumps(codebook_set(trained).to_json()))
        errors = []
        for spec in ("turbo2:norm=mse", f"turbo2:norm=mse,codebook={path}"):
            result = quantize_dump(dump, tmp_path / "q.h5", Recipe(k=spec, v=spec), max_memory=PLENTY, force=True)
            errors.append(np.mean([row["nmse"] for row in result["layers"]]))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": 3, "per": "token"},
        {"bits": 3, "weights": "mass"},
        {"bits": 3, "sides": ()},
        {"bits": 3, "sides": ("k",)},
        {"bits": 3, "layers": ()},
        {"bits": 3, "layers": (-1,)},
        {"bits": 3, "weights": "queries"},
    ],
)
def test_specs_that_mean_nothing_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        TrainingSpec(**arguments)


def test_layers_and_queries_have_to_exist(tiny_pride: Path, tmp_path: Path) -> None:
    with open_dump(tiny_pride) as dump, pytest.raises(OptionError, match="layers 0 to 3"):
        train_from_dump(dump, TrainingSpec(3, layers=(7,)), max_memory=PLENTY)
    path = tmp_path / "bare.h5"
    synthesize(
        path, SynthesisSpec(n_layers=1, n_seqs=1, n_tokens=40, n_query_heads=2, n_kv_heads=1, head_dim=64, n_rows=0)
    )
    with open_dump(path) as dump, pytest.raises(DataError, match="has none"):
        train_from_dump(dump, TrainingSpec(3, sides=("keys",), weights="queries"), max_memory=PLENTY)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**-6, 1.0, 2.0**10])
def test_the_scale_of_the_data_does_not_matter(factor: float, tmp_path: Path, rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((400, 64)) * np.exp(rng.standard_normal((400, 1)))
    metadata = DumpMetadata(
        logical_dtype="float32",
        n_layers=1,
        n_query_heads=1,
        n_kv_heads=1,
        head_dim=64,
        attention_scale=0.125,
        rope_theta=0.0,
    )
    results = []
    for name, scale in (("plain", 1.0), ("scaled", factor)):
        path = tmp_path / f"{name}.h5"
        with create_dump(path, metadata) as writer:
            layer = writer.add_layer("000", layer_index=0, n_seqs=1, n_tokens=400)
            for side in ("keys", "values"):
                layer.write(side, 0, 0, 0, (vectors * scale).astype(np.float32))
        with open_dump(path) as dump:
            results.append(train_from_dump(dump, TrainingSpec(3, weights="norm"), max_memory=PLENTY)[0].codebook)
    np.testing.assert_array_equal(results[0].centroids, results[1].centroids)


def test_nothing_held_out_is_no_score(tmp_path: Path) -> None:
    path = tmp_path / "short.h5"
    synthesize(
        path, SynthesisSpec(n_layers=1, n_seqs=1, n_tokens=4, n_query_heads=1, n_kv_heads=1, head_dim=64, n_rows=0)
    )
    with open_dump(path) as dump:
        (trained,) = train_from_dump(dump, TrainingSpec(1), max_memory=PLENTY)
    assert trained.holdout_nmse() is None
    assert trained.codebook.provenance["nmse_holdout"] is None


def test_provenance_tells_codebooks_apart(tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        for letter, sides in (("k", ("keys",)), ("v", ("values",)), ("kv", ("keys", "values"))):
            (trained,) = train_from_dump(dump, TrainingSpec(2, sides=sides, layers=(0, 2)), max_memory=PLENTY)
            facts = trained.codebook.provenance
            assert facts["sides"] == list(sides)
            assert f"--side {letter} " in facts["command"]
            assert facts["command"].endswith("--layers 0,2")
            assert trained.codebook.name == ("trained-2" if letter == "kv" else f"trained-{sides[0]}-2")
