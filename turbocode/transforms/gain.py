"""Decoded values times a factor near 1 (the V norm scaling or alpha of techniques 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from turbocode.errors import OptionError
from turbocode.transforms.fitted import Arrays, FittedTransform, half, stored
from turbocode.transforms.head_map import HeadMap
from turbocode.transforms.statistics import SideStatistics

# alpha = clip(a + b ln n, low, high) for a context of n tokens, by bits: as published for the lineage's trellises.
_BY_CONTEXT = {3: (1.1484, -0.01443, 0.98, 1.06), 2: (0.8865, 0.0195, 1.0, 1.12)}
LIMITS = (0.5, 2.0)


@dataclass(frozen=True)
class Gain:
    """x' = alpha times what is decoded: the one transform that is not exact, on purpose.

    alpha : the same for all heads; context : instead, the published formula for this many tokens and `bits` 2 or 3
    codec : instead, what makes <o, o'> / |o'|^2 of each head's outputs on the calibration, o' with values coded by it
    at_encode : 1 scales what is coded, the norms that are stored, instead of what is decoded
    Assumes that coded values are shorter than exact ones by the same factor everywhere; with norms that already make up
    for it (`mse`, `unbiased`) there is nothing to gain. Attention: nothing, it is part of the output's map. Stores 2
    bytes a head. Hurts on an exact cache (`f16`), which is the control: what helps there too is no correction of the
    coding, but a sharper or softer model. Values only: on keys it is a temperature.
    """

    name: ClassVar[str] = "gain"
    alpha: float = 1.0
    context: int = 0
    bits: int = 3
    codec: str = ""
    at_encode: int = 0
    measured: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not LIMITS[0] <= self.alpha <= LIMITS[1] or self.context < 0:
            raise OptionError(
                f"gain has alpha {self.alpha} and context {self.context}; alpha is 0.5 to 2, context 0 up"
            )
        if self.context and self.bits not in _BY_CONTEXT:
            raise OptionError(f"gain has bits {self.bits}; formulas by context are known for 2 and 3")

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        if statistics.side != "values":
            raise OptionError("gain is for values; on keys it would be a temperature", hint="leave it out for keys")
        if self.measured:
            found = np.clip(np.array(self.measured), *LIMITS)
        elif self.codec:
            raise OptionError("gain by a codec is measured on a dump's attention", hint="turbocode calibrate does it")
        else:
            found = np.full(statistics.n_heads, self._by_context() if self.context else self.alpha)
        name = "encode" if self.at_encode else "decode"
        return FittedTransform(self.name, {"alpha": float(found.mean())}, {name: half(found[:, None])})

    def _by_context(self) -> float:
        a, b, low, high = _BY_CONTEXT[self.bits]
        return min(max(a + b * math.log(self.context), low), high)

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        name = "encode" if "encode" in arrays else "decode"
        alpha = np.broadcast_to(stored(arrays, name, (n_heads, 1), is_positive=True), (n_heads, head_dim))
        return HeadMap(forward=alpha) if name == "encode" else HeadMap(backward=alpha)
