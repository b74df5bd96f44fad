"""The mean of each channel is taken away (techniques 7.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from turbocode.transforms.fitted import Arrays, FittedTransform, half, stored
from turbocode.transforms.head_map import HeadMap
from turbocode.transforms.statistics import SideStatistics


@dataclass(frozen=True)
class Mean:
    """y = x - mu, with mu the mean over the calibration's tokens, one value a channel and KV head.

    Assumes that the part which all tokens share is the same in other texts: true of biases and of the low frequencies
    of RoPE, whose mean high frequencies lose by themselves. Attention: nothing for keys, whose mean adds the same to
    every logit of a query (with a softcap, or merged with tokens that are not coded, that sum is added back, once a
    query); for values D additions a query head. Stores 2 bytes a channel. Hurts only where mu is far from the text's.
    """

    name: ClassVar[str] = "mean"

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        spread = statistics.covariance.trace(axis1=1, axis2=2).sum()
        share = float((statistics.mean**2).sum() / ((statistics.mean**2).sum() + spread))
        return FittedTransform(self.name, {"constant_share": share}, {"mean": half(statistics.mean)})

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return HeadMap.shifting(stored(arrays, "mean", (n_heads, head_dim)))
