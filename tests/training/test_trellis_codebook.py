"""Trellis training: progress, determinism, resuming, weights, the monotone variant, the shipped tables' recipe."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.shipped_trellises import shipped_specs

from turbocode.codebooks import TrellisCodebook, load_codebook
from turbocode.codecs import make_codec
from turbocode.dumps import open_dump
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.error_autocorrelation import autocorrelation, error_autocorrelation
from turbocode.evaluation.rate_distortion import distance_to_shannon
from turbocode.kernels.trellis import cpu
from turbocode.training.checkpoint import read_checkpoint, write_checkpoint
from turbocode.training.entropy_coded import entropy_coded_nmse
from turbocode.training.trellis_codebook import TrainingState, TrellisTrainingSpec, nmse_of, train_trellis
from turbocode.training.trellis_data import GaussianGroups, dump_groups, normalised

SMALL = TrellisTrainingSpec(2, 5, iterations=12, n_groups=256, restarts=2)
SOURCE = GaussianGroups(64)
PLENTY = 1 << 30


def train(
    spec: TrellisTrainingSpec = SMALL, source: Any = SOURCE, **options: Any
) -> tuple[TrellisCodebook, TrainingState]:
    return train_trellis(source, spec, viterbi=cpu.viterbi, **options)


def test_training_lowers_the_held_out_error() -> None:
    codebook, state = train()
    first = state.history[0]["nmse_holdout"]
    assert codebook.nmse == state.best_nmse == min(entry["nmse_holdout"] for entry in state.history)
    assert codebook.nmse < 0.93 * first
    assert codebook.nmse == pytest.approx(nmse_of(codebook.values, SOURCE.holdout(), SMALL.trellis, cpu.viterbi))
    assert {entry["restart"] for entry in state.history} == {0, 1}
    # 32 states, tail-biting, few groups: with many, 16 states reach .0933 and 64 reach .0817.
    assert 0.0817 < codebook.nmse < 0.0975


def test_the_same_spec_gives_the_same_bytes() -> None:
    assert train()[0].dumps() == train()[0].dumps()
    other = TrellisTrainingSpec(2, 5, iterations=12, n_groups=256, restarts=2, seed=2)
    assert (train(other)[0].values != train()[0].values).any()


@pytest.mark.parametrize("stop_after", [1, 7, 12, 13, 24])
def test_a_training_resumed_anywhere_ends_in_the_same_bytes(stop_after: int, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    path = tmp_path / "checkpoint.json"

    def keep(state: TrainingState) -> None:
        write_checkpoint(path, state, SMALL, SOURCE)
        if len(state.history) == stop_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(after_iteration=keep)
    resumed, state = train(state=read_checkpoint(path, SMALL, SOURCE))
    whole, whole_state = train()
    assert resumed.dumps() == whole.dumps()
    assert state.history == whole_state.history


def test_checkpoints_of_other_trainings_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    write_checkpoint(path, TrainingState(), SMALL, SOURCE)
    assert read_checkpoint(path, SMALL, SOURCE) == TrainingState()
    with pytest.raises(OptionError, match="another training"):
        read_checkpoint(path, TrellisTrainingSpec(2, 5), SOURCE)
    with pytest.raises(OptionError, match="another training"):
        read_checkpoint(path, SMALL, GaussianGroups(128))
    good = json.loads(path.read_text())
    for change in ({"format": "x"}, {"format_version": 9}, {"state": None}, {"state": {"restart": "a"}}):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(DataError):
            read_checkpoint(path, SMALL, SOURCE)
    short = copy.deepcopy(good)
    short["state"]["values"] = [0.0]
    path.write_text(json.dumps(short))
    with pytest.raises(DataError, match=r"2\*\*5 states"):
        read_checkpoint(path, SMALL, SOURCE)
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_checkpoint(path, SMALL, SOURCE)


def test_states_that_stand_for_nothing_are_seeded_again() -> None:
    """Few groups leave many of 512 states without a sample; none of them may stay where it was."""
    spec = TrellisTrainingSpec(1, 9, iterations=1, n_groups=1)
    _, state = train(spec, GaussianGroups(64))
    assert state.history[0]["empty_states"] > 400
    assert len(set(state.best or [])) > 400


def test_monotone_values_increase_with_the_oldest_bits() -> None:
    spec = TrellisTrainingSpec(3, 6, iterations=6, n_groups=256, is_monotone=True)
    codebook, _ = train(spec)
    assert (np.diff(codebook.values.reshape(-1, 8), axis=1) >= 0).all()
    assert "--monotone" in codebook.provenance["command"]


def test_patience_ends_a_start() -> None:
    spec = TrellisTrainingSpec(1, 4, iterations=400, patience=3, n_groups=64)
    _, state = train(spec)
    assert len(state.history) < 200


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits": 5},
        {"bits": 0},
        {"states_log2": 4},
        {"states_log2": 13},
        {"ends": "both"},
        {"seed": -1},
        {"restarts": 0},
    ],
)
def test_impossible_trainings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        TrellisTrainingSpec(**{"bits": 2, "states_log2": 8, **arguments})


def test_groups_of_a_dump(tiny_pride: Path) -> None:
    with open_dump(tiny_pride) as dump:
        options: dict[str, Any] = {"layers": (1, 3), "rotation": "signed", "max_memory": PLENTY}
        groups = dump_groups(dump, sides=("keys",), weights="queries", **options)
        values = dump_groups(dump, sides=("values",), weights="none", **options)
        few = dump_groups(dump, sides=("values",), weights="none", **{**options, "max_memory": 1 << 20})
    u, weights = groups.training
    assert weights is not None and weights.shape == u.shape and (weights > 0).all()
    assert weights.mean() == pytest.approx(1, rel=0.05)
    np.testing.assert_allclose(np.square(u).sum(axis=1), 128, rtol=1e-5)
    assert values.training[1] is None and values.facts["sides"] == ["values"]
    assert few.facts["token_stride"] > 1 and len(few.training[0]) < len(values.training[0])
    spec = TrellisTrainingSpec(2, 6, iterations=10)
    codebook, _ = train(spec, groups)
    assert codebook.nmse < 0.095
    assert codebook.provenance["command"].startswith("turbocode train-codebook DUMP --side k --weights queries")
    with open_dump(tiny_pride) as dump:
        with pytest.raises(OptionError, match="only --side k"):
            dump_groups(dump, sides=("values",), weights="queries", **options)
        with pytest.raises(OptionError, match="layer 9 is not in the dump"):
            dump_groups(dump, sides=("keys",), weights="none", **{**options, "layers": (9,)})


def test_batches_and_held_out_groups_are_different_and_repeatable() -> None:
    first, again = SOURCE.batch(1, 0, 0, 50)[0], SOURCE.batch(1, 0, 0, 50)[0]
    np.testing.assert_array_equal(first, again)
    for other in (SOURCE.batch(1, 0, 1, 50)[0], SOURCE.batch(1, 1, 0, 50)[0], SOURCE.batch(2, 0, 0, 50)[0]):
        assert (first != other).all()
    assert (SOURCE.holdout()[0][:50] != first).all()
    assert normalised(np.array([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(np.array([[0.6, 0.8]]) * np.sqrt(2))


def test_shipped_tables_come_from_the_recorded_command() -> None:
    for name, spec in shipped_specs().items():
        assert load_codebook(name).provenance["command"] == spec.command(GaussianGroups())


@pytest.mark.slow
@pytest.mark.skipif("TURBOCODE_SLOW_TESTS" not in os.environ, reason="two minutes; set TURBOCODE_SLOW_TESTS to run it")
def test_a_shipped_table_is_reproduced() -> None:
    """Trained on a GPU, reproduced on a CPU."""
    spec = shipped_specs()["tcq1-8"]
    shipped = load_codebook("tcq1-8")
    assert isinstance(shipped, TrellisCodebook)
    codebook, _ = train(spec, GaussianGroups())
    np.testing.assert_array_equal(codebook.values, shipped.values)
    assert codebook.nmse == pytest.approx(shipped.nmse, abs=1e-8)


def test_entropy_coded_scalar_quantization_is_known() -> None:
    """The figures of the literature: 1.53 dB above Shannon at high rate, .3483 at one bit."""
    assert [entropy_coded_nmse(rate) for rate in (1, 2, 3, 4)] == pytest.approx(
        [0.3483, 0.0889, 0.02224, 0.00556], rel=1e-3
    )
    assert 10 * np.log10(entropy_coded_nmse(7) * 4.0**7) == pytest.approx(1.533, abs=0.002)


def test_distances_to_shannon_fall_with_states() -> None:
    rows = distance_to_shannon(load_codebook("trellis2-8"))
    by_family = {family: [row for row in rows if row["family"] == family] for family in {row["family"] for row in rows}}
    for bits in (1, 2, 3, 4):
        gaps = [row["shannon_gap_db"] for row in rows if row["bits"] == bits and row["family"].startswith("trellis")]
        assert gaps == sorted(gaps, reverse=True)
        assert gaps[0] < next(row["shannon_gap_db"] for row in by_family["entropy-coded scalar"] if row["bits"] == bits)
    assert [row["nmse"] for row in by_family["this codebook"]] == [load_codebook("trellis2-8").nmse]


@pytest.mark.parametrize("name", ["turbo2_tcq", "trellis3"])
def test_the_error_of_a_trellis_is_white(name: str, rng: np.random.Generator) -> None:
    r = error_autocorrelation(make_codec(name, 128), rng.standard_normal((4096, 128)), 8)
    assert r[0] == 1 and np.abs(r[1:]).max() < 0.012  # 3.5 standard errors of 4,096 groups are 0.005


def test_autocorrelation_of_known_errors(rng: np.random.Generator) -> None:
    wave = np.cos(2 * np.pi * np.arange(32) / 8)[None]
    np.testing.assert_allclose(autocorrelation(wave, 8, is_ring=True)[[0, 2, 4, 8]], [1, 0, -1, 1], atol=1e-12)
    drift = np.cumsum(rng.standard_normal((200, 64)), axis=1)
    assert autocorrelation(drift, 1, is_ring=False)[1] > 0.9
    assert not autocorrelation(np.zeros((3, 8)), 4, is_ring=False)[1:].any()
    with pytest.raises(OptionError, match="1 to 7"):
        autocorrelation(np.ones((3, 8)), 8, is_ring=False)
