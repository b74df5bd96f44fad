"""Training the multi-rate trellis's codebook: reproducible, better than its start, the shipped one's figures true."""

from __future__ import annotations

import numpy as np
import pytest

from turbocode.codebooks.multirate_codebook import multirate_codebook
from turbocode.training import multirate_codebook as training
from turbocode.training.multirate_codebook import EXPECTED_NMSE, MultirateTrainingSpec, train_multirate, water_filling


def test_the_same_arguments_give_the_same_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_HOLDOUT_SCHEDULES", 32)
    spec = MultirateTrainingSpec(iterations=2, schedules=8, vectors=32)
    seen: list[np.ndarray] = []
    first = train_multirate(spec, command="x", after_iteration=lambda _, nmse: seen.append(nmse))
    assert train_multirate(spec, command="x").dumps() == first.dumps()
    assert len(seen) == 3 and first.provenance["iterations"] == 2
    least = min(float((nmse / EXPECTED_NMSE[1:]).sum()) for nmse in seen)
    assert float((np.array(first.nmse) / EXPECTED_NMSE[1:]).sum()) == pytest.approx(least, rel=1e-4)


def test_the_shipped_rates_without_training_are_the_computed_ones() -> None:
    np.testing.assert_array_equal(multirate_codebook().values[6:], training.initial_tables()[6:])


def test_the_shipped_figures_are_measured() -> None:
    """On other schedules and samples than the training's and its held-out ones."""
    codebook = multirate_codebook()
    rng = np.random.default_rng(77)
    sides = training.schedules(rng, 24, codebook.values)
    batches = [rng.standard_normal((48, len(side.rates))).astype(np.float32) for side in sides]
    found = training._Sums.of(sides, batches, codebook.values).nmse
    assert (np.abs(found / codebook.nmse - 1)[:6] < 0.15).all(), found / codebook.nmse
    assert (found[6:] < 2 * np.array(codebook.nmse[6:])).all()  # few samples, whose tails vary
    worse = training._Sums.of(sides, batches, training.initial_tables()).nmse
    assert (found[4:6] < worse[4:6]).all()


def test_water_filling_spends_what_there_is_where_it_gains_most() -> None:
    rates = water_filling(np.array([1024.0, 64.0, 4.0, 0.01]), 14)
    assert rates.sum() == 14 and (np.diff(rates) <= 0).all() and rates[0] == 7 and rates[3] == 0
