"""Attention of new tokens over packed caches: rotate the query once, read the blocks, un-rotate the output once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs.coder import Coder, head_blocks, plain_codec, row_widths
from turbocode.codecs.multirate_codec import MultirateCodec
from turbocode.errors import OptionError
from turbocode.kernels.attention import PackedSide
from turbocode.kernels.attention.skipping import EVERYTHING, Skipping


def packed_side(coder: Coder, blocks: NDArray[np.uint8]) -> PackedSide:
    """Blocks uint8 (n_seqs, n_kv_heads, n_tokens, bytes_per_vector) with the codebooks to read them."""
    if isinstance(coder, MultirateCodec):
        return PackedSide(np.ascontiguousarray(blocks), coder.block_format, coder.packed_tables())
    codec = plain_codec(coder)
    if codec is None:
        raise OptionError(f"packed attention does not read blocks of {coder.name}")
    n_tables = len(codec.codebooks) or 1
    if n_tables > 1 and n_tables != blocks.shape[1]:
        raise OptionError(f"{codec.name} has codebooks of {n_tables} heads; the blocks have {blocks.shape[1]}")
    centroids = np.stack([codec.tables(head)[0] for head in range(n_tables)])
    return PackedSide(np.ascontiguousarray(blocks), codec.block_format, centroids)


def decode_attention(
    queries: NDArray[Any],
    key_codec: Coder,
    key_blocks: NDArray[np.uint8],
    value_codec: Coder,
    value_blocks: NDArray[np.uint8],
    last_token: NDArray[np.integer[Any]],
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    n_splits: int | None = None,
    first_token: int | None = None,
    skipping: Skipping = EVERYTHING,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(output, lse) of `queries` over a packed cache: float32 of the shape of queries, and that without head_dim.

    queries : (n_seqs, n_query_heads, n_rows, head_dim); query head h reads KV head h // (n_query_heads // n_kv_heads)
    key_blocks, value_blocks : uint8 (n_seqs, n_kv_heads, n_tokens, bytes_per_vector of the codec), as encode_heads
    last_token : integers (n_seqs, n_rows): row r sees tokens 0..last_token, of these the last `window` (0: all);
        -1 sees none and gives 0 and -inf. Sequences of different length differ in last_token; what lies behind it is
        not read.
    first_token : position of the first block, where the blocks are one piece of a longer cache; pieces are merged with
        `merge_attention`. None: the blocks are the whole cache, and last_token has to lie in it
    scale : factor on <q, k>; softcap : logits become softcap * tanh(logits / softcap), 0 for none
    skipping : what may be left out because it hardly counts, see kernels/attention/skipping.py
    Raises OptionError for shapes that disagree.
    """
    from turbocode.kernels.attention import cpu

    queries, last_token = np.asarray(queries), np.asarray(last_token)
    if row_widths(key_codec) or row_widths(value_codec):
        return _head_by_head(
            queries,
            (key_codec, key_blocks, value_codec, value_blocks),
            last_token,
            scale=scale,
            window=window,
            softcap=softcap,
            n_splits=n_splits,
            first_token=first_token,
            skipping=skipping,
        )
    keys, values = packed_side(key_codec, key_blocks), packed_side(value_codec, value_blocks)
    if queries.ndim != 4 or keys.blocks.ndim != 4 or keys.blocks.shape[:3] != values.blocks.shape[:3]:
        raise OptionError(
            f"queries {queries.shape}, key blocks {key_blocks.shape} and value blocks {value_blocks.shape} do not fit: "
            "(n_seqs, n_query_heads, n_rows, head_dim) and (n_seqs, n_kv_heads, n_tokens, bytes) are needed"
        )
    n_seqs, n_kv_heads, n_tokens = keys.blocks.shape[:3]
    for codec, side in ((key_codec, keys), (value_codec, values)):
        if codec.head_dim != queries.shape[3] or side.blocks.shape[3] != codec.bytes_per_vector:
            raise OptionError(f"{codec.name} with head_dim {codec.head_dim} does not fit queries or blocks given")
    if queries.shape[0] != n_seqs or queries.shape[1] % n_kv_heads or last_token.shape != (n_seqs, queries.shape[2]):
        raise OptionError(
            f"queries {queries.shape} and last_token {last_token.shape} do not fit "
            f"{n_seqs} sequences of {n_kv_heads} KV heads"
        )
    beyond = np.inf if first_token is not None else n_tokens
    if last_token.size and not (last_token.min() >= -1 and last_token.max() < beyond):
        raise OptionError(
            f"last_token runs from {last_token.min()} to {last_token.max()}; allowed: -1 to {n_tokens - 1}"
        )
    for codec in (key_codec, value_codec):
        if codec.n_heads not in (1, n_kv_heads):
            raise OptionError(f"{codec.name} is for {codec.n_heads} KV heads; the blocks have {n_kv_heads}")
    offsets = by_head(key_codec, key_codec.logit_offset, queries, n_kv_heads)
    output, lse = cpu.decode_attention(
        by_head(key_codec, key_codec.rotate, queries, n_kv_heads),
        keys,
        values,
        last_token.astype(np.int64) - (first_token or 0),
        scale=scale,
        window=window,
        softcap=softcap,
        offsets=offsets if softcap else None,
        n_splits=n_splits,
        skipping=skipping.check(),
    )
    output = without_unseen(by_head(value_codec, value_codec.unrotate, output, n_kv_heads), lse)
    return output, lse if softcap else with_offsets(lse, offsets, scale)


