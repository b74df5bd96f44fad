"""The bit-shift trellis: a state is a window of the stream, and its number picks the value (QTIP, arXiv 2406.11235).

A state has L bits, of which the lowest are the oldest. A step shifts in k bits from above:
    next(s, o) = (s >> k) | (o << (L - k)),  predecessors of s = ((s mod 2**(L - k)) << k) | p  for p = 0 .. 2**k - 1
Step t ends in state t, the bits [k t, k t + L) of the stream, and decodes to the table's value of that state.
"""

from __future__ import annotations

from dataclasses import dataclass

from turbocode.formats import BlockFormat


@dataclass(frozen=True)
class Trellis:
    """bits : k, 1 to 4; states_log2 : L; is_tail_biting : whether the stream goes on at its beginning"""

    bits: int
    states_log2: int
    is_tail_biting: bool

    @classmethod
    def of_format(cls, block_format: BlockFormat) -> Trellis:
        """The trellis of a format that has one."""
        return cls(block_format.bits, block_format.states_log2, block_format.is_tail_biting)

    @property
    def n_states(self) -> int:
        return 1 << self.states_log2

    @property
    def overlap_bits(self) -> int:
        """L - k: bits that a state shares with the next one."""
        return self.states_log2 - self.bits

    def approach(self, group_size: int, constraint_lengths: int = 5) -> int:
        """Samples on each side of the ring's seam that the search for its overlap looks at, at most group_size.

        The survivors of the Viterbi algorithm agree on a state about five constraint lengths L / k back; what more of
        them would gain is in docs/benchmarks/rate-distortion.md.
        """
        return min(group_size, constraint_lengths * -(-self.states_log2 // self.bits))
