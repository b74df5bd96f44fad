"""What each transform does, on vectors made for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from turbocode.codecs import make_codec
from turbocode.errors import DataError, OptionError
from turbocode.transforms import TOKEN_TRANSFORMS, TRANSFORM_NAMES, TRANSFORMS, SideStatistics, parse_transform
from turbocode.transforms.walsh import walsh_matrix

J, D, N = 2, 64, 1500
AFFINE = [name for name in TRANSFORM_NAMES if name not in ("gain", "aqua", *TOKEN_TRANSFORMS)]


def statistics_of(x: Any, queries: Any = None) -> SideStatistics:
    """Statistics of vectors (J, N, D) and, if given, queries (J, M, D)."""
    mean = x.mean(axis=1)
    moment = (
        np.tile(np.eye(D), (J, 1, 1)) if queries is None else queries.transpose(0, 2, 1) @ queries / len(queries[0])
    )
    return SideStatistics(
        "000",
        "values" if queries is None else "keys",
        x.shape[1],
        10_000.0,
        mean,
        np.stack([np.cov(v.T, bias=True) for v in x]),
        np.abs(x).max(axis=1),
        moment,
        queries is not None,
        x.astype(np.float32),
    )


@pytest.fixture
def keys(rng: np.random.Generator) -> Any:
    """Keys of unequal channels, correlated with one another, and queries that look elsewhere."""
    mixing = rng.standard_normal((J, D, D)) * np.geomspace(3, 0.1, D)
    x = rng.standard_normal((J, N, D)) @ mixing.transpose(0, 2, 1)
    q = rng.standard_normal((J, N, D)) * rng.permutation(np.geomspace(4, 0.1, D))
    return x, q


def logit_error(name: str, x: Any, q: Any) -> float:
    """Mean squared error of logits when turbo3 codes the vectors that the transform gives it."""
    fitted = TRANSFORMS[name]().fit(statistics_of(x, q))
    change, codec = TRANSFORMS[name].head_map(fitted.arrays, J, D), make_codec("turbo3", D)
    total = 0.0
    for head in range(J):
        error = change.restore(codec.decode(codec.encode(change.code(x[head], head))[0]), head) - x[head]
        total += float(np.square(q[head] @ error.T).mean())
    return total


def plain_logit_error(x: Any, q: Any) -> float:
    codec = make_codec("turbo3", D)
    return float(sum(np.square(q[h] @ (codec.decode(codec.encode(x[h])[0]) - x[h]).T).mean() for h in range(J)))


def test_balancing_gains_what_it_predicts(keys: Any) -> None:
    x, q = keys
    plain, errors = plain_logit_error(x, q), {}
    for name in ("balance", "balance_diagonal"):
        errors[name] = logit_error(name, x, q)
        gain = TRANSFORMS[name](shrink=1e-6).fit(statistics_of(x, q)).about["predicted_gain"]  # type: ignore[call-arg]
        assert gain > 1.3
        assert plain / errors[name] == pytest.approx(gain, rel=0.35), name
    assert errors["balance"] < errors["balance_diagonal"] < plain
    assert logit_error("squat", x, q) < plain


def test_pairs_share_a_scale(keys: Any) -> None:
    scale = TRANSFORMS["balance_pairs"]().fit(statistics_of(*keys)).arrays["scale"]
    np.testing.assert_array_equal(scale[:, : D // 2], scale[:, D // 2 :])
    assert len(np.unique(scale)) > D // 4


def test_innerq_leaves_heads_alone_that_need_nothing(rng: np.random.Generator) -> None:
    x = rng.standard_normal((J, N, D))
    x[1, :, 5] *= 9
    fitted = TRANSFORMS["innerq"]().fit(statistics_of(x))
    assert fitted.about["heads_equalised"] == 1 and fitted.about["largest_ratio"] > 6
    scale = fitted.arrays["scale"].astype(float)
    assert (scale[0] == 1).all() and scale[1, 5] == scale[1].min() == pytest.approx(0.65, abs=0.05)
    strong = parse_transform("innerq:strength=1").fit(statistics_of(x)).arrays["scale"]
    assert strong[1, 5] == 0.5  # the cut
    peak = parse_transform("innerq:is_peak=1").fit(statistics_of(x)).arrays["scale"].astype(float)
    assert peak[1, 5] < 0.6 and (peak[0] == 1).all()


def test_klt_decorrelates_and_sorts(keys: Any) -> None:
    found = statistics_of(keys[0])
    fitted = TRANSFORMS["klt"]().fit(found)
    change = TRANSFORMS["klt"].head_map(fitted.arrays, J, D)
    covariance = found.mapped(change).covariance
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    off = covariance - variance[:, :, None] * np.eye(D)
    assert np.abs(off).max() < 1e-2 * variance.max()
    assert (np.diff(variance[:, : D // 2], axis=1) < 0).all()
    assert fitted.about["coding_gain_db"] > 3


def test_walsh_counts_sign_changes_and_groups() -> None:
    w = walsh_matrix(8)
    assert (np.diff(np.sign(w), axis=1) != 0).sum(axis=1).tolist() == list(range(8))
    np.testing.assert_allclose(w @ w.T, np.eye(8), atol=1e-12)
    found = statistics_of(np.random.default_rng(0).standard_normal((J, N, D)))
    fitted = parse_transform("walsh:group=16").fit(found)
    y = TRANSFORMS["walsh"].head_map(fitted.arrays, J, D).code(np.eye(D)[:1], 0)[0]
    assert np.count_nonzero(y) == 16
    assert parse_transform("walsh").fit(found).arrays["group"] == D


def test_reorder_sorts_or_deals_out(rng: np.random.Generator) -> None:
    size = rng.permutation(np.geomspace(10, 0.1, D))
    x = rng.standard_normal((J, N, D)) * size
    for text, groups in (("reorder", 1), ("reorder:interleave=4", 4)):
        change = TRANSFORMS["reorder"].head_map(parse_transform(text).fit(statistics_of(x)).arrays, J, D)
        energy = np.square(change.code(x[0], 0)).mean(axis=0).reshape(groups, -1)
        assert (np.diff(energy, axis=1) < 0.1 * energy[:, :-1]).all()
        assert energy.sum(axis=1).max() < 2 * energy.sum(axis=1).min() if groups > 1 else energy[0, 0] > 50


def test_reordering_helps_blocks_with_scales_of_their_own(rng: np.random.Generator) -> None:
    x = rng.standard_normal((J, N, D)) * rng.permutation(np.repeat([10, 1], D // 2))
    change = TRANSFORMS["reorder"].head_map(TRANSFORMS["reorder"]().fit(statistics_of(x)).arrays, J, D)
    codec = make_codec("q4_0", D)
    errors = [codec.encode(v)[1].error for v in (x[0], change.code(x[0], 0))]
    assert errors[1] < 0.8 * errors[0]


def test_butterfly_learns_what_a_hadamard_rotation_does_not_know(rng: np.random.Generator) -> None:
    """Channels that come as two equal ones of a pair, so that the first stage makes them zero or large."""
    x = np.repeat(rng.standard_normal((J, N, D // 2)) ** 3, 2, axis=2)
    fitted = parse_transform("butterfly:steps=40").fit(statistics_of(x))
    assert fitted.about["error_ratio"] < 0.97
    angles = fitted.arrays["angles"]
    assert angles.shape == (J, 6, D // 2)
    change = TRANSFORMS["butterfly"].head_map(fitted.arrays, J, D)
    np.testing.assert_allclose(np.linalg.norm(change.code(x[0], 0), axis=1), np.linalg.norm(x[0], axis=1), rtol=1e-5)


def test_kvlinc_gives_every_channel_unit_variance(keys: Any) -> None:
    found = statistics_of(*keys)
    mapped = found.mapped(TRANSFORMS["kvlinc"].head_map(TRANSFORMS["kvlinc"]().fit(found).arrays, J, D))
    np.testing.assert_allclose(np.diagonal(mapped.covariance, axis1=1, axis2=2), 1, rtol=3e-3)
    np.testing.assert_allclose(mapped.mean, 0, atol=3e-3)


@pytest.mark.parametrize("name", ["balance", "balance_diagonal", "balance_pairs", "squat"])
def test_no_queries_no_balance(name: str, keys: Any) -> None:
    with pytest.raises(OptionError, match="needs queries"):
        TRANSFORMS[name]().fit(statistics_of(keys[0]))


@pytest.mark.parametrize(
    "text",
    [
        "mean:x=1",
        "innerq:strength=two",
        "innerq:strength=2",
        "balance:shrink=0",
        "squat:rank=0",
        "walsh:group=3",
        "mea",
    ],
)
def test_wrong_options_are_refused(text: str) -> None:
    with pytest.raises(OptionError):
        parse_transform(text)


@pytest.mark.parametrize("name", AFFINE)
def test_arrays_that_do_not_fit_are_refused(name: str, keys: Any) -> None:
    found = statistics_of(*keys)
    arrays = TRANSFORMS[name]().fit(found).arrays
    assert TRANSFORMS[name].head_map(arrays, J, D)
    for key, array in arrays.items():
        for other in ({k: v for k, v in arrays.items() if k != key}, {**arrays, key: array[:, :-1]}):
            with pytest.raises(DataError):
                TRANSFORMS[name].head_map(other, J, D)
        if key in ("scale", "sigma", "matrix", "order", "group"):
            with pytest.raises(DataError):
                TRANSFORMS[name].head_map({**arrays, key: 0 * array}, J, D)


def test_a_channel_that_is_always_zero_does_no_harm(keys: Any) -> None:
    x, q = keys[0].copy(), keys[1]
    x[:, :, 7] = 0
    found = replace(statistics_of(x, q), side="keys")
    for name in AFFINE:
        change = TRANSFORMS[name].head_map(TRANSFORMS[name]().fit(found).arrays, J, D)
        assert np.abs(change.restore(change.code(x[0], 0), 0) - x[0]).max() < 1e-3 * np.abs(x).max(), name
