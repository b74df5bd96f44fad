"""Metrics and bases: what an error costs does not depend on the basis in which it is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from turbocode.dumps import SynthesisSpec, open_dump, synthesize
from turbocode.errors import OptionError
from turbocode.training.error_metric import RIDGE, SideMoments, metric_kind, side_moments, with_ridge
from turbocode.training.spectrum import SHRINKAGE, spectrum_of

SHIPPED = Path(__file__).parents[2] / "data" / "tiny-pride.h5"


def test_errors_in_the_basis_cost_what_they_cost_outside() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 2, 16, 16))
    covariance, metric = a @ a.transpose(0, 2, 1), with_ridge(b @ b.transpose(0, 2, 1))
    mean = rng.standard_normal((2, 16))
    found = spectrum_of(SideMoments("000", "keys", 100, mean, covariance, metric, "fisher"))
    error = rng.standard_normal((2, 16))
    for head in range(2):
        coded = found.basis[head] @ error[head]
        assert coded @ coded == pytest.approx(error[head] @ metric[head] @ error[head])
        turned = found.basis[head] @ covariance[head] @ found.basis[head].T
        assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-9 * turned.max()
        shrunk = (1 - SHRINKAGE) * np.diag(turned) + SHRINKAGE * np.diag(turned).mean()
        np.testing.assert_allclose(found.variance[head], shrunk, rtol=1e-6)
    assert (np.diff(found.variance, axis=1) <= 0).all()
    assert found.run_costs(8).sum() == pytest.approx(found.variance.sum() / 2)


def test_moments_of_two_dumps_are_those_of_all_tokens() -> None:
    with open_dump(SHIPPED) as dump:
        kind = metric_kind([dump, dump])
        assert kind == "queries"
        once, twice = (side_moments([dump] * n, 1, "keys", kind) for n in (1, 2))
        assert twice.n_tokens == 2 * once.n_tokens == 2048
        np.testing.assert_allclose(twice.covariance, once.covariance)
        np.testing.assert_allclose(twice.metric, once.metric)
        queries = np.concatenate([dump.layers[1].read("queries", 0, head) for head in (2, 3)]).astype(np.float64)
        moment = dump.metadata.attention_scale**2 * queries.T @ queries / len(queries)
        expected = moment + RIDGE * np.trace(moment) / 128 * np.eye(128)
        np.testing.assert_allclose(once.metric[1], expected, rtol=1e-9, atol=1e-12)
        values = side_moments([dump], 1, "values", kind)
        spread = values.covariance.trace(axis1=1, axis2=2)
        np.testing.assert_allclose(values.metric[:, 3, 3] * spread, 2 * (1 + RIDGE))


def test_dumps_that_say_too_little(tmp_path: Path) -> None:
    synthesize(tmp_path / "mute.h5", SynthesisSpec(n_layers=4, n_kv_heads=2, n_query_heads=4, n_rows=0))
    with open_dump(tmp_path / "mute.h5") as mute, open_dump(SHIPPED) as dump:
        with pytest.raises(OptionError, match="neither Fisher information nor queries"):
            metric_kind([mute])
        with pytest.raises(OptionError, match="has no Fisher information"):
            metric_kind([dump], "fisher")
        with pytest.raises(OptionError, match="dumps that are calibrated on together are of one model"):
            metric_kind([dump, mute])
