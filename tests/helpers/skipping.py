"""Attention that leaves out what hardly counts, in float64 and in the order of an online softmax: what tests expect."""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.kernels.attention.skipping import Skipping


def skipping_attention(
    logits: Any, values: Any, skipping: Skipping, tile: int, sizes: Any = None
) -> tuple[Any, Any, int]:
    """(output, lse, values left out) of logits (R, T) that share tiles, and values (T, D).

    sizes : natural logarithms (T,) by which weights count more when they are compared
    """
    n_rows, n_tokens = logits.shape
    sizes = np.zeros(n_tokens) if sizes is None else sizes
    top, total = np.full(n_rows, -1e300), np.zeros(n_rows)
    o, n_left_out = np.zeros((n_rows, values.shape[1])), 0
    for first in range(0, n_tokens, tile):
        part = slice(first, first + tile)
        s, counted = logits[:, part], logits[:, part] + sizes[part]
        if (counted.max(axis=1) - top < skipping.tile_floor).all():
            n_left_out += s.size
            continue
        new = np.maximum(top, counted.max(axis=1))
        shrink, weights = np.exp(top - new), np.exp(s - new[:, None])
        is_left = np.exp(counted - new[:, None]) >= skipping.sparse_v
        o = o * shrink[:, None] + np.where(is_left, weights, 0) @ values[part]
        total = total * shrink + weights.sum(axis=1)
        top, n_left_out = new, n_left_out + int((~is_left).sum())
    return o / total[:, None], top + np.log(total), n_left_out
