"""What transforms are fitted on: moments of the keys or values of one layer, and of the queries that read them.

J KV heads, D head_dim. Moments are streamed in float64 over all tokens; a sample of tokens is kept for what moments
do not tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError
from turbocode.transforms.head_map import Floats, HeadMap

if TYPE_CHECKING:
    from turbocode.dumps import Dump, DumpLayer

SAMPLE_TOKENS = 2048
SLAB_TOKENS = 4096
MIN_TOKENS_PER_CHANNEL = 2  # a covariance of fewer tokens says more about the tokens than about the model


@dataclass(frozen=True, eq=False)
class SideStatistics:
    """Statistics of one layer's keys or values.

    layer : `000`; side : `keys` or `values`; n_tokens : tokens a head was measured on; rope_theta : 0 without RoPE
    mean, largest float64 (J, D) : of the vectors, and of their absolute values; covariance (J, D, D) : about the mean
    query_moment (J, D, D) : E[q q^T] over the queries that read a KV head; the identity for values and without queries
    has_queries : whether query_moment was measured
    sample float32 (J, S, D) : every n-th token
    """

    layer: str
    side: str
    n_tokens: int
    rope_theta: float
    mean: Floats
    covariance: Floats
    largest: Floats
    query_moment: Floats
    has_queries: bool
    sample: NDArray[np.float32]

    @property
    def n_heads(self) -> int:
        return self.mean.shape[0]

    @property
    def head_dim(self) -> int:
        return self.mean.shape[1]

    def mapped(self, change: HeadMap) -> SideStatistics:
        """The statistics of what `change` codes: a transform that comes after it is fitted on these."""
        heads = range(self.n_heads)
        eye = np.eye(self.head_dim)
        forward = np.stack([change.code(eye, h) - change.code(0 * eye, h) for h in heads]).astype(np.float64)
        forward = forward.transpose(0, 2, 1)
        backward = np.stack([change.queries(eye, h) for h in heads]).astype(np.float64)  # rows: G^T of unit queries
        sample = np.stack([change.code(self.sample[h], h) for h in heads])
        return replace(
            self,
            mean=np.stack([change.code(self.mean[h], h) for h in heads]).astype(np.float64),
            covariance=forward @ self.covariance @ forward.transpose(0, 2, 1),
            query_moment=backward.transpose(0, 2, 1) @ self.query_moment @ backward,
            largest=np.abs(sample).max(axis=1).astype(np.float64),
            sample=sample,
        )


def collect_statistics(
    dump: Dump,
    layer: DumpLayer,
    side: str,
    *,
    stop: int | None = None,
    advance: Callable[[int], None] | None = None,
    read: Callable[[int, int, int, int], NDArray[Any]] | None = None,
) -> SideStatistics:
    """Statistics of the first `stop` tokens (all by default) of each sequence of one layer's side.

    Queries are those whose position is below `stop`. advance : called with the number of tokens just read of a head
    read : gives vectors (n, D) of (sequence, head, start, stop) in the place of the layer's own
    Raises OptionError for fewer than MIN_TOKENS_PER_CHANNEL tokens a channel, DataError for damaged data.
    """
    metadata = dump.metadata
    j, d = metadata.n_kv_heads, metadata.head_dim
    length = layer.n_tokens if stop is None else min(stop, layer.n_tokens)
    n_tokens = layer.n_seqs * length
    if n_tokens < MIN_TOKENS_PER_CHANNEL * d:
        raise OptionError(
            f"{n_tokens} tokens are too few to calibrate vectors of {d} values; "
            f"at least {MIN_TOKENS_PER_CHANNEL * d} are needed",
            hint="capture a longer dump",
        )
    total, square, largest = np.zeros((j, d)), np.zeros((j, d, d)), np.zeros((j, d))
    step = -(-n_tokens // SAMPLE_TOKENS)
    sample: list[list[NDArray[np.float32]]] = [[] for _ in range(j)]
    for seq in range(layer.n_seqs):
        for head in range(j):
            for start in range(0, length, SLAB_TOKENS):
                end = min(start + SLAB_TOKENS, length)
                x = layer.read(side, seq, head, start, end) if read is None else read(seq, head, start, end)
                x = x.astype(np.float64)
                total[head] += x.sum(axis=0)
                square[head] += x.T @ x
                largest[head] = np.maximum(largest[head], np.abs(x).max(axis=0))
                sample[head].append(x[(-start) % step :: step].astype(np.float32))
                if advance is not None:
                    advance(len(x))
    mean = total / n_tokens
    query_moment = _query_moment(dump, layer, length) if side == "keys" else None
    return SideStatistics(
        layer.name,
        side,
        n_tokens,
        metadata.rope_theta,
        mean,
        square / n_tokens - mean[:, :, None] * mean[:, None, :],
        largest,
        np.tile(np.eye(d), (j, 1, 1)) if query_moment is None else query_moment,
        query_moment is not None,
        np.stack([np.concatenate(parts) for parts in sample]),
    )


def _query_moment(dump: Dump, layer: DumpLayer, stop: int) -> Floats | None:
    """E[q q^T] (J, D, D) over the rows at positions below `stop`; None where there are none."""
    if not layer.n_rows:
        return None
    positions = layer.query_positions() < stop
    n_heads, j, d = dump.metadata.n_query_heads, dump.metadata.n_kv_heads, dump.metadata.head_dim
    moment, count = np.zeros((j, d, d)), 0
    for seq in range(layer.n_seqs):
        for head in range(n_heads):
            q = layer.read("queries", seq, head).astype(np.float64)[positions[seq]]
            moment[head // (n_heads // j)] += q.T @ q
        count += int(positions[seq].sum()) * (n_heads // j)
    return moment / count if count else None
