"""Symmetric densities of unit variance for which optimal codebooks are computed, by SciPy's special functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from turbocode.errors import OptionError

Array = NDArray[np.float64]
MAX_DIMENSION = 1 << 20  # beyond it, the density is the Gaussian to more digits than the special functions give


class Density(Protocol):
    """A density that is symmetric around 0 with variance 1. All methods take x >= 0."""

    @property
    def name(self) -> str: ...

    @property
    def support(self) -> float:
        """The largest value it reaches; may be infinite."""
        ...

    def command(self, bits: int) -> str:
        """The command that computes its codebook."""
        ...

    def tail(self, x: Any) -> Array:
        """P(X > x), accurate far out."""
        ...

    def tail_moment(self, x: Any) -> Array:
        """The integral of t f(t) over t > x."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """N(0, 1)."""

    name: str = "gaussian"
    support: float = math.inf

    def command(self, bits: int) -> str:
        return f"turbocode train-codebook --density gaussian --bits {bits}"

    def tail(self, x: Any) -> Array:
        return np.asarray(special.ndtr(-np.asarray(x, dtype=np.float64)))

    def tail_moment(self, x: Any) -> Array:
        return np.asarray(np.exp(-0.5 * np.square(x)) / math.sqrt(2.0 * math.pi))


@dataclass(frozen=True)
class SphereCoordinate:
    """sqrt(d) times a coordinate of a uniformly random unit vector in R^d, d >= 2.

    The coordinate u has density proportional to (1 - u^2)^((d - 3) / 2) on [-1, 1]; u^2 is Beta(1/2, (d - 1) / 2).
    Source: TurboQuant, arXiv 2504.19874, Lemma 1.
    """

    dimension: int

    def __post_init__(self) -> None:
        if not 2 <= self.dimension <= MAX_DIMENSION:
            raise OptionError(f"dimension {self.dimension} is not possible; 2 to {MAX_DIMENSION} are")

    @property
    def name(self) -> str:
        return f"sphere{self.dimension}"

    @property
    def support(self) -> float:
        return math.sqrt(self.dimension)

    def command(self, bits: int) -> str:
        return f"turbocode train-codebook --density sphere --dimension {self.dimension} --bits {bits}"

    def _remaining(self, x: Any) -> Array:
        """1 - u^2, at least 0."""
        return np.maximum(0.0, 1.0 - np.square(np.asarray(x, dtype=np.float64)) / self.dimension)

    def tail(self, x: Any) -> Array:
        return np.asarray(0.5 * special.betainc(0.5 * (self.dimension - 1), 0.5, self._remaining(x)))

    def tail_moment(self, x: Any) -> Array:
        d = self.dimension
        log_constant = special.gammaln(0.5 * d) - special.gammaln(0.5 * (d - 1)) - 0.5 * math.log(math.pi)
        power = np.power(self._remaining(x), 0.5 * (d - 1))
        return np.asarray(math.sqrt(d) * math.exp(log_constant) * power / (d - 1))
