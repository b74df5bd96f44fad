"""Multi-rate trellis coding of vectors that stand in their basis already: for experiments, and below MultirateCodec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codebooks.multirate_codebook import multirate_codebook
from turbocode.errors import OptionError
from turbocode.formats.multirate_format import MultirateFormat
from turbocode.kernels.multirate import LAWS, GainScale, MultirateSide


def multirate_side(
    sigma: NDArray[Any], schedule: Sequence[int] | NDArray[np.integer], law: str, gains: GainScale | None = None
) -> MultirateSide:
    """How vectors (n, D) of channels with standard deviations sigma (D,) are coded with the shipped codebook.

    schedule : bits a channel, 0 to 8, of each run of 8 channels; law : `whitened` or `energy`
    Raises OptionError for what a schedule, a law or sigma cannot be.
    """
    if law not in LAWS:
        raise OptionError(f"unknown law {law!r}; allowed: {', '.join(LAWS)}")
    form, tables = MultirateFormat.of(schedule), multirate_codebook().tables
    return MultirateSide(form, np.asarray(sigma, np.float32), gains or GainScale(), LAWS[law], tables)


def encode(
    y: NDArray[Any],
    sigma: NDArray[Any],
    schedule: Sequence[int] | NDArray[np.integer],
    law: str = "whitened",
    searches: int = 1,
) -> NDArray[np.uint8]:
    """Blocks uint8 (n, 1 + sum of the schedule) of finite vectors y (n, D); see multirate_side."""
    from turbocode.kernels.multirate import cpu

    return cpu.encode(np.asarray(y, np.float32), multirate_side(sigma, schedule, law), searches)


def decode(
    blocks: NDArray[np.uint8], sigma: NDArray[Any], schedule: Sequence[int] | NDArray[np.integer]
) -> NDArray[np.float32]:
    """The vectors float32 (n, D) that blocks of `encode` stand for."""
    from turbocode.kernels.multirate import cpu

    return cpu.decode(blocks, multirate_side(sigma, schedule, "whitened"))
