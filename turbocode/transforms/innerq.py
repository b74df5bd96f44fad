"""Channels are made more equal in size (the equalisation that the lineage calls InnerQ, techniques 7.3b)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from turbocode.errors import OptionError
from turbocode.transforms.fitted import Arrays, FittedTransform, diagonal, stored_diagonal
from turbocode.transforms.head_map import HeadMap
from turbocode.transforms.statistics import SideStatistics


@dataclass(frozen=True)
class InnerQ:
    """y_c = s_c x_c with s_c = (mean RMS / RMS_c) ** strength, cut to 1/2..2, for each layer and KV head.

    strength : 0 to 1; threshold : a head whose channels are all within this factor of the mean RMS is left alone
        (auto-detection); is_peak : 1 takes the paper's 1 / sqrt(max |x_c|) instead of the RMS, geometric mean 1
    Assumes that a few channels stand out and that a rotation alone does not spread them. Attention: D multiplications
    a query head (keys) or output (values). Stores 2 bytes a channel. Hurts where large channels are also those that
    queries look at: their error grows with 1 / s_c; `balance_diagonal` asks the queries.
    """

    name: ClassVar[str] = "innerq"
    strength: float = 0.2
    threshold: float = 1.2
    is_peak: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or not self.threshold >= 1:
            raise OptionError(
                f"innerq has strength {self.strength} and threshold {self.threshold}; allowed are 0 to 1, and 1 and up"
            )

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        square = np.diagonal(statistics.covariance, axis1=1, axis2=2) + statistics.mean**2
        rms = np.sqrt(np.maximum(square, 1e-12 * square.max(axis=1, keepdims=True) + 1e-30))
        ratio = rms / rms.mean(axis=1, keepdims=True)
        worst = np.maximum(ratio, 1 / ratio).max(axis=1)
        is_on = worst >= self.threshold
        if self.is_peak:
            scale = 1 / np.sqrt(np.maximum(statistics.largest, 1e-6))
            scale /= np.exp(np.log(scale).mean(axis=1, keepdims=True))
        else:
            scale = ratio**-self.strength
        scale = np.where(is_on[:, None], np.clip(scale, 0.5, 2.0), 1.0)
        about = {"heads_equalised": int(is_on.sum()), "largest_ratio": float(worst.max())}
        return FittedTransform(self.name, about, diagonal(scale))

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return stored_diagonal(arrays, n_heads, head_dim)