def _head_by_head(
    queries: NDArray[Any],
    sides: tuple[Coder, NDArray[np.uint8], Coder, NDArray[np.uint8]],
    last_token: NDArray[np.integer[Any]],
    **options: Any,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """decode_attention where a side's heads have codecs of their own: one call for each KV head."""
    key_codec, key_blocks, value_codec, value_blocks = sides
    counts = {codec.n_heads for codec in (key_codec, value_codec) if row_widths(codec)}
    n_kv_heads = counts.pop()
    if counts or queries.ndim != 4 or queries.shape[1] % n_kv_heads:
        raise OptionError(f"queries {queries.shape} do not fit {key_codec.name} and {value_codec.name}")
    parts = []
    for head, some in enumerate(np.split(queries, n_kv_heads, axis=1)):
        k, v = (head_blocks(c, b, head)[:, None] for c, b in ((key_codec, key_blocks), (value_codec, value_blocks)))
        key, value = key_codec.for_head(head), value_codec.for_head(head)
        parts.append(decode_attention(some, key, k, value, v, last_token, **options))
    return np.concatenate([part[0] for part in parts], axis=1), np.concatenate([part[1] for part in parts], axis=1)


def by_head(coder: Coder, change: Callable[[NDArray[Any], int], Any], vectors: NDArray[Any], n_kv_heads: int) -> Any:
    """change(vectors, head), a verb of the coder, of each KV head's vectors (n_seqs, n_query_heads, ...), in order."""
    if coder.n_heads == 1:
        return change(vectors, 0)
    group = vectors.shape[1] // n_kv_heads
    parts = [change(vectors[:, head * group : (head + 1) * group], head) for head in range(n_kv_heads)]
    return None if parts[0] is None else np.concatenate(parts, axis=1)


def without_unseen(output: NDArray[np.float32], lse: NDArray[np.float32]) -> NDArray[np.float32]:
    """The outputs, 0 where a row saw no token: a shift of the values made them something else."""
    output[np.isneginf(lse)] = 0.0
    return output


def with_offsets(lse: NDArray[np.float32], offsets: NDArray[np.float32] | None, scale: float) -> NDArray[np.float32]:
    """The log-sum-exp of logits that all lack scale * offsets of their query."""
    return lse if offsets is None else (lse + np.float32(scale) * offsets).astype(np.float32)


def merge_attention(
    outputs: NDArray[np.float32], lse: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(output, lse) over a whole cache from those of its pieces, stacked on the leading axis."""
    from turbocode.kernels.attention import cpu

    return cpu.merge_partials(outputs, lse, np.ones_like(lse))
