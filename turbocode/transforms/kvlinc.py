"""Keys as KVLinC codes them: not rotated, each channel with a scale of its own (arXiv 2510.05373, techniques 8.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from turbocode.errors import OptionError
from turbocode.transforms.fitted import Arrays, FittedTransform, half, stored
from turbocode.transforms.head_map import HeadMap
from turbocode.transforms.statistics import SideStatistics


@dataclass(frozen=True)
class KVLinC:
    """y_c = (x_c - mu_c) / sigma_c for keys, to be coded by a codec with rotation=none; values keep its rotation.

    KVLinC's scales are those of a channel over a group of tokens, here they are the calibration's; its correction by
    linear attention, which is trained, is left out. Assumes that channels differ more from each other than each does
    over time. Attention: D multiplications a query head. Stores 4 bytes a channel. Keys only. Hurts next to a rotation
    with the same bits wherever the error, which follows sigma_c, meets large queries: `balance_diagonal` weighs both.
    """

    name: ClassVar[str] = "kvlinc"

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        if statistics.side != "keys":
            raise OptionError("kvlinc is for keys; values are rotated by their codec", hint="leave it out for values")
        variance = np.diagonal(statistics.covariance, axis1=1, axis2=2)
        sigma = np.sqrt(np.maximum(variance, 1e-6 * variance.mean(axis=1, keepdims=True) + 1e-30))
        sigma = np.maximum(sigma, 2.0**-14)  # float16 stays normal
        about = {"largest_to_median": float((sigma.max(axis=1) / np.median(sigma, axis=1)).max())}
        return FittedTransform(self.name, about, {"mean": half(statistics.mean), "sigma": half(sigma)})

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        sigma = stored(arrays, "sigma", (n_heads, head_dim), is_positive=True)
        shift = HeadMap.shifting(stored(arrays, "mean", (n_heads, head_dim)))
        return shift.then(HeadMap.linear(1 / sigma, sigma))
