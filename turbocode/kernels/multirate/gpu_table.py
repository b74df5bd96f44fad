"""What GPU kernels read multirate blocks with: one table of words a head, so that one kernel serves all schedules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from turbocode.formats.multirate_format import (
    MAX_RATE,
    MULTIRATE_STATES_LOG2,
    N_GAINS,
    RUN_CHANNELS,
    MultirateFormat,
)

N_STATES = 1 << MULTIRATE_STATES_LOG2
GAINS_AT = (MAX_RATE + 1) * N_STATES  # words before the gains
STREAM_BYTES_AT = GAINS_AT + N_GAINS
CHANNELS_AT = STREAM_BYTES_AT + 1
RATE_SHIFT = 16  # of a channel's word; below lies the first bit of its state


def gpu_table(form: MultirateFormat, tables: NDArray[np.float32], gains: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (9 * 1024 + 256 + 1 + head_dim,): tables, gains, bytes of the stream, a word for each channel.

    The last head_dim + 1 are uint32 numbers; a channel's has its rate above RATE_SHIFT bits.
    """
    rates = np.repeat(np.array(form.rates, np.int64), RUN_CHANNELS)
    first = (np.cumsum(rates) - MULTIRATE_STATES_LOG2) % (8 * form.stream_bytes)
    words = np.concatenate(([form.stream_bytes], rates << RATE_SHIFT | first)).astype(np.uint32)
    return np.concatenate((tables.ravel(), gains, words.view(np.float32)))


def any_schedule(form: MultirateFormat) -> MultirateFormat:
    """The format that stands for all of a head_dim where kernels are compiled."""
    return MultirateFormat((1,) * len(form.rates))


def tables_of(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (9, 1024) of a gpu_table: the values of all rates' states."""
    return table[:GAINS_AT].reshape(MAX_RATE + 1, N_STATES)


def gains_of(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (256,) of a gpu_table."""
    return table[GAINS_AT:STREAM_BYTES_AT]
