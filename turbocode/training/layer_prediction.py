"""Predictions of a layer's keys and values from the layer below (transforms/aqua.py), fitted on a dump."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps import Dump
from turbocode.transforms import SideStatistics, Transform, collect_statistics
from turbocode.transforms.aqua import (
    READ_FROM,
    VALUES_BELOW,
    Aqua,
    before_rope,
    sources_of,
    stored_predictor,
)
from turbocode.transforms.head_map import Floats

SLAB_TOKENS = 2048


def with_prediction(
    chain: Sequence[Transform], dump: Dump, number: int, side: str, stop: int | None
) -> tuple[list[Transform], SideStatistics]:
    """The chain, whose first step is Aqua, with its prediction, and the statistics of what that leaves.

    number, side : of the layer; stop : use only the first tokens of each sequence
    Raises OptionError for too few tokens.
    """
    first = chain[0]
    assert isinstance(first, Aqua)
    data = _LayerPair(dump, number, side, stop)
    measured = data.fit(first.ridge)
    predictor = Aqua.predictor(measured, *data.shape)
    layer = dump.layers[number]

    @lru_cache(maxsize=1)  # the same for every head
    def predicted(seq: int, start: int, end: int) -> NDArray[np.float32]:
        given = [data.vectors(name, seq, start, end) for name in predictor.sources]
        return predictor.predict(given, np.arange(start, end))

    def rest(seq: int, head: int, start: int, end: int) -> Floats:
        return np.asarray(layer.read(side, seq, head, start, end) - predicted(seq, start, end)[head], np.float64)

    left = collect_statistics(dump, layer, side, stop=stop, read=rest)
    spread = data.target_variance
    share = 1 - float(np.trace(left.covariance, axis1=1, axis2=2).sum()) / spread if spread > 0 else 0.0
    return [replace(first, measured=measured, explained=share), *chain[1:]], left


class _LayerPair:
    """Moments of a side and of what it is predicted from, all before RoPE."""

    def __init__(self, dump: Dump, number: int, side: str, stop: int | None) -> None:
        self._dump, self._number, self._side = dump, number, side
        self._layer = dump.layers[number]
        self._length = self._layer.n_tokens if stop is None else min(stop, self._layer.n_tokens)
        self.shape = dump.metadata.n_kv_heads, dump.metadata.head_dim
        self.sources = sources_of(side, number > 0)
        self.target_variance = 0.0  # of the side as it is, over tokens, all heads and channels

    def vectors(self, source: str, seq: int, start: int, stop: int) -> NDArray[np.float32]:
        """Exact vectors float32 (J, T, D) of a source."""
        below, side = READ_FROM[source]
        return self._read(self._number - below, side, seq, start, stop)

    def _read(self, number: int, side: str, seq: int, start: int, stop: int) -> NDArray[np.float32]:
        layer = self._dump.layers[number]
        heads = range(self.shape[0])
        return np.stack([layer.read(side, seq, head, start, stop) for head in heads]).astype(np.float32)

    def _slabs(self) -> Iterator[tuple[Floats, Floats, Floats]]:
        """(inputs (T, M), targets (T, J * D) before RoPE, the same targets as they are), all heads side by side."""
        theta = self._dump.metadata.rope_theta
        for seq in range(self._layer.n_seqs):
            for start in range(0, self._length, SLAB_TOKENS):
                stop = min(start + SLAB_TOKENS, self._length)
                positions = np.arange(start, stop)
                whole = self._read(self._number, self._side, seq, start, stop).astype(np.float64)
                target = before_rope(whole, theta, positions) if self._side == "keys" else whole
                rows = []
                for name in self.sources:
                    x = self.vectors(name, seq, start, stop).astype(np.float64)
                    rows.append(x if name == VALUES_BELOW else before_rope(x, theta, positions))
                flat = [x.transpose(1, 0, 2).reshape(stop - start, -1) for x in (*rows, target, whole)]
                yield np.concatenate([*flat[:-2], np.empty((stop - start, 0))], axis=1), flat[-2], flat[-1]

    def fit(self, ridge: float) -> dict[str, NDArray[np.generic]]:
        """What is stored of the predictor with the least squared error on inputs with noise."""
        j, d = self.shape
        n_inputs, n = len(self.sources) * j * d, 0
        total, square = np.zeros(n_inputs + j * d), np.zeros((n_inputs, n_inputs + j * d))
        plain = np.zeros((2, j * d))
        for inputs, target, whole in self._slabs():
            both = np.concatenate([inputs, target], axis=1)
            total += both.sum(axis=0)
            square += inputs.T @ both
            plain += [whole.sum(axis=0), np.square(whole).sum(axis=0)]
            n += len(both)
        mean = total / n
        self.target_variance = float((plain[1] / n - np.square(plain[0] / n)).sum())
        covariance = square / n - mean[:n_inputs, None] * mean
        inner, cross = covariance[:, :n_inputs], covariance[:, n_inputs:]
        variance = np.diagonal(inner).reshape(len(self.sources), j * d).mean(axis=1)
        noise = np.repeat(ridge * np.maximum(variance, 1e-12 * variance.max(initial=1e-12)), j * d)
        solved: Floats = np.asarray(np.linalg.solve(inner + np.diag(noise), cross), np.float64)
        weights = solved.T.reshape(j, d, len(self.sources), j * d)
        by_source = {name: weights[:, :, index] for index, name in enumerate(self.sources)}
        means = {name: mean[index * j * d : (index + 1) * j * d] for index, name in enumerate(self.sources)}
        return stored_predictor(by_source, mean[n_inputs:].reshape(j, d), means, self._dump.metadata.rope_theta)
