"""Multirate codecs of any schedule, blocks of theirs, and exact attention over them, for tests of attention kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.codecs import multirate_codec


def coder(heads: int, rates: list[int], seed: int) -> Any:
    rng, d = np.random.default_rng(seed), 8 * len(rates)
    basis = np.stack([np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(heads)])
    return multirate_codec(
        basis, rng.standard_normal((heads, d)), np.exp2(rng.uniform(-1, 1, (heads, d))), rates, "energy"
    )


def random_blocks(codec: Any, n_seqs: int, heads: int, n_tokens: int, rng: np.random.Generator) -> Any:
    """uint8 (n_seqs, heads, n_tokens, bytes); any bytes are multirate blocks, of which the first is a gain about 1."""
    if codec.name == "multirate":
        blocks = rng.integers(0, 256, (n_seqs, heads, n_tokens, codec.bytes_per_vector)).astype(np.uint8)
        blocks[..., 0] = rng.integers(120, 150, blocks.shape[:-1])
        return blocks
    x = rng.standard_normal((n_seqs, heads, n_tokens, codec.head_dim)).astype(np.float32)
    return np.stack([codec.encode(x[:, head], head)[0] for head in range(heads)], axis=1)


def expected_of(queries: Any, keys: Any, k: Any, values: Any, v: Any, last: Any, scale: float, window: int) -> Any:
    """Float64 attention over what the blocks decode to in their basis, as GpuAttention leaves it."""
    heads = k.shape[1]
    k, v = (
        np.stack([codec.decode(blocks[:, h], h, unrotate=False) for h in range(heads)], axis=1).astype(np.float64)
        for codec, blocks in ((keys, k), (values, v))
    )
    per_head = queries.shape[1] // heads
    logits = scale * np.einsum("shrd,shtd->shrt", queries.astype(np.float64), np.repeat(k, per_head, axis=1))
    token, end = np.arange(k.shape[2]), last[:, None, :, None]
    logits = np.where((token <= end) & ((token > end - window) | (window == 0)), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("shrt,shtd->shrd", weights, np.repeat(v, per_head, axis=1)) / weights.sum(-1, keepdims=True)
