"""A factor on attention's output at decode time, against the shrinking that coded values and flattened weights cause.

The best factor in the mean square is <o, o'> / |o'|^2 of exact outputs o and coded ones o'; `attend compare` gives it
by layer and by head. It depends on how far attention is spread, so it may follow the number of tokens that a row sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError

HEADS = "heads:"


@dataclass(frozen=True)
class ValueGain:
    """gain = base + slope * ln(n tokens seen), at least `least` and at most `most`.

    base : one number for all query heads, or one for each
    """

    base: tuple[float, ...] = (1.0,)
    slope: float = 0.0
    least: float = 0.0
    most: float = float("inf")

    def __post_init__(self) -> None:
        numbers = (*self.base, self.slope, self.least)
        if not (self.base and np.isfinite(numbers).all() and 0 <= self.least <= self.most):
            raise OptionError(
                f"gain of base {self.base}, slope {self.slope}, from {self.least} to {self.most}: allowed are finite "
                "numbers, limits from 0 on and in order"
            )

    def of(self, n_seen: NDArray[np.integer], n_query_heads: int) -> NDArray[np.float32]:
        """Float32 (n_query_heads, *n_seen.shape): the gain of every head for rows that see so many tokens.

        For GpuAttention's `gains` give one length: float32 (n_query_heads,).
        """
        if len(self.base) not in (1, n_query_heads):
            raise OptionError(f"gains of {len(self.base)} heads; the model has {n_query_heads} query heads")
        n = np.maximum(np.asarray(n_seen), 1)
        base = np.broadcast_to(np.array(self.base), (n_query_heads,)).reshape(-1, *[1] * n.ndim)
        return np.clip(base + self.slope * np.log(n), self.least, self.most).astype(np.float32)

    @classmethod
    def parse(cls, text: str) -> ValueGain:
        """`GAIN`, `BASE,SLOPE[,LEAST,MOST]` or `heads:GAIN,GAIN,...`. Raises OptionError for anything else."""
        is_by_head = text.startswith(HEADS)
        try:
            numbers = [float(part) for part in text.removeprefix(HEADS).split(",")]
        except ValueError:
            numbers = []
        if is_by_head and numbers:
            return cls(tuple(numbers))
        if len(numbers) not in (1, 2, 4):
            raise OptionError(
                f"gain {text!r} is none of GAIN, BASE,SLOPE[,LEAST,MOST] and heads:GAIN,GAIN,...",
                hint="1.02, or 1.077,-0.00721 for 1.077 - 0.00721 ln(tokens)",
            )
        return cls((numbers[0],), *numbers[1:])
