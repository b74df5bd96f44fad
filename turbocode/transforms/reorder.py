"""Channels in another order (techniques 2.7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from turbocode.errors import DataError
from turbocode.transforms.fitted import Arrays, FittedTransform, stored
from turbocode.transforms.head_map import HeadMap
from turbocode.transforms.statistics import SideStatistics


@dataclass(frozen=True)
class Reorder:
    """Channels by falling RMS, so that like sizes share a scale; with interleave=N dealt out to N groups in turn.

    interleave : 0 or 1 leaves them sorted; N groups of about equal energy otherwise
    For codecs with several scales in a vector: sorted helps those without a rotation (`q4_0`), interleaved evens out
    the groups of a rotation that is shorter than the vector (head_dim 256). With one rotation over the whole vector it
    changes nothing. Assumes that sizes of channels are the model's. Attention: a permutation of each query or output,
    which a runtime folds into weights after RoPE only for values. Stores 2 bytes a channel. Hurts nothing but the
    locality of memory.
    """

    name: ClassVar[str] = "reorder"
    interleave: int = 0

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        square = np.diagonal(statistics.covariance, axis1=1, axis2=2) + statistics.mean**2
        order = np.argsort(-square, axis=1, kind="stable")
        if self.interleave > 1:
            places = np.concatenate([np.arange(g, order.shape[1], self.interleave) for g in range(self.interleave)])
            order = order[:, places]
        ratio = float(np.sqrt(square.max(axis=1) / np.median(square, axis=1)).max())
        return FittedTransform(self.name, {"largest_to_median": ratio}, {"order": order.astype(np.uint16)})

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        order = stored(arrays, "order", (n_heads, head_dim)).astype(np.int64)
        if not (np.sort(order, axis=1) == np.arange(head_dim)).all():
            raise DataError("a transform's order of channels is no permutation")
        forward = np.eye(head_dim)[order]
        return HeadMap.linear(forward, forward.transpose(0, 2, 1))
