"""The variances of the channels of a run of tokens are made equal (KVarN, arXiv 2606.03458, techniques 17 and 18 G)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from turbocode.transforms.fitted import Arrays, FittedTransform, half, stored
from turbocode.transforms.head_map import Floats, HeadMap
from turbocode.transforms.per_token import TokenMap, bytes_per_token, check_run, dealt, gathered, stored_run
from turbocode.transforms.statistics import SideStatistics

ROUNDS = 16  # of balancing channels and tokens in turn, as published; most runs need 3
_LARGEST = 64.0  # factor of a channel, up or down, around the geometric mean of all


def _limited(scale: Floats) -> Floats:
    """Positive scales (..., D) around 1, cut to what float16 keeps well."""
    scale = np.maximum(scale, 1e-6 * scale.max(axis=-1, keepdims=True) + 1e-30)
    return np.clip(scale / np.exp(np.log(scale).mean(axis=-1, keepdims=True)), 1 / _LARGEST, _LARGEST)


def channel_scales(x: Floats) -> Floats:
    """Scales (R, D), geometric mean about 1, of runs x (R, N, D) whose means are 0.

    x / (scale of its channel * scale of its token) has equal variance in every channel and every token (Sinkhorn).
    """
    square = np.square(x)
    channels = np.ones((len(x), 1, x.shape[2]))
    for _ in range(ROUNDS):
        tokens = (square / channels).mean(axis=2, keepdims=True)
        tokens = np.maximum(tokens, 1e-12 * tokens.max(axis=1, keepdims=True) + 1e-60)
        channels = np.square(_limited(np.sqrt((square / tokens).mean(axis=1, keepdims=True))))
    return np.asarray(np.sqrt(channels)[:, 0])


@dataclass(frozen=True)
class KVarN:
    """y_c = (x_c - m_c) / s_c, m the mean of a run of tokens, s what makes channels and tokens of equal variance.

    run : tokens that share m and s, 128 as published
    KVarN balances a run in both directions and rounds each channel between its least and greatest value. Here the
    codec's norm is the token's scale, its codebook does the rounding, and m and s stand for the channel's zero and
    scale. As published is `walsh+kvarn` with rotation=none; alone it stands in front of the codec's own rotation.
    Assumes that what makes channels differ lasts for a run. Costs 32 / run bits a value (0.25), for m and s in float16;
    the kernels of packed attention do not read such blocks, which are decoded first. Stores 4 bytes a channel, for
    tokens of runs that are not whole. Hurts where queries look at the channels that vary most, whose error grows with
    s: a rotation before it, as published, leaves few of them.
    """

    name: ClassVar[str] = "kvarn"
    run: int = 128

    def __post_init__(self) -> None:
        check_run(self.name, self.run)

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        deviation = np.sqrt(np.maximum(np.diagonal(statistics.covariance, axis1=1, axis2=2), 0.0))
        scale = _limited(deviation)
        about = {"largest_to_median": float((scale.max(axis=1) / np.median(scale, axis=1)).max())}
        arrays: dict[str, NDArray[np.generic]] = {"mean": half(statistics.mean), "scale": half(scale)}
        return FittedTransform(self.name, about, arrays | {"run": np.array([[self.run]], np.int32)})

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return HeadMap()

    @staticmethod
    def token_map(arrays: Arrays, n_heads: int, head_dim: int) -> TokenMap:
        return _Balanced(
            stored(arrays, "mean", (n_heads, head_dim)),
            stored(arrays, "scale", (n_heads, head_dim), is_positive=True),
            stored_run(arrays),
        )


class _Balanced:
    """Of every token its piece of m and s of its run."""

    def __init__(self, mean: Floats, scale: Floats, run: int) -> None:
        self._numbers, self.run = np.concatenate([mean, scale], axis=1).astype(np.float32), run
        self.n_bytes = bytes_per_token(self._numbers.shape[1], run)

    def split(self, vectors: Floats, head: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        whole = len(vectors) // self.run * self.run
        runs = vectors[:whole].reshape(-1, self.run, vectors.shape[1])
        means = runs.mean(axis=1)
        kept = np.zeros((len(vectors), self.n_bytes), np.uint8)
        kept[:whole] = dealt(np.concatenate([means, channel_scales(runs - means[:, None])], axis=1), self.run)
        mean, scale = self._means_and_scales(kept, head)
        return ((vectors - mean) / scale).astype(np.float32), kept

    def join(self, coded: NDArray[np.float32], kept: NDArray[np.uint8], head: int) -> NDArray[np.float32]:
        mean, scale = self._means_and_scales(kept, head)
        return coded * scale + mean

    def _means_and_scales(self, kept: NDArray[np.uint8], head: int) -> list[NDArray[np.float32]]:
        """m and s of each token, float32 (N, D) both."""
        numbers = np.tile(self._numbers[head], (len(kept), 1))
        whole = len(kept) // self.run * self.run
        found = gathered(np.ascontiguousarray(kept[:whole]), numbers.shape[1], self.run)
        numbers[:whole] = np.repeat(found, self.run, axis=0)
        return np.split(numbers, 2, axis=1)
