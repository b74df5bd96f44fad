"""The definition of decode attention in NumPy float64.

S sequences, H query heads, J KV heads, R query rows a head, T tokens, D head_dim.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def visible_tokens(last_token: NDArray[np.int64], n_tokens: int, window: int) -> NDArray[np.bool_]:
    """Which tokens a row sees, bool (..., T): those up to last_token (...), the latest `window` of them if not 0."""
    token = np.arange(n_tokens)
    seen = token <= last_token[..., None]
    return seen & (token > last_token[..., None] - window) if window else seen


def logits(
    queries: NDArray[Any], keys: NDArray[Any], last_token: NDArray[np.int64], scale: float, window: int, softcap: float
) -> NDArray[np.float64]:
    """Float64 (S, H, R, T): scale * <q, k>, capped as softcap * tanh(x / softcap) if not 0, -inf where not seen."""
    q_per_kv = queries.shape[1] // keys.shape[1]
    k = np.repeat(np.asarray(keys, dtype=np.float64), q_per_kv, axis=1)
    s = scale * np.einsum("shrd,shtd->shrt", np.asarray(queries, dtype=np.float64), k)
    if softcap:
        s = softcap * np.tanh(s / softcap)
    return np.where(visible_tokens(last_token, keys.shape[2], window)[:, None], s, -np.inf)


def decode_attention(
    queries: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
    last_token: NDArray[np.int64],
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(output, lse): (S, H, R, D) and the log-sum-exp of the logits (S, H, R), float64.

    queries (S, H, R, D), keys and values (S, J, T, D), last_token (S, R): row r sees tokens 0..last_token.
    A row that sees nothing has output 0 and lse -inf.
    """
    s = logits(queries, keys, last_token, scale, window, softcap)
    top = s.max(axis=-1, keepdims=True)
    weights = np.exp(s - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.where(np.isfinite(top), top, 0.0) + np.log(total))[..., 0]
    p = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    v = np.repeat(np.asarray(values, dtype=np.float64), queries.shape[1] // values.shape[1], axis=1)
    return np.einsum("shrt,shtd->shrd", p, v), lse
