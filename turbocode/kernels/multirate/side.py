"""What coding the vectors of one head of one side needs, apart from the vectors: schedule, scales, gains, tables."""

from __future__ import annotations

import enum
import functools
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError
from turbocode.formats.multirate_format import MAX_RATE, N_GAINS, MultirateFormat

_MAX_RATIO = 1.5


class Law(enum.IntEnum):
    """The first guess of a vector's gain, y being its coded channels, sigma their standard deviations."""

    WHITENED = 0  # root mean square of y / sigma: for keys, whose every channel counts alike
    ENERGY = 1  # sqrt(sum y^2 / sum sigma^2): for values, of which the large channels count


LAWS = {"whitened": Law.WHITENED, "energy": Law.ENERGY}


@dataclass(frozen=True)
class GainScale:
    """What a block's first byte means: b stands for the gain base * ratio^(b - 1), and 0 for a vector of zeros.

    base : of byte 1, positive float32; ratio : 1 < ratio <= 1.5, float32
    The default spans 2^-6 to 2^4.6 in steps of 2^(1/24), which cost .3 % of squared error: the path is searched for a
    gain that can be stored.
    """

    base: float = float(np.float32(2.0**-6))
    ratio: float = float(np.float32(2.0 ** (1 / 24)))

    def __post_init__(self) -> None:
        base, ratio = float(np.float32(self.base)), float(np.float32(self.ratio))
        if not (math.isfinite(base) and base > 0.0):
            raise OptionError(f"gain base {self.base} is not a positive float32")
        if not 1.0 < ratio <= _MAX_RATIO:
            raise OptionError(f"gain ratio {self.ratio} is not above 1 and at most {_MAX_RATIO}")
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "ratio", ratio)
        if not np.isfinite(self.gains).all() or not self.gains[1] >= np.finfo(np.float32).tiny:
            raise OptionError(f"gains from {base} on in steps of {ratio} leave the range of float32")

    @functools.cached_property
    def gains(self) -> NDArray[np.float32]:
        """float32 (256,); the products are taken one after the other in float64, so that every machine has the same."""
        gains, gain = np.zeros(N_GAINS, np.float64), self.base
        for byte in range(1, N_GAINS):
            gains[byte] = gain
            gain *= self.ratio
        with np.errstate(over="ignore"):
            return gains.astype(np.float32)

    @functools.cached_property
    def boundaries(self) -> NDArray[np.float32]:
        """float32 (255,): the byte of a gain is the number of boundaries that are not above it."""
        half = np.float32(0.5)
        return self.gains[:-1] * half + self.gains[1:] * half


@dataclass(frozen=True, eq=False)
class MultirateSide:
    """How the vectors of one head are coded.

    block_format : schedule and block
    sigma : float32 (head_dim,), standard deviations of the channels; positive where the schedule has bits
    gains : meaning of the first byte; law : first guess of the gain
    tables : float32 (9, 2**L): row k has the values of the states of a step of k bits, in standard deviations; row 0
        is not read. L is 10 but in tests of the reference
    """

    block_format: MultirateFormat
    sigma: NDArray[np.float32]
    gains: GainScale
    law: Law
    tables: NDArray[np.float32]
    channels: NDArray[np.int64] = field(init=False)  # those with bits
    rates: NDArray[np.int64] = field(init=False)  # of these
    scale: NDArray[np.float32] = field(init=False)  # sigma of these

    def __post_init__(self) -> None:
        sigma = np.ascontiguousarray(self.sigma, dtype=np.float32)
        if sigma.shape != (self.block_format.head_dim,):
            raise OptionError(f"sigma has shape {sigma.shape}; {self.block_format.head_dim} rates' channels are needed")
        if self.tables.dtype != np.float32 or self.tables.ndim != 2 or len(self.tables) != MAX_RATE + 1:
            raise OptionError(f"tables are {self.tables.dtype} {self.tables.shape}; float32 (9, states) are needed")
        channels, rates = self.block_format.steps()
        scale = sigma[channels]
        with np.errstate(over="ignore"):
            square = scale * scale
        if not (np.isfinite(square).all() and (square >= np.finfo(np.float32).tiny).all()):
            raise OptionError("sigma must be positive, and its square a normal float32, where the schedule has bits")
        object.__setattr__(self, "sigma", sigma)
        for name, value in (("channels", channels), ("rates", rates), ("scale", scale)):
            object.__setattr__(self, name, value)

    @property
    def states_log2(self) -> int:
        return int(self.tables.shape[1]).bit_length() - 1

    def approach(self) -> tuple[int, int]:
        """Steps (before, behind) the ring's seam that the search for its state looks at: five states' bits each."""
        bits = 5 * self.states_log2
        behind = int(np.searchsorted(np.cumsum(self.rates), bits)) + 1
        before = int(np.searchsorted(np.cumsum(self.rates[::-1]), bits)) + 1
        return min(before, len(self.rates)), min(behind, len(self.rates))
