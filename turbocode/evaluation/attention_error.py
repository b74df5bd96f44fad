"""What coding K and V does to attention: one KV head's exact and coded attention, accumulated over slabs of tokens.

All sums are float64. delta = coded logit - exact logit, p = exact weights, o = exact output (techniques M3 to M6).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels.attention.reference import visible_tokens

Array = NDArray[np.float64]


class _Softmax:
    """A running softmax over slabs: maximum, sum of weights, and weighted sums that are rescaled with it."""

    def __init__(self, n_rows: int) -> None:
        self.top = np.full(n_rows, -np.inf)
        self.total = np.zeros(n_rows)
        self.sums: dict[str, Array] = {}

    def weights(self, s: Array) -> Array:
        """exp(s - maximum so far) for logits s (rows, tokens), -inf where not seen; earlier sums are rescaled."""
        top = np.maximum(self.top, s.max(axis=1))
        anchor = np.where(np.isfinite(top), top, 0.0)
        shrink = np.exp(self.top - anchor)
        self.top = top
        self.total *= shrink
        for value in self.sums.values():
            value *= shrink if value.ndim == 1 else shrink[:, None]
        weights = np.exp(s - anchor[:, None])
        self.total += weights.sum(axis=1)
        return weights

    def add(self, name: str, value: Array) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def mean(self, name: str) -> Array:
        """The weighted mean that `name` accumulates."""
        total = self.total if self.sums[name].ndim == 1 else self.total[:, None]
        return self.sums[name] / total

    @property
    def lse(self) -> Array:
        return self.top + np.log(self.total)


class HeadComparison:
    """Exact against coded attention of the query rows that read one KV head.

    queries : float64 (rows, head_dim); last_token : int64 (rows,), the last token that each row sees
    `add` takes slabs of tokens in order; `result` gives per-row figures.
    """

    def __init__(
        self, queries: NDArray[Any], last_token: NDArray[np.int64], *, scale: float, window: int, softcap: float
    ) -> None:
        self._queries = np.asarray(queries, dtype=np.float64) * scale
        self._last, self._window, self._softcap = last_token, window, softcap
        rows = len(last_token)
        self._exact, self._coded = _Softmax(rows), _Softmax(rows)
        self._best = {"exact": np.full(rows, -1), "coded": np.full(rows, -1)}
        self._delta, self._delta_square, self._seen = np.zeros(rows), np.zeros(rows), np.zeros(rows)

    def _logits(self, keys: NDArray[Any], seen: NDArray[np.bool_]) -> Array:
        s = self._queries @ np.asarray(keys, dtype=np.float64).T
        if self._softcap:
            s = self._softcap * np.tanh(s / self._softcap)
        return np.where(seen, s, -np.inf)

    def add(
        self,
        start: int,
        keys: NDArray[Any],
        values: NDArray[Any],
        coded_keys: NDArray[Any],
        coded_values: NDArray[Any],
    ) -> None:
        """Add the tokens start, start + 1, ...: exact and coded (n, head_dim), all in the model's own basis."""
        seen = visible_tokens(self._last - start, len(keys), self._window)
        exact, coded = self._logits(keys, seen), self._logits(coded_keys, seen)
        for name, running, s in (("exact", self._exact, exact), ("coded", self._coded, coded)):
            is_better = s.max(axis=1) > running.top
            self._best[name] = np.where(is_better, start + s.argmax(axis=1), self._best[name])
        delta = np.subtract(coded, exact, out=np.zeros_like(exact), where=seen)
        self._delta += delta.sum(axis=1)
        self._delta_square += (delta * delta).sum(axis=1)
        self._seen += seen.sum(axis=1)
        v, coded_v = np.asarray(values, dtype=np.float64), np.asarray(coded_values, dtype=np.float64)
        p = self._exact.weights(exact)
        self._exact.add("delta", (p * delta).sum(axis=1))
        self._exact.add("output", p @ v)
        self._exact.add("output_v", p @ coded_v)
        p = self._coded.weights(coded)
        self._coded.add("output_k", p @ v)
        self._coded.add("output_kv", p @ coded_v)

    def result(self) -> dict[str, Array]:
        """Per-row figures, each float64 (rows,) but the outputs (rows, head_dim).

        kl : KL(p || p coded), in nats; logit_variance : of delta over the tokens a row sees (softmax cannot see its
        mean); same_top : 1 where the strongest token is the same; output, output_k, output_v, output_kv : exact,
        with K coded, with V coded, with both.
        """
        mean = self._delta / self._seen
        return {
            "kl": np.maximum(self._coded.lse - self._exact.lse - self._exact.mean("delta"), 0.0),
            "logit_variance": np.maximum(self._delta_square / self._seen - mean * mean, 0.0),
            "same_top": (self._best["exact"] == self._best["coded"]).astype(np.float64),
            "output": self._exact.mean("output"),
            "output_v": self._exact.mean("output_v"),
            "output_k": self._coded.mean("output_k"),
            "output_kv": self._coded.mean("output_kv"),
        }
