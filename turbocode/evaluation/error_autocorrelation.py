"""Whether coding errors of neighbouring coordinates are alike: a white error gains nothing from reordering channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import Codec
from turbocode.errors import OptionError


def autocorrelation(error: NDArray[np.float64], max_lag: int, *, is_ring: bool) -> NDArray[np.float64]:
    """r (max_lag + 1,) : mean of e_t e_(t + lag) over that of e_t^2, of errors (n, g); pairs go around a ring.

    r[0] is 1; where there is no error r is 0 elsewhere. Raises OptionError for a lag that no group has.
    """
    g = error.shape[1]
    if not 1 <= max_lag < g:
        raise OptionError(f"lag {max_lag} is not possible; 1 to {g - 1} are")
    power = float(np.square(error).mean()) if error.size else 0.0
    found = np.zeros(max_lag + 1)
    found[0] = 1.0
    if power > 0:
        for lag in range(1, max_lag + 1):
            later = np.roll(error, -lag, axis=1) if is_ring else error[:, lag:]
            found[lag] = (error[:, : later.shape[1]] * later).mean() / power
    return found


def error_autocorrelation(codec: Codec, vectors: NDArray[Any], max_lag: int = 16) -> NDArray[np.float64]:
    """`autocorrelation` of what coding `vectors` (n, head_dim) changes, along each group in the basis of the blocks."""
    blocks, _ = codec.encode(vectors)
    error = codec.rotate(vectors).astype(np.float64) - codec.decode(blocks, unrotate=False)
    layout = codec.block_format
    return autocorrelation(error.reshape(-1, layout.group_size), max_lag, is_ring=layout.is_tail_biting)
