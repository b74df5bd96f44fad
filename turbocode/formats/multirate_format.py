"""The block of a multi-rate trellis: a byte of gain, then a ring of bits in which every run of channels has its rate.

The channels of a vector stand in runs of eight; the schedule gives each run 0 to 8 bits a channel. One schedule holds
for all KV heads of a side, so that its blocks have one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError
from turbocode.formats.block_format import FLOAT16_BITS, Layout

RUN_CHANNELS = 8  # that share a rate: as many bytes of stream as the rate has bits
MAX_RATE = 8
MULTIRATE_STATES_LOG2 = 10  # L: bits of a state
N_GAINS = 256  # that a block's first byte tells apart, of which 0 means a vector of zeros
MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256
_MIN_STREAM_BYTES = 2  # a ring holds a state


@dataclass(frozen=True)
class MultirateFormat:
    """One stored block, which holds one vector.

    rates : bits a channel of each run of RUN_CHANNELS channels, 0 to 8; head_dim is 8 times their number
    The stream has sum(rates) bytes. Bits are counted from the least significant of its first byte; channel t appends
    the k bits of its rate, and its state is the last 10 bits written, the stream's last ones before its first.
    """

    rates: tuple[int, ...]

    name = "multirate"
    layout = Layout.MULTIRATE
    is_trellis = True
    has_codebook = True
    is_tail_biting = True
    blocks_per_group = 1
    bits = 0  # no number holds for all channels

    def __post_init__(self) -> None:
        if not MIN_HEAD_DIM <= self.head_dim <= MAX_HEAD_DIM:
            raise OptionError(
                f"{len(self.rates)} rates are head_dim {self.head_dim}; allowed: {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"
            )
        if not all(type(rate) is int and 0 <= rate <= MAX_RATE for rate in self.rates):
            raise OptionError(f"rates {self.rates} are not all whole numbers from 0 to {MAX_RATE}")
        if self.stream_bytes < _MIN_STREAM_BYTES:
            raise OptionError(f"rates of {self.stream_bytes} bytes a vector; a ring needs {_MIN_STREAM_BYTES}")

    @classmethod
    def of(cls, rates: Sequence[int] | NDArray[np.integer]) -> MultirateFormat:
        """The format of any sequence of whole numbers. Raises OptionError for what a schedule cannot be."""
        return cls(tuple(int(rate) for rate in rates))

    @property
    def head_dim(self) -> int:
        return RUN_CHANNELS * len(self.rates)

    @property
    def group_size(self) -> int:
        return self.head_dim

    @property
    def values_per_block(self) -> int:
        return self.head_dim

    @property
    def states_log2(self) -> int:
        return MULTIRATE_STATES_LOG2

    @property
    def stream_bytes(self) -> int:
        return sum(self.rates)

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The block as a packed structured dtype."""
        return np.dtype([("gain", "u1"), ("stream", "u1", (self.stream_bytes,))])

    @property
    def bytes_per_block(self) -> int:
        return 1 + self.stream_bytes

    @property
    def bytes_per_group(self) -> int:
        return self.bytes_per_block

    @property
    def bits_per_value(self) -> float:
        """Stored bits per value of a block, the gain counted."""
        return 8 * self.bytes_per_block / self.head_dim

    @property
    def compression(self) -> float:
        """How many times smaller than float16."""
        return FLOAT16_BITS / self.bits_per_value

    def bytes_per_vector(self, head_dim: int) -> int:
        """Stored bytes of one key or value vector; head_dim is the format's own."""
        assert head_dim == self.head_dim
        return self.bytes_per_block

    def steps(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(channels, rates), int64 (n,): the channels that have bits, in order, and how many."""
        rates = np.repeat(np.array(self.rates, np.int64), RUN_CHANNELS)
        channels = np.flatnonzero(rates)
        return channels, rates[channels]

    def describe(self) -> dict[str, object]:
        """The layout as JSON: name, rates, fields with byte offset and count, and the derived rates."""
        return {
            "name": self.name,
            "layout": self.layout.name.lower(),
            "rates": list(self.rates),
            "states_log2": self.states_log2,
            "values_per_block": self.values_per_block,
            "group_size": self.group_size,
            "bytes_per_block": self.bytes_per_block,
            "bits_per_value": self.bits_per_value,
            "compression": self.compression,
            "fields": [
                {"name": "gain", "offset": 0, "dtype": "|u1", "count": 1},
                {"name": "stream", "offset": 1, "dtype": "|u1", "count": self.stream_bytes},
            ],
        }
