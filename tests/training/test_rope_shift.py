"""Shifted moments: those of vectors that are turned as transformers turns keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from turbocode.dumps import open_dump
from turbocode.training.error_metric import side_moments
from turbocode.training.rope_shift import average_matrix, average_vector, rotations, shifts, turned

THETA, D = 10_000.0, 16


def at(x: np.ndarray, position: float) -> np.ndarray:
    """x (D,) turned to a position, by complex numbers."""
    pairs = (x[: D // 2] + 1j * x[D // 2 :]) * np.exp(1j * position * THETA ** (-2 * np.arange(D // 2) / D))
    return np.concatenate([pairs.real, pairs.imag])


def test_turning_is_that_of_the_rotary_embedding(rng: np.random.Generator) -> None:
    x = rng.standard_normal(D)
    cosine, sine = rotations(D, THETA, np.array([3.0, 700.5]))
    for row, position in enumerate((3.0, 700.5)):
        np.testing.assert_allclose(turned(x, cosine[row], sine[row]), at(x, position), atol=1e-12)


def test_averages_are_those_over_all_shifts(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, D))
    found = average_matrix(x[:, :, None] * x[:, None, :], THETA, 500)
    for head in range(2):
        there = np.stack([at(x[head], shift) for shift in shifts(500)])
        np.testing.assert_allclose(found[head], there.T @ there / len(there), atol=1e-12)
        np.testing.assert_allclose(average_vector(x, THETA, 500)[head], there.mean(axis=0), atol=1e-12)
    assert shifts(500).min() >= 0 and 490 < shifts(500).max() <= 500


def test_only_keys_are_prepared_for_longer_contexts() -> None:
    with open_dump(Path(__file__).parents[2] / "data" / "tiny-pride.h5") as dump:
        near, far = (side_moments([dump], 0, "keys", "queries", reach=reach) for reach in (0, 8192))
        values = [side_moments([dump], 0, "values", "queries", reach=reach) for reach in (0, 8192)]
    np.testing.assert_array_equal(values[0].covariance, values[1].covariance)
    for before, after in ((near, far),):
        moments = [m.covariance + m.mean[:, :, None] * m.mean[:, None, :] for m in (before, after)]
        np.testing.assert_allclose(*(m.trace(axis1=1, axis2=2) for m in moments))  # turning keeps lengths
        assert np.linalg.eigvalsh(after.covariance).min() > -1e-9
        assert np.abs(before.mean - after.mean).max() > 0.1
