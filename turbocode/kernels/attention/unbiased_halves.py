"""Tables of many values as float16 whose rounding errors add up to nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unbiased_halves(table: NDArray[np.float32]) -> NDArray[np.uint32]:
    """A trellis's values as float16 bits, some rounded the other way so that their errors add up to nothing.

    States are about equally frequent. The mean error would be the same for all tokens, and so it alone would survive in
    the average over a long context, where random errors cancel.
    """
    rounded = table.astype(np.float16)
    error = rounded.astype(np.float64) - table
    other = np.nextafter(rounded, np.where(error > 0, np.float16(-np.inf), np.float16(np.inf)))
    change = other.astype(np.float64) - rounded.astype(np.float64)
    for i in np.argsort(np.abs(np.abs(error) - np.abs(change) / 2), kind="stable"):  # those that lie half way first
        if abs(error.sum() + change[i]) < abs(error.sum()):
            rounded[i] = other[i]
            error[i] += change[i]
            change[i] = 0.0
    return rounded.view(np.uint16).astype(np.uint32)
