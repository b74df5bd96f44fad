"""What an error of a key or a value costs, as a matrix per KV head, and the moments of the vectors: pooled over dumps.

J KV heads, D head_dim. The cost of an error e is 1/2 e^T M e, added over tokens, sides, heads and layers. With the
Fisher information of every dump at hand it is the KL divergence of the next-token distribution, in nats a token. Else
it is a makeshift: for keys the KL divergence of the attention weights to second order, M = scale^2 E[q q^T]; for values
the error of the output relative to the spread of the values, M = 2 I / tr(Cov). These have no common unit, but lie
near enough to share bits out between layers and sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps import Dump
from turbocode.errors import OptionError
from turbocode.training.rope_shift import average_matrix, average_vector
from turbocode.transforms.statistics import SideStatistics, collect_statistics

Floats = NDArray[np.float64]
MetricKind = Literal["fisher", "queries"]
RIDGE = 0.02  # of the mean eigenvalue, added to a metric: directions that no calibration text tried are not free


@dataclass(frozen=True, eq=False)
class SideMoments:
    """Of one layer's `keys` or `values`, over all dumps: n_tokens, mean (J, D), covariance and metric (J, D, D).

    kind : what the metric is made of
    """

    layer: str
    side: str
    n_tokens: int
    mean: Floats
    covariance: Floats
    metric: Floats
    kind: MetricKind


def metric_kind(dumps: Sequence[Dump], wanted: MetricKind | None = None) -> MetricKind:
    """`fisher` if every layer of every dump has Fisher information, else `queries`; or what is wanted.

    Raises OptionError where the dumps have neither, or not what is wanted, or are not of one model.
    """
    first = dumps[0].metadata
    for dump in dumps:
        for name in ("model", "n_layers", "n_query_heads", "n_kv_heads", "head_dim", "attention_scale", "rope_theta"):
            if getattr(dump.metadata, name) != getattr(first, name):
                raise OptionError(
                    f"has {name} {getattr(dump.metadata, name)!r}, {dumps[0].path} has {getattr(first, name)!r}; "
                    "dumps that are calibrated on together are of one model",
                    file=dump.path,
                )
    blind = [dump.path for dump in dumps if not all(layer.has_fisher for layer in dump.layers)]
    if wanted != "queries" and not blind:
        return "fisher"
    if wanted == "fisher":
        raise OptionError("has no Fisher information", file=blind[0], hint="turbocode capture --fisher writes it")
    for dump in dumps:
        if not all(layer.n_rows for layer in dump.layers):
            raise OptionError(
                "has neither Fisher information nor queries, so that nothing says what errors cost",
                file=dump.path,
                hint="turbocode capture --fisher writes a dump that has",
            )
    return "queries"


def side_moments(
    dumps: Sequence[Dump],
    number: int,
    side: str,
    kind: MetricKind,
    advance: Callable[[int], None] | None = None,
    *,
    reach: int = 0,
) -> SideMoments:
    """Moments and metric of one side of layer `number`, every token of every dump counting alike.

    reach : positions that keys are prepared for beyond those of the dumps, by turning half of them (rope_shift)
    advance : called with the number of tokens just read of a head. Raises OptionError for too few tokens, DataError.
    """
    found = [collect_statistics(dump, dump.layers[number], side, advance=advance) for dump in dumps]
    share = np.array([one.n_tokens for one in found], dtype=np.float64)
    n_tokens = int(share.sum())
    share /= share.sum()
    mean = sum((w * one.mean for w, one in zip(share, found, strict=True)), np.zeros_like(found[0].mean))
    covariance = np.zeros_like(found[0].covariance)
    for w, one in zip(share, found, strict=True):
        apart = one.mean - mean
        covariance += w * (one.covariance + apart[:, :, None] * apart[:, None, :])
    metric = np.zeros_like(covariance)
    for w, dump, one in zip(share, dumps, found, strict=True):
        metric += w * _metric(dump, number, one, kind)
    if kind == "queries" and side == "values":
        metric *= (2.0 / np.maximum(covariance.trace(axis1=1, axis2=2), np.finfo(np.float64).tiny))[:, None, None]
    theta = dumps[0].metadata.rope_theta
    if reach and theta and side == "keys":
        moment = covariance + mean[:, :, None] * mean[:, None, :]
        moment, metric = ((x + average_matrix(x, theta, reach)) / 2 for x in (moment, metric))
        mean = (mean + average_vector(mean, theta, reach)) / 2
        covariance = moment - mean[:, :, None] * mean[:, None, :]
    return SideMoments(found[0].layer, side, n_tokens, mean, covariance, with_ridge(metric), kind)


def _metric(dump: Dump, number: int, statistics: SideStatistics, kind: MetricKind) -> Floats:
    if kind == "fisher":
        found = dump.layers[number].read_fisher(statistics.side)
        assert found is not None
        return found.astype(np.float64)
    scale = dump.metadata.attention_scale**2 if statistics.side == "keys" else 1.0
    return np.asarray(statistics.query_moment * scale)


def with_ridge(metric: Floats) -> Floats:
    """The metric (J, D, D), symmetric, plus RIDGE of its mean eigenvalue."""
    d = metric.shape[-1]
    ridge = RIDGE * metric.trace(axis1=1, axis2=2) / d
    return np.asarray((metric + metric.transpose(0, 2, 1)) / 2 + ridge[:, None, None] * np.eye(d))
