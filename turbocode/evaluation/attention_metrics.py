"""Everything that coding does to the attention of one KV head, from whole rows of weights (techniques M3 to M7, M10).

R rows, T tokens, D head_dim, all float64. delta = coded logit - exact logit; p, o are exact, hats coded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels.attention.reference import visible_tokens

Array = NDArray[np.float64]
TOP_TOKENS = 32  # whose exact weight is compared: as many as most rows of a long context attend to
SPARSE_THRESHOLDS = (1e-6, 1e-4, 1e-3, 1e-2)  # weights below are left out of the sum of values
TILE_TOKENS = 64  # of a kernel that may leave whole tiles out
_FLOAT64_ARRAYS_PER_TOKEN = 12  # of a row that exist at once


@dataclass(frozen=True, eq=False)
class HeadTokens:
    """One KV head of one sequence: exact and decoded keys and values, (T, D) each, and how the layer attends."""

    keys: Array
    values: Array
    coded_keys: Array
    coded_values: Array
    scale: float
    window: int
    softcap: float

    def logits(self, queries: Array, keys: Array) -> Array:
        """(R, T) of queries (R, D)."""
        s = self.scale * (queries @ keys.T)
        return self.softcap * np.tanh(s / self.softcap) if self.softcap else s


def row_metrics(head: HeadTokens, queries: Array, last_token: NDArray[np.int64]) -> dict[str, Array]:
    """Figures of each row, float64 (R,) but `output_dots` (R, 3): row r sees tokens up to last_token[r].

    kl : KL(p || p hat), nats; logit_square : mean of delta^2 around its mean over the tokens seen
    logit_variance : the same weighted by p, half of which is the KL divergence to second order
    same_top : 1 where the strongest token is the same; top_mass : exact weight of the TOP_TOKENS strongest coded
        tokens, in that of the exact ones
    output : |o|^2; error, error_k, error_v : |o hat - o|^2 with both, K only, V only coded
    output_dots : <o, o>, <o, o hat>, <o hat, o hat>
    skipped_T, skip_error_T : of sparse values at threshold T: share of the tokens seen whose coded weight is below T,
        and |o hat without them - o hat|^2; skipped_tiles_T, tile_error_T : of a kernel that leaves out a tile of
        TILE_TOKENS whose every logit is ln(1 / T) or more below the largest so far
    """
    seen = visible_tokens(last_token, len(head.keys), head.window)
    s, coded_s = (np.where(seen, head.logits(queries, k), -np.inf) for k in (head.keys, head.coded_keys))
    p, log_p = _softmax(s)
    q, log_q = _softmax(coded_s)
    delta = np.subtract(coded_s, s, out=np.zeros_like(s), where=seen)
    count = seen.sum(axis=1)
    mean = delta.sum(axis=1) / count
    weighted = (p * delta).sum(axis=1)
    o, o_v, o_k, o_kv = p @ head.values, p @ head.coded_values, q @ head.values, q @ head.coded_values
    found = {
        "kl": np.maximum((p * np.subtract(log_p, log_q, out=np.zeros_like(p), where=seen)).sum(axis=1), 0.0),
        "logit_square": np.maximum((delta * delta).sum(axis=1) / count - mean * mean, 0.0),
        "logit_variance": np.maximum((p * delta * delta).sum(axis=1) - weighted * weighted, 0.0),
        "same_top": (s.argmax(axis=1) == coded_s.argmax(axis=1)).astype(np.float64),
        "top_mass": _top_mass(p, coded_s),
        "output": _square(o),
        "error": _square(o_kv - o),
        "error_k": _square(o_k - o),
        "error_v": _square(o_v - o),
        "output_dots": np.stack([_square(o), (o * o_kv).sum(axis=1), _square(o_kv)], axis=1),
    }
    for threshold in SPARSE_THRESHOLDS:
        is_small = seen & (q < threshold)
        found[f"skipped_{threshold:g}"] = is_small.sum(axis=1) / count
        found[f"skip_error_{threshold:g}"] = _square(np.where(is_small, q, 0.0) @ head.coded_values)
        skipped, error = _tile_skipping(coded_s, seen, head.coded_values, o_kv, threshold)
        found[f"skipped_tiles_{threshold:g}"], found[f"tile_error_{threshold:g}"] = skipped, error
    return found


def _square(x: Array) -> Array:
    return np.asarray((x * x).sum(axis=1))


def _softmax(s: Array) -> tuple[Array, Array]:
    """(weights, their logarithms) of logits (R, T), -inf where not seen."""
    log_p = s - s.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    return np.exp(log_p), log_p


def _top_mass(p: Array, coded_s: Array) -> Array:
    n = min(TOP_TOKENS, p.shape[1])
    best = -np.partition(-p, n - 1, axis=1)[:, :n].sum(axis=1)
    chosen = np.argpartition(-coded_s, n - 1, axis=1)[:, :n]
    return np.asarray(np.take_along_axis(p, chosen, axis=1).sum(axis=1) / best)


def _tile_skipping(s: Array, seen: NDArray[np.bool_], values: Array, output: Array, threshold: float) -> Any:
    """(share of the tiles seen that are left out, |output without them - output|^2), each (R,)."""
    n_rows, n_tokens = s.shape
    padding = -n_tokens % TILE_TOKENS
    tiles = np.pad(s, ((0, 0), (0, padding)), constant_values=-np.inf).reshape(n_rows, -1, TILE_TOKENS)
    top = tiles.max(axis=2)
    before = np.maximum.accumulate(top, axis=1)
    there = np.isfinite(top)
    left_out = there & (top < before + np.log(threshold))
    kept = np.where(np.repeat(left_out, TILE_TOKENS, axis=1)[:, :n_tokens], -np.inf, s)
    return left_out.sum(axis=1) / there.sum(axis=1), _square(_softmax(kept)[0] @ values - output)


def rows_at_once(n_tokens: int, max_memory: int) -> int:
    """Rows of one call to `row_metrics` under a memory limit, at least one."""
    return max(1, max_memory // (8 * _FLOAT64_ARRAYS_PER_TOKEN * n_tokens))
