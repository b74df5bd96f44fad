"""What an entropy coder could still take out of stored blocks (techniques M8): each byte of a block by its own counts.

rANS: an asymmetric numeral system with probabilities in 12 bits (Duda, arXiv:1311.2540); its tables are counted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PRECISION_BITS = 12
_STATE_BYTES = 4  # what a stream ends with


class BlockEntropy:
    """Counts of the byte values at every place of a block; n_blocks : blocks counted."""

    def __init__(self, head_dim: int) -> None:
        self._head_dim = head_dim
        self._counts: NDArray[np.int64] | None = None
        self.n_blocks = 0

    def add(self, blocks: NDArray[np.uint8]) -> None:
        """Count blocks (n, bytes_per_vector)."""
        n, width = blocks.shape
        keys = np.arange(width)[None] * 256 + blocks
        counts = np.bincount(keys.ravel(), minlength=256 * width).reshape(width, 256)
        self._counts = counts if self._counts is None else self._counts + counts
        self.n_blocks += n

    def bits_per_value(self) -> float:
        """The entropy of every byte by itself, in bits a value, corrected for few blocks (Miller, 1955)."""
        assert self._counts is not None
        share = self._counts / self.n_blocks
        entropy = -float((share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum())
        missing = float(((self._counts > 0).sum(axis=1) - 1).sum()) / (2 * self.n_blocks * np.log(2))
        return min(entropy + missing, 8.0 * len(share)) / self._head_dim

    def rans_bits_per_value(self) -> float:
        """The length of a rANS stream of the blocks, bytes of each place apart, with its tables and final states."""
        assert self._counts is not None
        precision = 1 << _PRECISION_BITS
        frequency = np.where(self._counts > 0, np.maximum(np.rint(self._counts / self.n_blocks * precision), 1), 0)
        used = frequency.sum(axis=1, keepdims=True)
        # Frequencies have to sum to the precision; the most frequent byte gives or takes the rest.
        frequency[np.arange(len(frequency)), frequency.argmax(axis=1)] += (precision - used)[:, 0]
        frequency = np.maximum(frequency, self._counts > 0)
        cost = _PRECISION_BITS - np.log2(np.maximum(frequency, 1))
        bits = float((self._counts * cost).sum())
        # A table: a bit for each byte value that occurs or not, and the frequencies of those that do.
        tables = _PRECISION_BITS * int((self._counts > 0).sum()) + (256 + 8 * _STATE_BYTES) * len(self._counts)
        return (bits + tables) / (self.n_blocks * self._head_dim)
